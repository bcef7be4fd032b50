"""`ringdp run --elastic`: ranks that are lost, and the others go on. Fifty at random moments: kills.py."""

import contextlib
import importlib.util
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from driver import leftovers
from driver.environ import MARK, environment
from driver.limit import default_signals
from faults import kills

from ringdp import mpi
from ringdp.cli.elastic import LOST, recoveries

HERE = Path(__file__).parent
LIMIT = 120  # seconds, for any job
STEPS = 30
KILLED = "rank=1,name=gradients 10,stage=REDUCE,do=kill"

pytestmark = pytest.mark.skipif(mpi.build().MPI_FAMILY != "openmpi", reason="only Open MPI has ULFM")


class Job:
    def __init__(
        self,
        folder: Path,
        *words: str,
        ranks: int = 3,
        options: tuple[str, ...] = (),
        script: str = "elastic_job.py",
        **environ: str,
    ):
        self.folder, self.env = folder, environment() | environ
        command = [sys.executable, "-m", "ringdp", "run", "--elastic", "-n", str(ranks), *options]
        self.output = folder / "output"
        self.process = subprocess.Popen(
            [*command, str(HERE / script), "--steps", str(STEPS), *words], cwd=folder, env=self.env,
            stdin=subprocess.DEVNULL, stdout=self.output.open("w"), stderr=subprocess.STDOUT,
            preexec_fn=default_signals,
        )  # fmt: skip

    def end(self) -> tuple[int | None, str]:
        """The exit code, and what was written; nothing may be left over."""
        try:
            code = self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            code = None
        left = leftovers.end_processes(self.env[MARK])
        self.process.wait()
        text = self.output.read_text(errors="replace")
        assert code is not None, f"it has not ended after {LIMIT} s\n{text}"
        left += kills.files_left(self.process.pid)
        assert not left, f"{left}\n{text}"
        return code, text

    def said(self) -> list[list[dict]]:
        """By process."""
        files = sorted(self.folder.glob("said-*"))
        return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]

    def ends(self) -> list[dict]:
        return [lines[-1] for lines in self.said() if lines[-1]["what"] == "end"]

    def lost(self) -> list[list[int]]:
        found = [one for folder in self.folder.glob("ringdp-report-*") for one in recoveries(folder)]
        return [one["lost"] for one in found if "lost" in one]


def sums(ranks_before: int, step: int, ranks_after: int) -> list[int]:
    """What each step has summed, if from this step on there were fewer ranks."""
    ranks = [ranks_before if s < step else ranks_after for s in range(STEPS)]
    return [sum(rank + 1 + s for rank in range(n)) for s, n in enumerate(ranks)]


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_rank_is_killed_in_mid_exchange(tmp_path):
    job = Job(tmp_path, RINGDP_INJECT=KILLED)
    code, text = job.end()
    assert code == LOST, text
    assert "going on without rank 1 (of 3): 2 left, generation 2" in text
    assert re.search(r"ringdp run: 1 rank lost, 1 recovery; .* its exit code is 10", text), text
    ends = job.ends()
    assert sorted(one["rank"] for one in ends) == [0, 1], text
    assert all(one["sums"] == sums(3, 10, 2) for one in ends), ends
    # The process set of ranks 0 and 2, now 0 and 1, is there; that of the lost rank is not, and it is said.
    assert all(one["pair"] == [0, 1] and one["together"] == [2.0] for one in ends), ends
    assert "process set 2 is gone with its rank 1" in text
    assert job.lost() == [[1]]


@pytest.mark.parametrize("spares", [0, 1])
def test_a_mesh_is_made_again_with_the_ranks_that_are_left(tmp_path, spares):
    ranks = 4 - spares * 2
    options = ("--spares", "1") if spares else ()
    job = Job(tmp_path, ranks=ranks, options=options, script="mesh_job.py")
    code, text = job.end()
    assert code == LOST, text
    assert "process set 1, of a mesh, is gone, on all ranks: call its mesh's add() on all ranks again" in text
    ends = job.ends()
    if not spares:  # three ranks are no rows of two
        assert "no_mesh" in {one["axes"] for one in ends} and len(ends) == 3, text
        return
    assert [one["axes"] for one in ends] == ["data=1, model=2"] * 2, text
    assert sorted(one["rank"] for one in ends) == [0, 1]
    assert all(one["groups"] == [[one["rank"]], [0, 1]] for one in ends), ends


def test_a_stopped_rank_is_fenced_before_the_others_go_on(tmp_path):
    job = Job(tmp_path, "--do", "stop", RINGDP_TIMEOUT="2")
    began = time.monotonic()
    victim = 0
    while job.process.poll() is None and time.monotonic() - began < LIMIT:
        goes_on = [
            lines for lines in job.said() if lines and lines[-1]["what"] == "begin" and lines[-1]["size"] == 2
        ]
        if goes_on:  # some rank goes on: the one that was stopped is dead already, and SIGCONT does nothing
            victim = next(lines[0]["pid"] for lines in job.said() if lines[0]["rank"] == 1)
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGCONT)
            assert not lives(victim)
            break
        time.sleep(0.01)
    code, text = job.end()
    assert code == LOST, text
    assert victim, text
    assert f"killing rank 1 (process {victim}), as the others go on without it: it is stopped" in text
    assert sorted(one["rank"] for one in job.ends()) == [0, 1]
    assert all(one["sums"] == sums(3, 10, 2) for one in job.ends())


@pytest.mark.slow
def test_an_exception_on_one_rank_is_its_own_end(tmp_path):
    job = Job(tmp_path, "--do", "raise")
    code, text = job.end()
    assert code == LOST, text
    assert "ValueError: the data is broken" in text and "the other ranks go on without it" in text
    assert all(one["sums"] == sums(3, 10, 2) for one in job.ends()) and len(job.ends()) == 2


@pytest.mark.slow
def test_nobody_is_lost_where_all_live(tmp_path):
    job = Job(tmp_path, "--do", "mismatch")
    code, text = job.end()
    assert code == 0, text
    assert "goes on from the last commit after MismatchError" in text
    assert (
        all(one["sums"] == sums(3, 0, 3) and one["size"] == 3 for one in job.ends()) and len(job.ends()) == 3
    )


@pytest.mark.slow
def test_too_few_are_left(tmp_path):
    job = Job(tmp_path, options=("--min-ranks", "3"), RINGDP_INJECT=KILLED)
    code, text = job.end()
    assert code not in (0, LOST), text
    assert "rank 1 lost, 2 left: fewer than the 3 of --min-ranks, so the job ends" in text
    assert not job.ends()


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "sklearn")),
    reason="needs torch, scikit-learn",
)
def test_no_sample_is_lost_or_taken_twice(tmp_path):
    """And all ranks have the same parameters: one of three ranks of a training is killed or stopped at some moment."""
    run = kills.start(tmp_path, 3, 12, 0.01)
    kills.kill_some(run, 3, 1, random.Random(6))
    code = kills.end(run)
    wrong, _ = kills.judge(run, code, 3, None)
    wrong += leftovers.end_processes(run.env[MARK]) + kills.files_left(run.process.pid)
    assert run.killed and not wrong, (
        f"{run.killed}: {wrong}\n{(tmp_path / 'output').read_text(errors='replace')}"
    )
