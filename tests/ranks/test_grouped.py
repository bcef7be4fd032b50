"""Several arrays in one call: the same results as one by one, and all or nothing."""

import time

import numpy as np
import pytest
from ranks.inputs import expected, values

import ringdp

DTYPES = "float32", "int64", "float16", "bool"


def group(rank):
    """One array of each dtype, and one without elements."""
    size = ringdp.size()
    return [values(dtype, 6 * size, rank, size).reshape(2 * size, 3) for dtype in DTYPES] + [np.zeros((0, 2))]


@pytest.mark.shows("grouped_allreduce", "numpy", "eager")
@pytest.mark.parametrize("op", [ringdp.Sum, ringdp.Max, ringdp.Min])
def test_allreduce(op):
    wanted = [
        expected(op, list(of_ranks)) for of_ranks in zip(*map(group, range(ringdp.size())), strict=True)
    ]
    arrays = group(ringdp.rank())
    kept = [a.copy() for a in arrays]
    for results in (
        ringdp.grouped_allreduce(arrays, op=op),
        ringdp.grouped_allreduce_async(arrays, op=op).wait(),
    ):
        for got, want, array, before in zip(results, wanted, arrays, kept, strict=True):
            assert got.dtype == want.dtype and got.shape == want.shape and (got == want).all()
            assert (array == before).all() and got is not array
    results = ringdp.grouped_allreduce_(arrays, op=op, name="in place")
    for got, want, array in zip(results, wanted, arrays, strict=True):
        assert got is array and (array == want).all()


def test_factors_and_averages():
    arrays = [np.full(3, float(ringdp.rank() + i)) for i in range(2)]
    mean = (ringdp.size() - 1) / 2
    for i, got in enumerate(ringdp.grouped_allreduce(arrays)):
        assert (got == mean + i).all()
    for i, got in enumerate(ringdp.grouped_allreduce(arrays, prescale_factor=4, postscale_factor=0.5)):
        assert (got == 2 * (mean + i)).all()


@pytest.mark.shows("grouped_allgather", "numpy", "eager")
def test_allgather():
    rank = ringdp.rank()
    arrays = [np.full((rank + 1, 2), rank, np.int32), np.full(rank, 0.5 + rank)]
    for rows, flat in (
        ringdp.grouped_allgather(arrays, name="rows"),
        ringdp.grouped_allgather_async(arrays, name="rows").wait(),
    ):
        assert rows.dtype == np.int32 and rows[:, 1].tolist() == [
            r for r in range(ringdp.size()) for _ in range(r + 1)
        ]
        assert flat.tolist() == [0.5 + r for r in range(ringdp.size()) for _ in range(r)]


def test_reducescatter():
    size, rank = ringdp.size(), ringdp.rank()
    arrays = [np.arange(3 * size + 1.0) * (rank + 1), np.full((size, 2), rank, np.int64)]
    total = size * (size + 1) // 2
    begin, end = 3 * rank + min(rank, 1), 3 * (rank + 1) + 1
    for a, b in (
        ringdp.grouped_reducescatter(arrays, op=ringdp.Sum),
        ringdp.grouped_reducescatter_async(arrays, op=ringdp.Sum).wait(),
    ):
        assert (a == np.arange(begin, end) * total).all()
        assert b.shape == (1, 2) and (b == total - size).all()


@pytest.mark.min_ranks(2)
def test_a_group_in_which_one_array_differs_fails_as_one():
    for name in (None, "differs"):
        arrays = [np.ones(3), np.ones(4 + (ringdp.rank() == 1)), np.ones(5)]
        with pytest.raises(
            ringdp.MismatchError, match=r"rank 1: tensor 1 of its group: allreduce of float64\[5\]"
        ):
            ringdp.grouped_allreduce_(arrays, op=ringdp.Sum, name=name)
        assert all((a == 1).all() for a in arrays)
        results = ringdp.grouped_allreduce([np.ones(3)] * 3, op=ringdp.Sum, name=name)
        assert all((r == ringdp.size()).all() for r in results)


@pytest.mark.min_ranks(2)
def test_a_group_with_fewer_arrays_on_one_rank_fails_soon():
    """And its name can be used again."""
    began = time.monotonic()
    for _ in range(3):
        with pytest.raises(ringdp.MismatchError, match="nothing more"):
            ringdp.grouped_allreduce([np.ones(3)] * (2 + (ringdp.rank() == 0)), op=ringdp.Sum, name="fewer")
        results = ringdp.grouped_allreduce([np.ones(3)] * 4, op=ringdp.Sum, name="fewer")
        assert len(results) == 4 and all((r == ringdp.size()).all() for r in results)
    assert time.monotonic() - began < 20  # seconds: long before the deadline


@pytest.mark.min_ranks(2)
@pytest.mark.parametrize("wait", [False, True])
@pytest.mark.parametrize("kind", ["allreduce", "allgather", "reducescatter"])
def test_after_unnamed_groups_that_differ_in_number_unnamed_calls_still_meet(kind, wait):
    """The last rank has one more. Calls from before and after are in flight, too, and the names of all begin anew."""
    size, last = ringdp.size(), ringdp.rank() == ringdp.size() - 1
    begin = getattr(ringdp, f"grouped_{kind}_async")
    for times in range(70):
        arrays = [np.full((size, 2), i + 1.0) for i in range(2 + last)]
        before = ringdp.allreduce_async(np.full(3, float(times)), op=ringdp.Sum)
        differs = begin(arrays)
        if wait:
            with pytest.raises(ringdp.MismatchError, match=f"tensor 2 of its group: {kind}"):
                differs.wait()
        after = ringdp.grouped_allreduce_async([np.full(i + 1, times + 1.0) for i in range(3)], op=ringdp.Sum)
        assert (before.wait() == size * times).all()
        for i, got in enumerate(after.wait()):
            assert got.shape == (i + 1,) and (got == size * (times + 1)).all()
        with pytest.raises(ringdp.MismatchError, match="nothing more"):
            differs.wait()
        assert all((array == i + 1).all() for i, array in enumerate(arrays))
    assert ringdp.allgather(np.array([ringdp.rank()])).tolist() == list(range(size))


@pytest.mark.min_ranks(3)
@pytest.mark.parametrize("name", [None, "one has joined"])
def test_groups_differ_while_a_rank_has_joined(name):
    """It hears of it, too: afterwards the members meet on all ranks."""
    rank, size = ringdp.rank(), ringdp.size()
    if rank < size - 1:
        with pytest.raises(ringdp.MismatchError):
            ringdp.grouped_allreduce([np.ones(3)] * (2 + (rank == 0)), op=ringdp.Sum, name=name)
    ringdp.join()
    results = ringdp.grouped_allreduce([np.ones(3)] * 3, op=ringdp.Sum, name=name)
    assert len(results) == 3 and all((r == size).all() for r in results)
