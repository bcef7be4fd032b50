"""All-gather, broadcast, all-to-all, reduce-scatter, barrier, objects."""

import time

import numpy as np
import pytest
from ranks.inputs import DTYPES, expected, values

import ringdp
from ringdp.numpy.ops import operations


@pytest.mark.shows("allgather", "numpy", "eager")
@pytest.mark.shows("allgather", "cupy", "eager")
@pytest.mark.parametrize("dtype", DTYPES)
def test_allgather_with_different_first_dimensions(dtype):
    rank, size = ringdp.rank(), ringdp.size()

    def rows_of(r):
        return (3 * r) % 4  # some ranks have none

    def part(r):
        return values(dtype, rows_of(r) * 5, r, size).reshape(rows_of(r), 5)

    got = ringdp.allgather(part(rank))
    want = np.concatenate([part(r) for r in range(size)])
    assert got.dtype == want.dtype and got.shape == want.shape and (got == want).all()


@pytest.mark.parametrize("count", [0, 3, 300_001])
def test_allgather_into_memory_of_the_caller(count):
    """The core takes it where it has just the right size, and brings its own otherwise."""
    rank, size = ringdp.rank(), ringdp.size()
    everything = np.concatenate([np.arange(count) * (r + 1) for r in range(size)])
    for room, is_taken in [(count * size, True), (count * size + 1, False)]:
        output = np.full(room, -1)
        request = operations.requests.allgather(np.arange(count) * (rank + 1))
        request.output, request.room = output, output.nbytes
        own = request.finish
        request.finish = lambda core: core
        core = operations.submit(request, None, ringdp.global_process_set).wait()
        assert core.rows() == [count] * size
        if is_taken:
            assert (output == everything).all()
            with pytest.raises(ringdp.UsageError, match="no output of its own"):
                core.take_output()
        else:
            assert (output == -1).all() and (own(core) == everything).all()


def test_allgather_large():
    rank, size = ringdp.rank(), ringdp.size()
    got = ringdp.allgather(np.arange(300_001 + rank) * (rank + 1))
    assert (got == np.concatenate([np.arange(300_001 + r) * (r + 1) for r in range(size)])).all()


@pytest.mark.shows(["broadcast", "no elements"], "numpy", "eager")
@pytest.mark.shows(["broadcast", "no elements"], "cupy", "eager")
@pytest.mark.parametrize("count", [0, 1, 7, 400_003])
def test_broadcast_from_every_root(count):
    rank, size = ringdp.rank(), ringdp.size()
    for root in range(size):
        x = values("float32", count, rank, size) + rank
        want = values("float32", count, root, size) + root
        got = ringdp.broadcast(x, root)
        assert (got == want).all() and (x == values("float32", count, rank, size) + rank).all()
        assert ringdp.broadcast_(x, root) is x and (x == want).all()


def test_alltoall_with_equal_parts():
    rank, size = ringdp.rank(), ringdp.size()
    got = ringdp.alltoall(np.arange(2 * size) + 100 * rank)
    assert (got == np.concatenate([[2 * rank + 100 * r, 2 * rank + 1 + 100 * r] for r in range(size)])).all()


@pytest.mark.shows("alltoall", "numpy", "eager")
@pytest.mark.shows("alltoall", "cupy", "eager")
def test_alltoall_with_splits():
    rank, size = ringdp.rank(), ringdp.size()

    def splits(r):
        return [(r + to) % 3 for to in range(size)]

    def part(r, to):
        return np.full((splits(r)[to], 2), 10 * r + to, np.int16)

    x = np.concatenate([part(rank, to) for to in range(size)])
    got, received = ringdp.alltoall(x, splits=splits(rank))
    assert list(received) == [splits(r)[rank] for r in range(size)]
    assert (got == np.concatenate([part(r, rank) for r in range(size)])).all()


@pytest.mark.slow
@pytest.mark.processes_only
@pytest.mark.min_ranks(2)
def test_alltoall_of_very_uneven_large_parts():
    """Rank 0 gets far more than the others: both ends of every channel must cut their messages alike."""
    rank, size = ringdp.rank(), ringdp.size()
    rows = [(700 << 20) if to == 0 and rank == 1 else 1000 + to for to in range(size)]
    x = np.repeat(np.arange(size, dtype=np.uint8) + 16 * rank, rows)
    got, received = ringdp.alltoall(x, splits=rows)
    assert list(received) == [(700 << 20) if rank == 0 and r == 1 else 1000 + rank for r in range(size)]
    ends = np.cumsum(received)
    for r in range(size):
        assert (got[ends[r] - received[r] : ends[r]] == rank + 16 * r).all()


@pytest.mark.shows("reducescatter", "numpy", "eager")
@pytest.mark.shows("reducescatter", "cupy", "eager")
@pytest.mark.parametrize("rows", [0, 1, 5, 12, 100_003])
@pytest.mark.parametrize("op", [ringdp.Sum, ringdp.Average, ringdp.Max], ids=["Sum", "Average", "Max"])
def test_reducescatter_with_uneven_rows(op, rows):
    rank, size = ringdp.rank(), ringdp.size()

    def tensor(r):
        return values("float32", rows * 3, r, size).reshape(rows, 3)

    base, extra = divmod(rows, size)
    begin = rank * base + min(rank, extra)
    want = expected(op, [tensor(r) for r in range(size)])[begin : begin + base + (rank < extra)]
    x = tensor(rank)
    got = ringdp.reducescatter(x, op=op)
    assert got.shape == want.shape and (got == want).all() and (x == tensor(rank)).all()


@pytest.mark.shows("barrier", "numpy", "eager")
def test_barrier_holds_everybody_back():
    for late in range(ringdp.size()):
        ringdp.barrier()
        if ringdp.rank() == late:
            time.sleep(0.05)
        came = time.monotonic()  # one clock: the ranks run on one machine
        ringdp.barrier()
        went = time.monotonic()
        assert went >= ringdp.allreduce(np.array([came]), op=ringdp.Max)[0]


@pytest.mark.shows(["broadcast_object", "allgather_object"], "numpy", "eager")
def test_objects():
    rank, size = ringdp.rank(), ringdp.size()
    thing = {"rank": rank, "list": list(range(rank * 1000))}
    for root in range(size):
        assert ringdp.broadcast_object(thing, root) == {"rank": root, "list": list(range(root * 1000))}
    assert ringdp.allgather_object(thing) == [{"rank": r, "list": list(range(r * 1000))} for r in range(size)]
