"""A rank that leaves out a step of a sharded optimizer: its part of the parameters would be missing on all others."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from driver.environ import environment

HERE = Path(__file__).parent
LIMIT = 100  # seconds, for any job
LEFT_OUT = 2


@pytest.mark.parametrize("shards", ["elements", pytest.param("parameters", marks=pytest.mark.slow)])
def test_a_step_that_one_rank_leaves_out_is_an_error_on_all(shards: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    words = [
        sys.executable,
        "-m",
        "ringdp",
        "run",
        "-n",
        "2",
        str(HERE / "sharded_job.py"),
        str(LEFT_OUT),
        shards,
    ]
    done = subprocess.run(
        words, cwd=tmp_path, env={**environment(), "RINGDP_TIMEOUT": "20"}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout
    told = [
        [json.loads(line) for line in (tmp_path / f"said-{rank}").read_text().splitlines()] for rank in (0, 1)
    ]
    stepped = [[line for line in lines if line["what"] == "stepped"] for lines in told]
    for lines in stepped:
        assert [line["step"] for line in lines] == list(range(LEFT_OUT)), told
    assert [line["parameters"] for line in stepped[0]] == [line["parameters"] for line in stepped[1]]
    for lines in told:  # the launcher may end one before its Python has heard of it
        assert lines[-1]["what"] in ("error", "left out"), told
    assert told[0][-1]["what"] == "error" or told[1][-1]["what"] == "error"
    assert "ended by" in done.stdout
