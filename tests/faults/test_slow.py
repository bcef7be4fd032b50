"""A slow rank is named by the live figure; ranks that are alike are not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from driver.environ import environment

JOB = Path(__file__).parent / "slow_job.py"


def figures(ranks, folder, windows, steps, inject=""):
    env = environment() | ({"RINGDP_INJECT": inject} if inject else {})
    words = [sys.executable, "-m", "ringdp", "run", "-n", str(ranks), str(JOB), str(windows), str(steps)]
    done = subprocess.run(
        words, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == windows, done.stdout + done.stderr
    return found


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_slow_rank_is_named(ranks, tmp_path):
    (figure,) = figures(ranks, tmp_path, 1, 20, "rank=1,do=slow:50ms")
    assert figure["operations"] == 40
    assert figure["slowest"] == 1
    assert figure["last"][1] >= 0.9 * figure["operations"]
    assert 0.045 < figure["behind"][1] < 0.15
    assert figure["waited"][1] > 0.5
    assert (
        figure["text"].startswith("over 40 operations in ")
        and " ranks: rank 1 came last to " in figure["text"]
    )


def test_ranks_that_are_alike_are_not_named(tmp_path):
    """On a machine that does something else as well one of them may be slow for a while."""
    found = figures(3, tmp_path, 5, 50)
    assert any(figure["slowest"] is None for figure in found), found
