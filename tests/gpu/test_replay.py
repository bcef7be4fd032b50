"""The kernels that begin and compare replays of CUDA graphs, by themselves (csrc/kernels/gpu/replay.cu)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gpu import on_host

ENVIRON = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
BEGUN, EXCHANGE, REFUSED, OTHER, OTHER_GRAPH, OTHER_REPLAY = range(6)
GRAPH = 0xDEADBEEF12345678


def test_a_replay_counts_itself_and_tells_what_it_is() -> None:
    progress, count, told = np.zeros(6, np.uint64), np.zeros(1, np.uint64), np.zeros(2, np.uint64)
    for replay in range(1, 4):
        on_host.run("begin_replay", 1, "QQQQ", progress, count, told, GRAPH)
        assert (progress[BEGUN], progress[EXCHANGE], count[0]) == (replay, 0, replay)
        assert tuple(told) == (GRAPH, replay)
        for exchange in (1, 2):
            on_host.run("note_exchange", 1, "QQ", progress, exchange)
            assert progress[EXCHANGE] == exchange
    assert not progress[REFUSED:].any()


def test_ranks_that_replay_the_same_go_on() -> None:
    progress = np.zeros(6, np.uint64)
    on_host.run("compare_replays", 1, "QQQQ", progress, np.array([[GRAPH, 7]] * 5, np.uint64), 5, 2)
    assert not progress.any()


@pytest.mark.parametrize("other", [(GRAPH, 6), (GRAPH - 1, 7)], ids=["an earlier replay", "another graph"])
@pytest.mark.parametrize("rank", [0, 3])
def test_the_first_rank_that_replays_something_else_is_named_and_all_stops(
    rank: int, other: tuple[int, int], tmp_path: Path
) -> None:
    code = f"""
import mmap, sys
import numpy as np
from gpu import on_host
with open(sys.argv[1], "r+b") as file:
    progress = np.frombuffer(mmap.mmap(file.fileno(), 48), np.uint64)
heard = np.array([{(GRAPH, 7)}] * 5, np.uint64)
heard[{rank}] = {other}
on_host.run("compare_replays", 1, "QQQQ", progress, heard, 5, 2)
"""
    left = tmp_path / "progress"
    left.write_bytes(bytes(48))
    done = subprocess.run(
        [sys.executable, "-c", code, str(left)], env=ENVIRON, timeout=60, capture_output=True
    )
    assert done.returncode == -6, done.stderr  # what the host has for a trap
    progress = np.frombuffer(left.read_bytes(), np.uint64)
    assert tuple(progress[OTHER:]) == (rank + 1, *other)


def test_a_replay_that_is_refused_stops() -> None:
    code = """
import numpy as np
from gpu import on_host
zeros = np.zeros(8, np.uint64)
on_host.run("begin_replay", 1, "QQQQ", np.array([4, 1, 1, 0, 0, 0], np.uint64), zeros, zeros, 5)
"""
    assert subprocess.run([sys.executable, "-c", code], env=ENVIRON, timeout=60).returncode == -6
