"""The stand-in for libnccl itself: it computes what NCCL does, and what would hang or give anything on GPUs is seen."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Sequence
from ctypes import byref, c_void_p

import numpy as np
import pytest
from gpu import on_standins
from gpu.on_standins import (
    AVERAGE,
    IN_PROGRESS,
    INVALID_ARGUMENT,
    INVALID_USAGE,
    MAX,
    MIN,
    PRODUCT,
    SUM,
    SYSTEM_ERROR,
    TYPES,
    Config,
    Rank,
    allocate,
    cuda,
    finish,
    get,
    mark,
    nccl,
    new_id,
    ok,
    on,
    passed,
    process,
    put,
    ranks,
    stays_behind,
)

STORAGE = {d: np.dtype("uint16" if d == "bfloat16" else d) for d in TYPES}
INTEGERS, FLOATS = ("uint8", "int8", "int32", "int64"), ("float16", "bfloat16", "float32", "float64")
SIZES = (1, 5, 70_001)  # more than a slot of any type
every_size = pytest.mark.parametrize("size", [1, 2, 3, 4])


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in on_standins.settings().items():
        monkeypatch.setenv(name, value)


# --- what is expected: in float64, rounded to the type after each step ---------------------------------------------


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype != "bfloat16":
        return values.astype(dtype)
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def loaded(raw: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return (raw.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return raw if dtype in INTEGERS else raw.astype(np.float64)


def operate(dtype: str, function: Callable[..., np.ndarray], *raw: np.ndarray) -> np.ndarray:
    return stored(function(*(loaded(r, dtype) for r in raw)), dtype)


def reduced(dtype: str, operation: int, inputs: Sequence[np.ndarray], factor: float | None) -> np.ndarray:
    """The inputs of all ranks; with a factor, of a pre-multiplied sum."""
    if operation == AVERAGE and dtype in FLOATS:
        factor = 1 / len(inputs)
    if factor is not None:
        by = stored(np.array([factor]), dtype)
        inputs = [operate(dtype, np.multiply, x, by) for x in inputs]
    function = {PRODUCT: np.multiply, MAX: np.maximum, MIN: np.minimum}.get(operation, np.add)
    total = functools.reduce(lambda a, b: operate(dtype, function, a, b), inputs)
    if operation == AVERAGE and dtype in INTEGERS:
        return np.trunc(total / np.float64(len(inputs))).astype(dtype)  # towards zero
    return total


def inputs(dtype: str, count: int, size: int) -> list[np.ndarray]:
    """Of each rank. Small powers of two: products and sums are exact where floats are; integers wrap."""
    values = np.array([1, 2, 4, -1, -2, -4, 2, 1, -1, 4, 1])
    rows = [np.resize(np.roll(values, 3 * rank), count) for rank in range(size)]
    return [stored(row.astype(np.float64) if dtype in FLOATS else row, dtype) for row in rows]


OPERATIONS: tuple[tuple[int, float | None], ...] = (
    *((operation, None) for operation in (SUM, PRODUCT, MAX, MIN, AVERAGE)),
    (SUM, 3),
    (SUM, 0),
)


def number(rank: Rank, operation: int, factor: float | None, dtype: str) -> int:
    if factor is None:
        return operation
    return rank.factor(stored(np.array([factor]), dtype), dtype)


# --- collectives ----------------------------------------------------------------------------------------------------


@every_size
@pytest.mark.parametrize("dtype", TYPES)
def test_reductions(dtype: str, size: int) -> None:
    storage = STORAGE[dtype]

    def body(rank: Rank) -> None:
        for count in SIZES:
            all_of = inputs(dtype, count, size)
            mine, out = put(all_of[rank.rank]), allocate(count * storage.itemsize)
            for operation, factor in OPERATIONS:
                given = number(rank, operation, factor, dtype)
                wanted = reduced(dtype, operation, all_of, factor)
                rank.call("ncclAllReduce", mine, out, count, TYPES[dtype], given)
                finish(rank.stream)
                assert (get(out, count, storage) == wanted).all()
                root = (operation + 1) % size
                before = get(out, count, storage) + storage.type(1)
                out = put(before)
                rank.call("ncclReduce", mine, out, count, TYPES[dtype], given, root)
                finish(rank.stream)
                assert (get(out, count, storage) == (wanted if rank.rank == root else before)).all()
        assert (get(mine, count, storage) == all_of[rank.rank]).all()

    with on(0):
        ranks(size, body)


@every_size
@pytest.mark.parametrize("dtype", TYPES)
def test_reduce_scatter(dtype: str, size: int) -> None:
    storage = STORAGE[dtype]

    def body(rank: Rank) -> None:
        for count in SIZES:
            all_of = inputs(dtype, count * size, size)
            own = slice(rank.rank * count, (rank.rank + 1) * count)
            for operation, factor in OPERATIONS[:2] if count > 5 else OPERATIONS:
                mine, out = put(all_of[rank.rank]), allocate(count * storage.itemsize)
                given = number(rank, operation, factor, dtype)
                rank.call("ncclReduceScatter", mine, out, count, TYPES[dtype], given)
                finish(rank.stream)
                wanted = reduced(dtype, operation, all_of, factor)[own]
                assert (get(out, count, storage) == wanted).all()
                in_place = mine + own.start * storage.itemsize
                rank.call("ncclReduceScatter", mine, in_place, count, TYPES[dtype], given)
                finish(rank.stream)
                assert (get(in_place, count, storage) == wanted).all()

    with on(0):
        ranks(size, body)


@every_size
def test_gathers_broadcasts_and_in_place(size: int) -> None:
    def body(rank: Rank) -> None:
        for dtype, count in ((d, n) for d in TYPES for n in (1, 70_001)):
            storage, code = STORAGE[dtype], TYPES[dtype]
            all_of = inputs(dtype, count, size)
            whole, mine = np.concatenate(all_of), all_of[rank.rank]
            out = allocate(whole.nbytes)
            rank.call("ncclAllGather", put(mine), out, count, code)
            finish(rank.stream)
            assert (get(out, whole.size, storage) == whole).all()
            out = put(np.where(np.arange(whole.size) // count == rank.rank, whole, 0).astype(storage))
            rank.call("ncclAllGather", out + rank.rank * mine.nbytes, out, count, code)
            finish(rank.stream)
            assert (get(out, whole.size, storage) == whole).all()
            for root in range(size):
                out, there = put(mine), allocate(mine.nbytes)
                rank.call("ncclBroadcast", out, out, count, code, root)
                rank.call("ncclBroadcast", put(mine) if rank.rank == root else None, there, count, code, root)
                finish(rank.stream)
                assert (get(out, count, storage) == all_of[root]).all()
                assert (get(there, count, storage) == all_of[root]).all()
            out = put(mine)
            rank.call("ncclAllReduce", out, out, count, code, SUM)
            finish(rank.stream)
            assert (get(out, count, storage) == reduced(dtype, SUM, all_of, None)).all()

    with on(0):
        ranks(size, body)


def test_nothing_is_exchanged_of_nothing() -> None:
    def body(rank: Rank) -> None:
        rank.call("ncclAllReduce", None, None, 0, TYPES["float32"], SUM)
        rank.call("ncclAllGather", None, None, 0, TYPES["float32"])
        finish(rank.stream)

    with on(0):
        ranks(2, body)


@pytest.mark.parametrize("dtype", FLOATS)
def test_min_and_max_drop_nans(dtype: str) -> None:
    def body(rank: Rank) -> None:
        nan, other = stored(np.array([np.nan]), dtype), stored(np.array([3.0]), dtype)
        mine = put(np.concatenate([nan, other] if rank.rank == 0 else [other, nan]))
        for operation in (MIN, MAX, SUM):
            out = allocate(16)
            rank.call("ncclAllReduce", mine, out, 2, TYPES[dtype], operation)
            finish(rank.stream)
            got = loaded(get(out, 2, STORAGE[dtype]), dtype)
            assert np.isnan(got).all() if operation == SUM else (got == 3).all()

    with on(0):
        ranks(2, body)


def test_an_average_of_integers_wraps_and_rounds_towards_zero() -> None:
    def body(rank: Rank) -> None:
        for dtype, values, wanted in (
            ("int8", (-1, 0), 0),
            ("uint8", (200, 100), 22),
            ("int32", (-4, -3), -3),
        ):
            out = put(np.array([values[rank.rank]]).astype(dtype))
            rank.call("ncclAllReduce", out, out, 1, TYPES[dtype], AVERAGE)
            finish(rank.stream)
            assert get(out, 1, dtype)[0] == wanted

    with on(0):
        ranks(2, body)


def test_each_rank_multiplies_by_its_own_factor() -> None:
    def body(rank: Rank) -> None:
        out = put(np.array([10], np.int32))
        given = rank.factor(np.array([[2, -3][rank.rank]], np.int32), "int32")
        rank.call("ncclAllReduce", out, out, 1, TYPES["int32"], given)
        finish(rank.stream)
        assert get(out, 1, np.int32)[0] == -10

    with on(0):
        ranks(2, body)


# --- messages ---------------------------------------------------------------------------------------------------------


@every_size
def test_all_to_all_of_any_lengths(size: int) -> None:
    """To itself, of nothing, and of more than what is under way at once."""

    def body(rank: Rank) -> None:
        sent = [np.full(7919 * ((rank.rank + to) % 4), 10 * rank.rank + to, np.int64) for to in range(size)]
        places = [put(values) for values in sent]
        received = [allocate(max(1, 8 * 7919 * ((rank.rank + of) % 4))) for of in range(size)]
        with rank.group():
            for peer in range(size):
                args = (TYPES["int64"], peer)
                ok(rank.start("ncclSend", places[peer], sent[peer].size, *args))
                ok(rank.start("ncclRecv", received[peer], 7919 * ((rank.rank + peer) % 4), *args))
        finish(rank.stream)
        for of in range(size):
            got = get(received[of], 7919 * ((rank.rank + of) % 4), np.int64)
            assert (got == 10 * of + rank.rank).all()

    with on(0):
        ranks(size, body)


def test_messages_of_a_pair_keep_their_order() -> None:
    counts = 8 * (5, 6000, 1, 0, 9000, 3)  # many wait for room, and short ones would find it

    def body(rank: Rank) -> None:
        sent = [put(np.full(count, i + 1, np.int32)) for i, count in enumerate(counts)]
        received = [allocate(max(1, 4 * count)) for count in counts]
        for _ in range(10):
            with rank.group():
                for i, count in enumerate(counts):
                    for name, place in (("ncclSend", sent[i]), ("ncclRecv", received[i])):
                        ok(rank.start(name, place, count, TYPES["int32"], 1 - rank.rank))
            finish(rank.stream)
        for i, count in enumerate(counts):
            assert (get(received[i], count, np.int32) == i + 1).all()

    with on(0):
        ranks(2, body)


def test_a_send_ends_when_it_was_received() -> None:
    """However short: on a GPU nothing keeps it."""

    def body(rank: Rank) -> None:
        memory = put(np.zeros(1, np.int32))
        if rank.rank == 0:
            with rank.group():
                ok(rank.start("ncclSend", memory, 1, TYPES["int32"], 1))
            stays_behind(mark(rank.stream))
            told.append(True)
        else:
            on_standins.becomes(lambda: bool(told), "the other one fails")
            with rank.group():
                ok(rank.start("ncclRecv", memory, 1, TYPES["int32"], 0))
        finish(rank.stream)

    told: list[bool] = []
    with on(0):
        ranks(2, body)


def test_a_message_alone_is_refused() -> None:
    def body(rank: Rank) -> None:
        assert rank.start("ncclSend", allocate(4), 1, TYPES["int32"], 0) == INVALID_USAGE

    with on(0):
        ranks(1, body)


# --- groups -----------------------------------------------------------------------------------------------------------


def test_a_group_begins_at_its_end() -> None:
    def body(rank: Rank) -> None:
        places = [put(np.full(n, rank.rank + 1, np.int32)) for n in (3, 5)]
        ok(nccl().ncclGroupStart())
        ok(nccl().ncclGroupStart())
        for place, count in zip(places, (3, 5), strict=True):
            ok(rank.start("ncclAllReduce", place, place, count, TYPES["int32"], SUM))
        ok(nccl().ncclGroupEnd())
        ok(rank.state())
        behind = mark(rank.stream)
        finish(rank.stream)
        assert passed(behind) and (get(places[0], 3, np.int32) == rank.rank + 1).all()
        assert nccl().ncclGroupEnd() == IN_PROGRESS
        ok(rank.settle())
        finish(rank.stream)
        assert all((get(p, n, np.int32) == 3).all() for p, n in zip(places, (3, 5), strict=True))

    with on(0):
        ranks(2, body)


def test_a_group_with_a_call_that_fails_does_nothing() -> None:
    def body(rank: Rank) -> None:
        place = put(np.full(3, 7, np.int32))
        ok(nccl().ncclGroupStart())
        ok(rank.start("ncclAllReduce", place, place, 3, TYPES["int32"], SUM))
        assert rank.start("ncclBroadcast", place, place, 3, TYPES["int32"], 2) == INVALID_ARGUMENT
        assert nccl().ncclGroupEnd() == INVALID_ARGUMENT
        finish(rank.stream)
        assert (get(place, 3, np.int32) == 7).all()
        rank.call("ncclAllReduce", place, place, 3, TYPES["int32"], SUM)  # it goes on
        finish(rank.stream)
        assert (get(place, 3, np.int32) == 14).all()

    with on(0):
        ranks(2, body)


def test_a_group_that_was_not_begun() -> None:
    assert nccl().ncclGroupEnd() == INVALID_USAGE


# --- communicators ----------------------------------------------------------------------------------------------------


def test_arguments_that_are_none() -> None:
    def body(rank: Rank) -> None:
        place = put(np.zeros(8, np.float32))
        kind, n = TYPES["float32"], rank.size
        wrong: list[tuple[str, tuple[object, ...]]] = [
            (name, (*start, root))
            for root in (-1, n)
            for name, start in (
                ("ncclBroadcast", (place, place, 8, kind)),
                ("ncclReduce", (place, place, 8, kind, SUM)),
                ("ncclSend", (place, 8, kind)),
                ("ncclRecv", (place, 8, kind)),
            )
        ]
        wrong += [("ncclAllReduce", (place, place, 8, t, SUM)) for t in (-1, 12, 77)]
        made, gone = (rank.factor(np.float32(2), "float32") for _ in range(2))
        ok(nccl().ncclRedOpDestroy(gone, rank.handle))
        assert rank.factor(np.float32(2), "float32") not in (made, gone)  # its number does not come again
        wrong += [("ncclAllReduce", (place, place, 8, kind, op)) for op in (-1, 5, 999, gone)]
        wrong += [("ncclAllReduce", (place, place, 8, TYPES["int32"], made))]  # of another type
        for name, arguments in wrong:
            assert rank.start(name, *arguments) == INVALID_ARGUMENT, (name, arguments)
        for op in (gone, SUM, AVERAGE):
            assert nccl().ncclRedOpDestroy(op, rank.handle) == INVALID_ARGUMENT
        of_others[rank.rank] = made
        rank.call("ncclAllReduce", place, place, 8, kind, made)
        finish(rank.stream)
        other = of_others[1 - rank.rank]
        assert rank.start("ncclAllReduce", place, place, 8, kind, other) == INVALID_ARGUMENT

    of_others: dict[int, int] = {}
    with on(0):
        ranks(2, body)


def test_a_communicator_that_cannot_be() -> None:
    handle, unique = c_void_p(), new_id()
    with on(0):
        for size, rank in ((0, 0), (2, -1), (2, 2), (99, 0)):
            config = byref(Config(24, 0xCAFEBEEF, 21400, 0))
            made = nccl().ncclCommInitRankConfig(byref(handle), size, unique, rank, config)
            assert made == INVALID_ARGUMENT


def test_ranks_on_one_gpu_are_refused_when_all_have_come() -> None:
    with on(0):
        unique = new_id()
        both = [Rank(rank, 2, unique) for rank in range(2)]
        assert [r.settle() for r in both] == [INVALID_USAGE] * 2
        assert [r.start("ncclAllGather", None, None, 0, 0) for r in both] == [INVALID_USAGE] * 2
        for r in both:
            ok(nccl().ncclCommAbort(r.handle))


def test_a_call_is_under_way_when_it_returns_and_so_is_the_end() -> None:
    def body(rank: Rank) -> None:
        place = put(np.zeros(8, np.float32))
        held = cuda().standin_hold(rank.stream)
        rank.call("ncclAllReduce", place, place, 8, TYPES["float32"], SUM)  # settled: the stream has it
        stays_behind(mark(rank.stream))
        assert nccl().ncclCommFinalize(rank.handle) == IN_PROGRESS
        time.sleep(0.01)
        assert rank.state() == IN_PROGRESS  # it is not done yet
        cuda().standin_release(held)
        ok(rank.settle())
        ok(nccl().ncclCommDestroy(rank.handle))

    with on(0):
        ranks(2, body, ends=False)


def test_who_waits_for_a_rank_waits_until_it_aborts() -> None:
    def body(rank: Rank) -> None:
        if rank.rank == 0:
            place = put(np.zeros(8, np.float32))
            rank.call("ncclAllReduce", place, place, 8, TYPES["float32"], SUM)
            behind = mark(rank.stream)
            stays_behind(behind)
            ok(rank.state())
        ok(nccl().ncclCommAbort(rank.handle))
        finish(rank.stream)
        if rank.rank == 0:
            assert passed(behind)

    with on(0):
        ranks(2, body, ends=False)


def test_who_waits_for_a_rank_to_connect_waits_until_it_aborts() -> None:
    with on(0):
        alone = Rank(0, 2, new_id())
        time.sleep(0.01)
        assert alone.state() == IN_PROGRESS
        ok(nccl().ncclCommAbort(alone.handle))


def two_communicators(
    orders: Sequence[Sequence[int]], wanted: Callable[[Rank], None], one_stream: bool
) -> None:
    """Each of two ranks launches an all-reduce in both, in its order."""
    seconds = [new_id(), new_id()]

    def body(first: Rank) -> None:
        second = Rank(first.rank, 2, seconds[0])
        ok(second.settle())
        if one_stream:
            second.stream = first.stream
        both = (first, second)
        for index in orders[first.rank]:
            place = put(np.ones(8, np.float32))
            both[index].call("ncclAllReduce", place, place, 8, TYPES["float32"], SUM)
            time.sleep(0.01)  # it is on the GPU
        wanted(first)
        for communicator in both:
            ok(nccl().ncclCommAbort(communicator.handle))
        for communicator in both:
            finish(communicator.stream)

    ranks(2, body, ends=False)


@pytest.mark.parametrize("one_stream", [True, False])
def test_communicators_on_a_gpu_block_one_another_when_they_are_launched_in_other_orders(
    one_stream: bool,
) -> None:
    with on(0):
        two_communicators([(0, 1), (1, 0)], lambda rank: stays_behind(mark(rank.stream)), one_stream)
        two_communicators([(0, 1), (0, 1)], lambda rank: finish(rank.stream), one_stream)


FAULTS = """
def body(rank):
    place = put(np.zeros(8, np.float32))
    for n in range(3):
        status = rank.start("ncclAllReduce", place, place, 8, TYPES["float32"], SUM)
        print(status, flush=True)
        if status != IN_PROGRESS:
            continue
        rank.settle()  # or it has failed already
        if not ends(rank.stream):
            print("state", rank.state(), flush=True)
            ok(nccl().ncclCommAbort(rank.handle))
            return
    rank.end()

def ends(at):
    end, marker = time.monotonic() + 0.1, mark(at)
    while not passed(marker) and time.monotonic() < end:
        time.sleep(0.001)
    return passed(marker)

with on(0):
    ranks(1, body, ends=False)
"""


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("ncclAllReduce:2:1", ["7", "1", "7"]),
        ("async:2:6", ["7", "7", "state", "6"]),
        ("async:2:-1", ["7", "7", "state", "0"]),  # it hangs, and says nothing
        ("ncclBroadcast:1:1", ["7", "7", "7"]),
    ],
)
def test_faults_on_purpose(fault: str, says: list[str]) -> None:
    done = process(FAULTS, RINGDP_STANDIN_NCCL_FAIL=fault)
    assert done.returncode == 0 and done.stdout.split() == says, done.stdout + done.stderr


def test_a_communicator_that_fails_on_purpose() -> None:
    done = process(
        "with on(0):\n    print(Rank(0, 1, new_id()).status)",
        RINGDP_STANDIN_NCCL_FAIL="ncclCommInitRankConfig:1:2",
    )
    assert done.stdout.split() == [str(SYSTEM_ERROR)], done.stderr


# --- what GPUs would not say ----------------------------------------------------------------------------------------

BEGIN = """
F = TYPES["float32"]

def reduce(rank, count=8, name="ncclAllReduce", operation=SUM):
    place = put(np.zeros(count, np.float32))
    rank.start(name, place, place, count, F, operation)
    rank.settle()
    finish(rank.stream)

def message(rank, name, count, dtype="float32"):
    ok(nccl().ncclGroupStart())
    ok(rank.start(name, allocate(64), count, TYPES[dtype], 1 - rank.rank))
    nccl().ncclGroupEnd()
    rank.settle()
    finish(rank.stream)

def body(rank):
    first, a = rank.rank == 0, allocate(64)
    {body}

with on(0):
    ranks({size}, body)
    sys.exit("all is well")
"""


@pytest.mark.parametrize(
    ("size", "body", "says"),
    [
        (2, "message(rank, 'ncclSend', 8) if first else message(rank, 'ncclRecv', 8)", "all is well"),
        (2, "message(rank, 'ncclSend', 9) if first else message(rank, 'ncclRecv', 8)", "rank 0 sends 36 bytes"),
        (2, "message(rank, 'ncclSend', 7) if first else message(rank, 'ncclRecv', 8)", "rank 1 receives 32 bytes"),
        (2, "message(rank, 'ncclSend', 8, 'float32' if first else 'int32') if first else "
            "message(rank, 'ncclRecv', 8, 'int32')", "of type 7, and rank 1 receives 32 bytes of type 2"),
        (2, "reduce(rank, 8 + rank.rank)", r"calls ncclAllReduce of \d float32 .*, but rank \d ncclAllReduce of"),
        (2, "reduce(rank, name='ncclAllReduce') if first else rank.call('ncclAllGather', a, allocate(64), 8, F)",
            "calls nccl.*, but rank . nccl"),
        (2, "reduce(rank, operation=MIN if first else MAX)", "operation [23], .*, but rank . .*operation [23]"),
        (2, "rank.call('ncclBroadcast', a, a, 4, F, rank.rank)", "root [01].*, but rank"),
        (1, "rank.start('ncclAllReduce', a, a + 4, 8, F, SUM)", "ncclAllReduce: input and output overlap"),
        (2, "rank.start('ncclReduceScatter', a, a + 4 * (1 - rank.rank), 1, F, SUM)", "overlap, and not as in place"),
        (2, "rank.start('ncclAllGather', a + 4 * (1 - rank.rank), a, 1, F)", "overlap, and not as in place"),
        (1, "nccl().ncclGroupStart(); rank.start('ncclSend', a, 4, F, 0); rank.start('ncclRecv', a + 12, 4, F, 0); "
            "nccl().ncclGroupEnd()", "ncclRecv into memory of another ncclSend"),
        (1, "h = np.zeros(8, np.float32).ctypes.data; rank.start('ncclAllReduce', h, h, 8, F, SUM)",
            "ncclAllReduce: no device memory"),
        (1, "rank.start('ncclAllReduce', a, a, 17, F, SUM)", "ncclAllReduce: it runs out of an allocation"),
        (1, "nccl().ncclGroupStart(); rank.start('ncclRecv', a, 17, F, 0); nccl().ncclGroupEnd()",
            "ncclRecv: it runs out of an allocation"),
        (1, "cuda().cuMemFree_v2(a); rank.start('ncclAllReduce', a, a, 8, F, SUM)", "it has been freed"),
        (1, "h = cuda().standin_hold(rank.stream); rank.call('ncclAllReduce', a, a, 8, F, SUM); "
            "cuda().cuMemFree_v2(a); cuda().standin_release(h); finish(rank.stream)", "it has been freed"),
        (2, "b = 0\n    with on(3):\n        b = allocate(64)\n    rank.start('ncclAllReduce', b, b, 8, F, SUM)",
            "memory of another GPU"),
        (1, "s = 0\n    with on(3):\n        s = stream()\n    rank.start('ncclAllReduce', a, a, 8, F, SUM, at=s)",
            "a stream of another GPU"),
        (1, "rank.start('ncclAllReduce', a, a, 8, F, SUM, at=12345)", "a stream that is none"),
        (1, "nccl().ncclGroupStart()\n    for _ in range(2):\n"
            "        rank.start('ncclAllReduce', a, a, 8, F, SUM, at=stream())", "in two streams"),
        (1, "while True: rank.start('ncclAllReduce', a, a, 8, F, SUM)",
            "ncclAllReduce before the last call of NCCL settled"),
        (1, "while True:\n        rank.start('ncclAllReduce', a, a, 8, F, SUM); rank.factor(np.float32(1), 'float32')\n"
            "        rank.settle()",
            "ncclRedOpCreatePreMulSum before the last call"),
        (1, "while True:\n        r = Rank(0, 1, new_id()); r.settle(); r.start('ncclAllReduce', a, a, 8, F, SUM)\n"
            "        nccl().ncclCommFinalize(r.handle)",
            "ncclCommFinalize before the last call"),
        (2, "Rank(0, 2, new_id()).start('ncclAllReduce', a, a, 8, F, SUM)", "before the last call of NCCL settled"),
        (1, "nccl().ncclCommFinalize(rank.handle); rank.settle(); reduce(rank)",
            "ncclAllReduce after ncclCommFinalize"),
        (1, "rank.end(); reduce(rank)", "no communicator of NCCL, or one that was destroyed"),
        (1, "nccl().ncclCommAbort(rank.handle); rank.state()", "no communicator of NCCL, or one that was destroyed"),
        (1, "cuda().standin_hold(rank.stream); rank.call('ncclAllReduce', a, a, 8, F, SUM); "
            "nccl().ncclCommDestroy(rank.handle)", "ncclCommDestroy while something is under way"),
        (1, "u = new_id(); [Rank(0, 2, u), Rank(0, 2, u)][0].settle()", "two ranks of a communicator are rank 0"),
        (1, "u = new_id()\n    with on(1):\n        Rank(1, 2, u)\n    with on(2):\n        Rank(2, 3, u).settle()\n"
            "    time.sleep(1)", "do not agree on how many they are"),
    ],
)  # fmt: skip
def test_what_gpus_would_not_say(size: int, body: str, says: str) -> None:
    done = process(BEGIN.replace("{body}", body).replace("{size}", str(size)))
    assert done.returncode == (1 if "well" in says else -6) and re.search(says, done.stderr), done.stderr
