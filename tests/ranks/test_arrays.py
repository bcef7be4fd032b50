"""Every operation on arrays of every dtype and layout: bfloat16 and the 8-bit floats of ml_dtypes as well."""

import numpy as np
import pytest
from ranks.inputs import DTYPES

import ringdp

ml_dtypes = pytest.importorskip("ml_dtypes")

ALL_DTYPES = [*DTYPES, "bfloat16", "float8_e4m3fn", "float8_e5m2"]
LARGE = 40_001  # rows a rank: what does not go along with its name
CASES = [(dtype, 3) for dtype in ALL_DTYPES] + [
    (dtype, LARGE) for dtype in ("int16", "bfloat16", "float8_e5m2")
]


def kind(dtype):
    return np.dtype(getattr(ml_dtypes, dtype, dtype))


def rows(dtype, count, rank, columns=2):
    """0, 1 and 2, which every dtype has, and sums of which over eight ranks are exact in all of them."""
    whole = (np.arange(count * columns).reshape(count, columns) + rank) % 3
    return (whole % 2 == 0) if dtype == "bool" else whole.astype(kind(dtype))


def layouts(array):
    """The same elements: dense, in Fortran's order, with gaps, backwards, and read-only."""
    gaps = np.zeros((2 * array.shape[0], *array.shape[1:]), array.dtype)
    gaps[::2] = array
    frozen = array.copy()
    frozen.flags.writeable = False
    return [array.copy(), np.asfortranarray(array), gaps[::2], array[::-1].copy()[::-1], frozen]


def same(got, want):
    assert got.dtype == want.dtype and got.shape == want.shape and (got == want).all()


@pytest.mark.parametrize(("dtype", "count"), CASES)
def test_every_layout(dtype, count):
    rank, size = ringdp.rank(), ringdp.size()
    of_ranks = [rows(dtype, count * size, r) for r in range(size)]
    total = np.logical_or.reduce(of_ranks) if dtype == "bool" else sum(x.astype(float) for x in of_ranks)
    total = total.astype(kind(dtype))
    mine = slice(rank * count, (rank + 1) * count)
    for number, x in enumerate(layouts(of_ranks[rank])):
        before = x.copy()
        same(ringdp.allreduce(x, op=ringdp.Sum), total)
        if number == 1:  # which must be copied
            same(ringdp.broadcast(x, size - 1), of_ranks[-1])
            same(ringdp.allgather(x), np.concatenate(of_ranks))
            same(ringdp.reducescatter(x, op=ringdp.Sum), total[mine])
            same(ringdp.alltoall(x), np.concatenate([other[mine] for other in of_ranks]))
            same(ringdp.grouped_allreduce([x, x[:1]], op=ringdp.Sum)[1], total[:1])
            same(ringdp.allreduce(x, op=ringdp.Sum, out=np.empty_like(before)), total)
        same(x, before)
        if x.flags.writeable:
            assert ringdp.allreduce_(x, op=ringdp.Sum) is x
            same(x, total)
        if number == 2:
            x[...] = before
            assert ringdp.broadcast_(x, size - 1) is x
            same(x, of_ranks[-1])


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_scalars_and_nothing(dtype):
    rank, size = ringdp.rank(), ringdp.size()
    one = np.array(rank == size - 1, kind(dtype))
    for x in (one, one[()]):
        got = ringdp.allreduce(x, op=ringdp.Max)
        assert got.shape == () and got.dtype == kind(dtype) and got == np.array(1, kind(dtype))
    assert ringdp.broadcast(one, size - 1) == np.array(1, kind(dtype))
    copy = one.copy()
    assert ringdp.allreduce_(copy, op=ringdp.Max) is copy and copy == np.array(1, kind(dtype))
    none = np.zeros((0, 3), kind(dtype))
    for got in (
        ringdp.allreduce(none, op=ringdp.Sum),
        ringdp.broadcast(none, 0),
        ringdp.allgather(none),
        ringdp.alltoall(none),
    ):
        assert got.shape == (0, 3) and got.dtype == kind(dtype)
    assert ringdp.reducescatter(none, op=ringdp.Sum).shape == (0, 3)


@pytest.mark.host_only
@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_read_only_arrays_are_not_written(dtype):
    frozen = np.ones(3, kind(dtype))
    frozen.flags.writeable = False
    for call in (
        ringdp.allreduce_,
        lambda x: ringdp.broadcast_(x, 0),
        lambda x: ringdp.grouped_allreduce_([x]),
    ):
        with pytest.raises(TypeError, match="read-only"):
            call(frozen)
    assert (ringdp.allreduce(frozen, op=ringdp.Max) == 1).all()


@pytest.mark.host_only
def test_what_numpy_reads_may_be_given():
    size = ringdp.size()
    assert ringdp.allreduce([1, 2], op=ringdp.Sum).tolist() == [size, 2 * size]
    assert ringdp.allreduce(3.0, op=ringdp.Sum) == 3 * size
    assert ringdp.allgather(range(2)).tolist() == [0, 1] * size
    assert ringdp.allreduce(ringdp.empty(0)).size == 0
