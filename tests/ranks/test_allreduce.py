"""All-reduce: dtype × operation × count × in place or not, compared with ==."""

import numpy as np
import pytest
from ranks.inputs import COUNTS, DTYPES, expected, small, values

import ringdp

OPS = [ringdp.Average, ringdp.Sum, ringdp.Min, ringdp.Max, ringdp.Product]


@pytest.mark.shows(["allreduce", "in place", "every dtype"], "numpy", "eager")
@pytest.mark.shows("allreduce", "cupy", "eager")
@pytest.mark.parametrize("in_place", [False, True], ids=["new", "in_place"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS, ids=[op.name for op in OPS])
def test_every_dtype_and_operation(op, dtype, in_place):
    rank, size = ringdp.rank(), ringdp.size()
    if dtype == "bool" and op == ringdp.Average:
        with pytest.raises(ringdp.UsageError, match="bool tensors have no average"):
            ringdp.allreduce(np.zeros(3, bool), op=op)
        return
    for count in COUNTS:
        make = small if op == ringdp.Product else lambda d, c, r: values(d, c, r, size)
        x = make(dtype, count, rank)
        want = expected(op, [make(dtype, count, r) for r in range(size)])
        before = x.copy()
        got = ringdp.allreduce_(x, op=op) if in_place else ringdp.allreduce(x, op=op)
        assert got.dtype == want.dtype and got.shape == want.shape
        assert (got == want).all(), (count, np.flatnonzero(got != want)[:5])
        assert got is x if in_place else (x == before).all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32"])
def test_scale_factors(dtype):
    rank, size = ringdp.rank(), ringdp.size()
    x = values(dtype, 1001, rank, size)
    total = sum(values(dtype, 1001, r, size).astype(np.float64) for r in range(size))
    got = ringdp.allreduce(x, op=ringdp.Sum, prescale_factor=2.0, postscale_factor=0.5)
    assert (got == total).all()
    got = ringdp.allreduce(x, op=ringdp.Average, prescale_factor=2.0)
    assert (got == 2 * total / size).all()


def test_shapes_and_strides():
    rank, size = ringdp.rank(), ringdp.size()
    total = size * (size - 1) // 2
    x = (np.arange(60.0).reshape(3, 4, 5) + rank).transpose(2, 0, 1)
    want = np.arange(60.0).reshape(3, 4, 5).transpose(2, 0, 1) * size + total
    got = ringdp.allreduce(x, op=ringdp.Sum)
    assert got.shape == (5, 3, 4) and (got == want).all()
    assert ringdp.allreduce_(x, op=ringdp.Sum) is x and (x == want).all()
    every_second = np.arange(20.0)
    ringdp.allreduce_(every_second[::2], op=ringdp.Sum)
    assert (every_second == np.where(np.arange(20) % 2, 1, size) * np.arange(20.0)).all()
    scalar = ringdp.allreduce(np.float32(rank), op=ringdp.Sum)
    assert scalar.shape == () and scalar == total


def test_older_average_argument():
    x = np.full(4, 3.0)
    assert (ringdp.allreduce(x, average=True) == 3).all()
    assert (ringdp.allreduce(x, False) == 3 * ringdp.size()).all()
    with pytest.raises(ringdp.UsageError, match="not average="):
        ringdp.allreduce(x, average=True, op=ringdp.Sum)


def test_float16_average_does_not_overflow():
    size = ringdp.size()
    value = (
        size << (65504 // size).bit_length() - 1
    )  # half of it would be a float16 too: no two can be added up
    x = np.full(1000, value, np.float16)
    assert (x == value).all() and (ringdp.allreduce(x) == value).all()


def test_min_and_max_propagate_nan():
    x = np.arange(9, dtype=np.float32)
    if ringdp.rank() == ringdp.size() - 1:
        x[4] = np.nan
    for op in (ringdp.Min, ringdp.Max):
        got = ringdp.allreduce(x, op=op)
        assert np.isnan(got[4]) and np.isfinite(np.delete(got, 4)).all()


def test_large_enough_for_many_segments():
    rank, size = ringdp.rank(), ringdp.size()
    x = values("int32", 5_000_017, rank, size)
    want = expected(ringdp.Sum, [values("int32", 5_000_017, r, size) for r in range(size)])
    assert (ringdp.allreduce(x, op=ringdp.Sum) == want).all()


@pytest.mark.slow
@pytest.mark.processes_only  # seven threads would need 15 GB
@pytest.mark.min_ranks(2)
@pytest.mark.host_only
def test_more_elements_than_fit_into_31_bits():
    rank, size = ringdp.rank(), ringdp.size()
    count = 2**31 + 11
    x = np.full(count, rank + 1, np.uint8)
    x[-1] = 10 * (rank + 1)
    total = size * (size + 1) // 2
    ringdp.allreduce_(x, op=ringdp.Sum)
    assert x[-1] == (10 * total) % 256
    assert all((part == total).all() for part in np.array_split(x[:-1], 64))
