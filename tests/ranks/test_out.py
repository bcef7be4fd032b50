"""Results in arrays of the caller's: `out=`."""

import numpy as np
import pytest

import ringdp

SIZES = [0, 40, 60_003]  # elements: what goes along with its name, and what does not


def still_works():
    assert (ringdp.allreduce(np.ones(10), op=ringdp.Sum) == ringdp.size()).all()


def outs(shape, dtype):
    """Dense, in Fortran's order, and with gaps; each with a value that no result has."""
    gaps = np.full((*shape[:-1], 2 * shape[-1]), 99, dtype)[..., ::2]
    return [np.full(shape, 99, dtype), np.full(shape, 99, dtype, order="F"), gaps]


def check(function, out, want, *args, **options):
    """Blocking and not."""
    for asynchronous in (False, True):
        out[...] = 99
        if asynchronous:
            got = getattr(ringdp, f"{function}_async")(*args, out=out, **options).wait()
        else:
            got = getattr(ringdp, function)(*args, out=out, **options)
        assert got is out and (out == want).all()


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("dtype", ["float32", "bool"])
def test_allreduce(count, dtype):
    rank, size = ringdp.rank(), ringdp.size()
    x = ((np.arange(2 * count) % 5 + rank).reshape(2, count)).astype(dtype)
    kept = x.copy()
    total = np.arange(2 * count).reshape(2, count) % 5 * size + size * (size - 1) // 2
    for out in outs(x.shape, dtype):
        check("allreduce", out, total.astype(dtype), x, op=ringdp.Sum)
        assert (x == kept).all()


@pytest.mark.parametrize("count", SIZES)
def test_broadcast(count):
    rank, root = ringdp.rank(), ringdp.size() - 1
    x = np.arange(count, dtype=np.int32) + rank
    for out in outs(x.shape, "int32"):
        check("broadcast", out, np.arange(count) + root, x, root)
        assert (x == np.arange(count) + rank).all()


@pytest.mark.parametrize("count", SIZES)
def test_allgather(count):
    rank, size = ringdp.rank(), ringdp.size()
    x = np.full((rank + 1, count), rank, np.float32)
    want = np.repeat(np.arange(size), np.arange(size) + 1)[:, None]
    for out in outs((size * (size + 1) // 2, count), "float32"):
        check("allgather", out, want, x)


@pytest.mark.parametrize("count", SIZES)
def test_reducescatter(count):
    rank, size = ringdp.rank(), ringdp.size()
    x = np.arange((size + 1) * count, dtype=float).reshape(size + 1, count)
    rows = 1 + (rank < 1)
    begin = rank + min(rank, 1)
    for out in outs((rows, count), "float64"):
        check("reducescatter", out, x[begin : begin + rows] * size, x, op=ringdp.Sum)


@pytest.mark.parametrize("count", SIZES)
def test_alltoall(count):
    rank, size = ringdp.rank(), ringdp.size()
    x = np.full((size, count), rank, np.int16) * size + np.arange(size, dtype=np.int16)[:, None]
    want = (np.arange(size) * size + rank)[:, None]
    for out in outs((size, count), "int16"):
        check("alltoall", out, want, x)
    out = np.zeros((size, count), np.int16)
    got, rows = ringdp.alltoall(x, splits=[1] * size, out=out)
    assert got is out and (out == want).all() and rows.tolist() == [1] * size


@pytest.mark.host_only
@pytest.mark.parametrize("count", [7, 60_003])
def test_where_the_source_lies(count):
    rank, size = ringdp.rank(), ringdp.size()
    line = np.arange(count + 1.0) + rank
    assert ringdp.allreduce(line, op=ringdp.Sum, out=line) is line
    assert (line == np.arange(count + 1) * size + size * (size - 1) // 2).all()
    for to, source in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
        line = np.arange(count + 1.0)
        want = line[source] * size
        assert (ringdp.allreduce(line[source], op=ringdp.Sum, out=line[to]) == want).all()
        line = np.arange(count + 1.0) + rank
        want = np.arange(count + 1.0)[source]
        assert (ringdp.broadcast(line[source], 0, out=line[to]) == want).all()
    table = np.arange(2.0 * size * size).reshape(2 * size, size)
    want = table[2 * rank : 2 * rank + 2] * size
    assert (ringdp.reducescatter(table, op=ringdp.Sum, out=table[:2]) == want).all()
    rows = np.full((size, 5), -1.0)
    rows[rank] = rank
    assert (ringdp.allgather(rows[rank : rank + 1], out=rows) == np.arange(size)[:, None]).all()


@pytest.mark.host_only
def test_what_does_not_fit():
    x = np.ones((4 * ringdp.size(), 3), np.float32)
    frozen = np.ones(x.shape, np.float32)
    frozen.flags.writeable = False
    calls = {
        "allreduce": lambda out: ringdp.allreduce(x, out=out),
        "allreduce_async": lambda out: ringdp.allreduce_async(x, out=out),
        "broadcast": lambda out: ringdp.broadcast(x, 0, out=out),
        "allgather": lambda out: ringdp.allgather(x, out=out),
        "alltoall": lambda out: ringdp.alltoall(x, out=out),
        "reducescatter": lambda out: ringdp.reducescatter(x, out=out),
    }
    for name, call in calls.items():
        shape = (
            (ringdp.size() * len(x), 3)
            if name == "allgather"
            else (4, 3)
            if name == "reducescatter"
            else x.shape
        )
        with pytest.raises(ringdp.UsageError, match=r"^out is float64\[.*the result is float32\["):
            call(np.ones(shape))
        for wrong in ((shape[0], 4), shape[:1], (*shape, 1)):
            with pytest.raises(ringdp.UsageError, match=r"^out is float32\[.*, 3\]$"):
                call(np.ones(wrong, np.float32))
        with pytest.raises(TypeError, match="read-only"):
            call(frozen)
        with pytest.raises(TypeError, match=r"numpy\.ndarray, not builtins\.list"):
            call([1.0])
    with pytest.raises(ringdp.UsageError, match=r"\[5, 3\]; the result is float32\[4, 3\]"):
        calls["reducescatter"](np.ones((5, 3), np.float32))
    still_works()  # nothing of that was begun


@pytest.mark.host_only
def test_other_numbers_of_rows_than_out_has():
    rank, size = ringdp.rank(), ringdp.size()
    for columns in (2, 30_000):
        x = np.full((rank + 1, columns), 1.0)
        rows = size * (size + 1) // 2
        out = np.full((rows + (rank == 0), columns), 7.0)
        if rank == 0:
            with pytest.raises(ringdp.UsageError, match=f"out has {rows + 1} rows, and {rows} have come"):
                ringdp.allgather(x, out=out)
            assert (out == 7).all()
        else:
            assert (ringdp.allgather(x, out=out) == 1).all()
        still_works()
