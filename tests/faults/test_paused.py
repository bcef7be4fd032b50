"""Jobs that are stopped and continued as a whole, as by a scheduler that lets several take turns."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from driver import leftovers
from driver.environ import MARK, environment

from ringdp import processes

HERE = Path(__file__).parent
LIMIT = 90  # seconds, for any job
T = 6.0  # RINGDP_TIMEOUT


def said(folder: Path, ranks: int, what: str) -> list[dict]:
    found = []
    for path in (folder / f"said-{rank}" for rank in range(ranks)):
        lines = path.read_text().splitlines() if path.exists() else []
        found += [line for line in map(json.loads, lines) if line["what"] == what]
    return found


def until(what, process: subprocess.Popen) -> None:
    end = time.monotonic() + LIMIT
    while not what():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_time_in_which_a_job_was_stopped_does_not_count(ranks: int, tmp_path: Path) -> None:
    env = {**environment(), "RINGDP_TIMEOUT": f"{T:g}"}
    words = [sys.executable, "-m", "ringdp", "run", "-n", str(ranks), str(HERE / "paused_job.py")]
    with (tmp_path / "output").open("wb") as out:
        process = subprocess.Popen(words, cwd=tmp_path, env=env, stdout=out, stderr=out)
    try:
        until(lambda: len(said(tmp_path, ranks, "step")) >= ranks, process)
        pids = [line["pid"] for line in said(tmp_path, ranks, "begin")]
        time.sleep(0.3)  # the others have come to the operation
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        until(lambda: all(processes.find(pid).is_stopped for pid in pids), process)
        time.sleep(T + 3)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        time.sleep(1.5)  # longer than it takes to ask, and to give up
        (tmp_path / "go").touch()
        code = process.wait(LIMIT)
    finally:
        process.kill()
        process.wait()
        left = leftovers.end_processes(os.environ[MARK])
    output = (tmp_path / "output").read_text(errors="replace")
    assert code == 0 and len(said(tmp_path, ranks, "end")) == ranks, output
    assert "waits in" not in output, output
    assert not left and not list(tmp_path.glob("ringdp-report-*"))
