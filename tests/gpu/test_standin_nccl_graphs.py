"""NCCL's calls in captures, over the stand-ins: each launch does them, and graphs refer to their communicators."""

from __future__ import annotations

import re
import threading
import time

import numpy as np
import pytest
from gpu import on_standins
from gpu.on_standins import (
    IN_PROGRESS,
    INVALIDATED,
    SUM,
    TYPES,
    UNHANDLED_CUDA_ERROR,
    UNSUPPORTED,
    Rank,
    allocate,
    begin,
    captured,
    cuda,
    end,
    ends_with,
    fill,
    finish,
    get,
    instantiate,
    mark,
    nccl,
    ok,
    on,
    process,
    put,
    ranks,
    replay,
    stays_behind,
    stream,
    wait,
)

F32, I32 = TYPES["float32"], TYPES["int32"]


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in on_standins.settings().items():
        monkeypatch.setenv(name, value)


def give_up(*executables: int) -> None:
    for executable in executables:
        ok(cuda().cuGraphExecDestroy(executable))


def write(address: int, values: np.ndarray) -> None:
    cuda().standin_write(address, values.ctypes.data, values.nbytes)


# --- replays --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_allreduce_is_replayed_on_what_is_there_then(size: int) -> None:
    def body(rank: Rank) -> None:
        count = 70_001  # more than a slot
        mine, out = allocate(4 * count), allocate(4 * count)
        executable = captured(rank.stream, lambda: rank.call("ncclAllReduce", mine, out, count, F32, SUM))
        assert (get(out, 4) == 0xCD).all()
        for step in range(3):
            write(mine, np.arange(count, dtype=np.float32) * (rank.rank + 1 + step))
            replay(executable, rank.stream)
            finish(rank.stream)
            wanted = sum(k + 1 + step for k in range(size))
            assert (get(out, count, np.float32) == np.arange(count, dtype=np.float32) * wanted).all()
            beside = put(np.full(5, rank.rank + 1, np.int32))  # what is not captured goes on
            rank.call("ncclAllReduce", beside, beside, 5, I32, SUM)
            finish(rank.stream)
            assert (get(beside, 5, np.int32) == size * (size + 1) // 2).all()
        give_up(executable)

    with on(0):
        ranks(size, body)


def test_groups_of_collectives_and_messages_are_replayed() -> None:
    def body(rank: Rank) -> None:
        other, mine, sums, out = 1 - rank.rank, allocate(40), allocate(40), allocate(40)

        def calls() -> None:
            with rank.group():
                ok(rank.start("ncclAllReduce", mine, sums, 10, I32, SUM))
                ok(rank.start("ncclSend", mine, 10, I32, other))
                ok(rank.start("ncclRecv", out, 10, I32, other))
            rank.call("ncclAllReduce", sums, sums, 10, I32, SUM)

        executable = captured(rank.stream, calls)
        for step in range(3):
            write(mine, np.full(10, 10 * rank.rank + step, np.int32))
            replay(executable, rank.stream)
            finish(rank.stream)
            assert (get(out, 10, np.int32) == 10 * other + step).all()
            assert (get(sums, 10, np.int32) == 2 * (10 + 2 * step)).all()
        give_up(executable)

    with on(0):
        ranks(2, body)


def test_a_replay_waits_for_the_other_ranks_and_its_other_branches_do_not() -> None:
    def body(rank: Rank) -> None:
        place, beside, behind, branch = put(np.ones(8, np.float32)), allocate(4), allocate(4), stream()

        def calls() -> None:
            wait(branch, mark(rank.stream))
            rank.call("ncclAllReduce", place, place, 8, F32, SUM)
            fill(behind, 1, 4, rank.stream)
            fill(beside, 1, 4, branch)
            wait(rank.stream, mark(branch))

        executable = captured(rank.stream, calls)
        if rank.rank == 0:
            replay(executable, rank.stream)
            on_standins.becomes(lambda: bool((get(beside, 4) == 1).all()), "a branch waits for another one")
            stays_behind(mark(rank.stream))
            assert (get(behind, 4) == 0xCD).all()
            came.set()
        else:
            assert came.wait(on_standins.LIMIT)
            replay(executable, rank.stream)
        finish(rank.stream)
        assert (get(behind, 4) == 1).all() and (get(place, 8, np.float32) == 2).all()
        give_up(executable)

    came = threading.Event()
    with on(0):
        ranks(2, body)


def test_no_branch_begins_with_a_launch_before_the_launch_before_has_ended() -> None:
    def body(rank: Rank) -> None:
        place, beside, branch, other = put(np.ones(8, np.float32)), allocate(4), stream(), stream()

        def calls() -> None:
            wait(branch, mark(rank.stream))
            rank.call("ncclAllReduce", place, place, 8, F32, SUM)
            fill(beside, 1, 4, branch)
            wait(rank.stream, mark(branch))

        executable = captured(rank.stream, calls)
        if rank.rank == 0:
            replay(executable, rank.stream)
            on_standins.becomes(lambda: bool((get(beside, 4) == 1).all()), "a branch waits for another one")
            write(beside, np.zeros(4, np.uint8))
            replay(executable, other)  # nothing else orders the two streams
            stays_behind(mark(other))
            assert not get(beside, 4).any()
            came.set()
        else:
            assert came.wait(on_standins.LIMIT)
            replay(executable, rank.stream)
            replay(executable, other)
        finish(other)
        assert (get(beside, 4) == 1).all() and (get(place, 8, np.float32) == 4).all()
        give_up(executable)

    came = threading.Event()
    with on(0):
        ranks(2, body)


def test_what_was_captured_in_two_graphs_may_be_replayed_in_any_order_that_is_the_same_on_all_ranks() -> None:
    def body(rank: Rank) -> None:
        one, two = put(np.ones(4, np.int32)), put(np.ones(4, np.int32))
        both = [
            captured(rank.stream, lambda at=at: rank.call("ncclAllReduce", at, at, 4, I32, SUM))
            for at in (one, two)
        ]
        for index in (1, 0, 1):
            replay(both[index], rank.stream)
        finish(rank.stream)
        assert (get(one, 4, np.int32) == 2).all() and (get(two, 4, np.int32) == 4).all()
        give_up(*both)

    with on(0):
        ranks(2, body)


# --- graphs refer to communicators ------------------------------------------------------------------------------------


def test_a_communicator_ends_when_no_graph_refers_to_it_any_more() -> None:
    def body(rank: Rank) -> None:
        place = put(np.ones(4, np.int32))
        begin(rank.stream)
        rank.call("ncclAllReduce", place, place, 4, I32, SUM)
        graph = end(rank.stream)
        executable = instantiate(graph)
        replay(executable, rank.stream)
        finish(rank.stream)
        assert nccl().ncclCommFinalize(rank.handle) == IN_PROGRESS
        for destroy, handle in ((cuda().cuGraphDestroy, graph), (cuda().cuGraphExecDestroy, executable)):
            time.sleep(0.02)
            assert rank.state() == IN_PROGRESS
            ok(destroy(handle))
        ok(rank.settle())
        ok(nccl().ncclCommDestroy(rank.handle))

    with on(0):
        ranks(2, body, ends=False)


def test_a_capture_that_failed_refers_to_none() -> None:
    def body(rank: Rank) -> None:
        place = put(np.ones(4, np.int32))
        begin(rank.stream)
        rank.call("ncclAllReduce", place, place, 4, I32, SUM)
        assert cuda().cuStreamSynchronize(rank.stream) == UNSUPPORTED
        assert rank.start("ncclAllReduce", place, place, 4, I32, SUM) == IN_PROGRESS
        assert rank.settle() == UNHANDLED_CUDA_ERROR  # what NCCL makes of CUDA's answer
        assert ends_with(rank.stream) == INVALIDATED
        finish(rank.stream)
        assert (get(place, 4, np.int32) == 1).all()
        ok(nccl().ncclCommAbort(rank.handle))

    with on(0):
        ranks(2, body, ends=False)


# --- what GPUs would not say ----------------------------------------------------------------------------------------

BEGIN = """
F = TYPES["float32"]

def body(rank):
    a, s, other = put(np.zeros(16, np.float32)), rank.stream, stream()
    reduce = lambda at=None: rank.call("ncclAllReduce", a, a, 8, F, SUM, at=at)
    {body}

with on(0):
    ranks({size}, body, ends=False)
    sys.exit("all is well")
"""


@pytest.mark.parametrize(
    ("size", "body", "says"),
    [
        (2, "e = captured(s, reduce); replay(e, s); finish(s); cuda().cuGraphExecDestroy(e); rank.end()",
            "all is well"),
        (2, "e = captured(s, reduce); replay(e, s); finish(s); nccl().ncclCommAbort(rank.handle)",
            "ncclCommAbort would wait for the graphs that refer to it"),
        (2, "e = captured(s, reduce); replay(e, s); finish(s); nccl().ncclCommDestroy(rank.handle)",
            "ncclCommDestroy would wait for the graphs that refer to it"),
        (1, "begin(s); reduce(); nccl().ncclCommAbort(rank.handle)", "ncclCommAbort would wait for the graphs"),
        (2, "b = lambda: rank.call('ncclAllReduce', a, a, 9, F, SUM)\n    c = captured(s, b), captured(s, reduce)\n"
            "    replay(c[rank.rank], s); finish(s)", r"calls ncclAllReduce of [89] .*, but rank \d nccl"),
        (2, "e = captured(s, reduce); replay(e, s) if rank.rank else reduce(); finish(s)", "all is well"),
        (1, "e = captured(s, reduce); cuda().cuMemFree_v2(a); replay(e, s); finish(s)",
            "ncclAllReduce: no device memory, or it has been freed"),
        (1, "while True:\n        begin(s); rank.start('ncclAllReduce', a, a, 8, F, SUM); end(s); rank.settle()",
            "the capture ended while a call of NCCL was under way"),
        (1, "while True:\n        rank.start('ncclAllReduce', a, a, 8, F, SUM); begin(s); rank.settle(); end(s)",
            "a capture began while a call of NCCL was under way"),
        (1, "while True:\n        begin(s); rank.start('ncclAllReduce', a, a, 8, F, SUM); end(s); begin(s); "
            "rank.settle(); end(s)", "the capture ended while a call of NCCL was under way"),
    ],
)  # fmt: skip
def test_what_gpus_would_not_say(size: int, body: str, says: str) -> None:
    done = process(BEGIN.replace("{body}", body).replace("{size}", str(size)))
    assert done.returncode == (1 if "well" in says else -6) and re.search(says, done.stderr), done.stderr


def test_a_kernel_that_stops_the_gpu_ends_what_waits_for_other_ranks() -> None:
    body = """
def body(rank):
    place = put(np.ones(8, np.float32))
    executable = captured(rank.stream, lambda: rank.call("ncclAllReduce", place, place, 8, TYPES["float32"], SUM))
    both.wait()
    if rank.rank == 0:
        replay(executable, rank.stream)
        marker = mark(rank.stream)
        stays_behind(marker)
        ok(launch(kernel("ringdp_stop"), "<Q", 0, at=stream()))
        becomes(lambda: cuda().cuEventQuery(marker) == LAUNCH_FAILED, "it does not stop")
        cuda().standin_synchronize_all()  # nothing waits any more
        assert cuda().cuGraphLaunch(executable, rank.stream) == LAUNCH_FAILED
        assert (get(place, 8, np.float32) == 1).all()
        stopped.set()
    stopped.wait()
    ok(nccl().ncclCommAbort(rank.handle))  # though a graph refers to it: nothing of that is left
    os.write(1, b"good ")
    if rank.rank == 0:
        time.sleep(0.2)
        os._exit(0)
    time.sleep(LIMIT)

both, stopped = threading.Barrier(2), threading.Event()
with on(0):
    ranks(2, body, ends=False)
"""
    done = process(body)
    assert done.stdout == "good good ", done.stdout + done.stderr
