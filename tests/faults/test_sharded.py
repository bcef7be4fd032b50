"""A rank that leaves out a step of a sharded optimizer: its part of the parameters would be missing on all others."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from driver.environ import environment

HERE = Path(__file__).parent
LIMIT = 100  # seconds, for any job
LEFT_OUT = 2


@pytest.mark.parametrize(
    ("shards", "ranks"),
    [
        ("elements", 2),
        pytest.param("elements", 3, marks=pytest.mark.slow),
        ("parameters", 2),
        pytest.param("parameters", 3, marks=pytest.mark.slow),
    ],
)
def test_a_step_that_one_rank_leaves_out_is_an_error_on_all(shards: str, ranks: int, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    words = [
        sys.executable,
        "-m",
        "ringdp",
        "run",
        "-n",
        str(ranks),
        str(HERE / "sharded_job.py"),
        str(LEFT_OUT),
        shards,
    ]
    done = subprocess.run(
        words, cwd=tmp_path, env={**environment(), "RINGDP_TIMEOUT": "10"}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout
    told = [
        [json.loads(line) for line in (tmp_path / f"said-{rank}").read_text().splitlines()]
        for rank in range(ranks)
    ]
    stepped = [[line for line in lines if line["what"] == "stepped"] for lines in told]
    for lines in stepped:
        assert [line["step"] for line in lines] == list(range(LEFT_OUT)), told
        assert [line["parameters"] for line in lines] == [line["parameters"] for line in stepped[0]]
    errors = [lines[-1] for lines in told if lines[-1]["what"] == "error"]
    assert errors, told  # the launcher may end the others before their Python has heard of it
    assert all(lines[-1]["what"] in ("error", "left out", "stepped") for lines in told), told
    assert "ended by" in done.stdout
    if shards == "parameters":  # rank 1 waits for the others in its next step, and they for it
        blamed = re.findall(r"rank (\d+) \(host \S+, process \d+\) ", done.stdout)
        assert set(blamed) == {"1"}, done.stdout
        assert all("rank 1 (host " in error["text"] for error in errors), told
