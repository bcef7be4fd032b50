"""`ringdp.shard` and `ringdp.map_reduce`."""

import time
from collections import namedtuple
from fractions import Fraction

import numpy as np
import pytest

import ringdp
from ringdp import mapreduce

pytestmark = pytest.mark.host_only

Pair = namedtuple("Pair", "total count")


def still_works():
    assert (ringdp.allreduce(np.ones(10), op=ringdp.Sum) == ringdp.size()).all()


def everywhere(value):
    """The same bits on all ranks."""
    import pickle

    assert len({pickle.dumps(one) for one in ringdp.allgather_object(value)}) == 1
    return value


@pytest.mark.parametrize("count", [0, 1, 2, 7, 100])
def test_shards_follow_each_other(count):
    whole = list(range(count))
    got = ringdp.allgather_object(ringdp.shard(whole))
    assert [x for part in got for x in part] == whole
    table = ringdp.shard((np.arange(count), np.arange(2 * count).reshape(count, 2)))
    assert table[0].tolist() == ringdp.shard(whole) and (table[1][:, 0] == 2 * table[0]).all()
    weighed = ringdp.allgather_object(ringdp.shard(whole, weights=[x + 1 for x in whole]))
    assert [x for part in weighed for x in part] == whole


@pytest.mark.parametrize(("blocks", "count"), [(None, 1), (None, 2), (None, 100), (5, 2), (64, 100), (1, 5)])
def test_structures_of_numbers_and_arrays(count, blocks):
    x = np.arange(float(count))

    def function(part):
        assert len(part)
        return {
            "sum": part.sum(),
            "pair": Pair(float(part.sum()), len(part)),
            "list": [np.bincount(part.astype(int) % 3, minlength=3), (part > -1).all() and True],
            "none": np.zeros((0, 2), np.float32),
        }

    got = everywhere(ringdp.map_reduce(function, x, blocks=blocks))
    total = count * (count - 1) / 2
    assert got["sum"] == total and type(got["sum"]) is np.float64
    assert got["pair"] == Pair(total, count) and type(got["pair"]) is Pair
    assert type(got["pair"].total) is float and type(got["pair"].count) is int
    assert got["list"][0].tolist() == np.bincount(np.arange(count) % 3, minlength=3).tolist()
    assert got["none"].shape == (0, 2) and got["none"].dtype == np.float32


@pytest.mark.parametrize(("blocks", "count"), [(None, 1), (None, 50), (7, 3)])
def test_each_reduction(count, blocks):
    x = (np.arange(count) * 7 % 11 - 5).astype(np.int32)
    for reduce, function, want in (
        (ringdp.Sum, np.sum, x.sum()),
        (ringdp.Min, np.min, x.min()),
        (ringdp.Max, np.max, x.max()),
        (ringdp.Product, lambda part: int(np.prod(part % 2 + 1)), int(np.prod(x % 2 + 1))),
        (max, lambda part: int(max(part)), x.max()),
        (lambda a, b: a + b, list, x.tolist()),
        (lambda a, b: {**a, **b}, lambda part: {int(v): True for v in part}, {int(v): True for v in x}),
    ):
        assert everywhere(ringdp.map_reduce(function, x, reduce, blocks=blocks)) == want
    assert ringdp.map_reduce(lambda part: True, x) == min(count, ringdp.size())  # bools add up
    mean = ringdp.map_reduce(lambda part: part.mean(), x * 1.0, ringdp.Average, blocks=blocks)
    assert mean == pytest.approx(x.mean(), abs=1e-12)
    whole = ringdp.map_reduce(lambda part: 3, x, ringdp.Average, blocks=blocks)
    assert whole == 3.0 and type(whole) is float
    halves = [Fraction(1, int(v) + 7) for v in x]
    assert ringdp.map_reduce(sum, halves, lambda a, b: a + b, blocks=blocks) == sum(halves)


@pytest.mark.parametrize(("count", "dtype"), [(1, "float32"), (2, "int64"), (40, "bool"), (1, "float16")])
def test_large_results_are_all_reduced(count, dtype):
    n = 50_000
    x = np.arange(count) % 2 + 1
    before = mapreduce.groups
    for reduce, want in ((ringdp.Sum, x.sum()), (ringdp.Min, x.min()), (ringdp.Max, x.max())):
        function = {ringdp.Sum: np.sum, ringdp.Min: np.min, ringdp.Max: np.max}[reduce]
        got = ringdp.map_reduce(lambda part, f=function: (np.full((5, n), f(part), dtype), 1), x, reduce)
        assert got[0].dtype == dtype and got[0].shape == (5, n)
        assert (got[0] == np.array(want).astype(dtype)).all() and type(got[1]) is int
    got = ringdp.map_reduce(lambda part: np.full(n, part.mean(), np.float32), x * 4, ringdp.Average)
    assert np.allclose(got, (x * 4).mean(), rtol=1e-12)
    assert mapreduce.groups is before


def test_dtypes_that_the_core_does_not_know():
    x = np.arange(12)
    got = ringdp.map_reduce(lambda part: np.full(10_000, part.sum() * 1j), x)
    assert got.dtype == complex and (got == 66j).all()


def test_blocks_give_the_same_bits_as_one_rank():
    """A tree of blocks, climbed by one rank alone, and by all."""
    x = np.random.default_rng(5).standard_normal(10_007).astype(np.float32)
    for blocks in (3, 16, 100):
        together = everywhere(ringdp.map_reduce(np.sum, x, blocks=blocks))
        bounds = mapreduce.parts.bounds(len(x), blocks)

        def climb(node, bounds=bounds):
            if node[1] - node[0] == 1:
                return x[slice(*bounds[node[0]])].sum()
            a, b = map(climb, mapreduce.parts.halves(node))
            return a + b

        assert together == climb((0, blocks)) and together.dtype == np.float32
        weights = np.arange(len(x)) % 17
        assert ringdp.map_reduce(np.sum, x, blocks=blocks, weights=weights) == together
    first = ringdp.map_reduce(np.sum, x)
    assert all(ringdp.map_reduce(np.sum, x) == first for _ in range(3))


def test_data_that_is_sharded_already():
    mine = np.full(ringdp.rank(), 2.0)  # the first rank has none
    size = ringdp.size()
    if size > 1:
        assert ringdp.map_reduce(np.sum, mine, sharded=True) == size * (size - 1)
        mean = ringdp.map_reduce(lambda part: part.mean() * ringdp.rank(), mine, ringdp.Average, sharded=True)
        assert mean == pytest.approx(2 * sum(r * r for r in range(size)) / sum(range(size)))
    assert ringdp.map_reduce(np.sum, np.ones(0), sharded=True) == 0


def test_no_data_at_all():
    assert ringdp.map_reduce(np.sum, np.zeros((0, 3))) == 0
    with pytest.raises(ValueError, match="zero-size array"):
        ringdp.map_reduce(np.max, np.zeros(0), ringdp.Max)
    still_works()


@pytest.mark.min_ranks(2)
@pytest.mark.parametrize("blocks", [None, 9])
def test_an_exception_of_one_rank_is_one_on_all(blocks):
    x = np.arange(30)
    for bad in (0, 29):
        owner = 0 if bad == 0 else ringdp.size() - 1

        def function(part, bad=bad):
            if bad in part:
                raise ZeroDivisionError(f"no {bad}")
            return 1

        began = time.monotonic()
        error = ZeroDivisionError if ringdp.rank() == owner else ringdp.PeerError
        text = (
            f"no {bad}" if ringdp.rank() == owner else f"failed on rank {owner}: ZeroDivisionError: no {bad}"
        )
        with pytest.raises(error, match=text):
            ringdp.map_reduce(function, x, blocks=blocks)
        assert time.monotonic() - began < 20
        still_works()


@pytest.mark.min_ranks(2)
def test_what_the_ranks_have_must_fit():
    odd = ringdp.rank() == 1
    for call, text in (
        (lambda: ringdp.map_reduce(np.sum, np.ones(4 + odd)), "different lengths: rank.* 0.*: 4; rank 1: 5"),
        (
            lambda: ringdp.map_reduce(np.sum, np.ones(4), ringdp.Max if odd else ringdp.Sum),
            "options.*rank 1: reduce Max",
        ),
        (
            lambda: ringdp.map_reduce(np.sum, np.ones(4), blocks=8 if odd else None),
            "options.*rank 1: .*blocks 8",
        ),
        (
            lambda: ringdp.map_reduce(lambda p: {"a": 1, ("b" if odd else "c"): np.ones(2)}, np.ones(4)),
            r"look alike: .*\{a: int64, c: float64\[2\]\}; rank 1: \{a: int64, b: float64\[2\]\}",
        ),
        (
            lambda: ringdp.map_reduce(lambda p: np.ones((9_000, 2 + odd)), np.ones(4)),
            r"look alike.*\[9000, 3\]",
        ),
    ):
        with pytest.raises(ringdp.MismatchError, match=text) as caught:
            call()
        assert str(caught.value).startswith(f"rank {ringdp.rank()}: map_reduce: the ranks have ")
        still_works()


def test_what_cannot_be():
    for call, text in (
        (lambda: ringdp.map_reduce(np.sum, np.ones(4), ringdp.Adasum), "reduce must be one of"),
        (lambda: ringdp.map_reduce(np.sum, np.ones(4), "sum"), "reduce must be one of"),
        (lambda: ringdp.map_reduce(np.sum, np.ones(4), blocks=0), "blocks must be"),
        (lambda: ringdp.map_reduce(np.sum, np.ones(4), blocks=3, sharded=True), "blocks must be"),
        (lambda: ringdp.map_reduce(np.sum, np.ones(4), weights=[1] * 4, sharded=True), "sharded already"),
        (lambda: ringdp.map_reduce(np.sum, 5), "cannot be cut"),
        (lambda: ringdp.map_reduce(str, np.ones(20)), "builtins.str, which is no number"),
        (
            lambda: ringdp.map_reduce(lambda p: np.ones(len(p)), np.ones(3), blocks=2),
            "for one part of the data|do not look alike",
        ),
        (lambda: ringdp.shard([1, 2], weights=[1]), "2 items need as many weights"),
    ):
        with pytest.raises((ringdp.UsageError, ringdp.PeerError, ringdp.MismatchError), match=text):
            call()
    still_works()


@pytest.mark.min_ranks(2)
def test_over_a_process_set():
    some = ringdp.add_process_set([ringdp.size() - 1, 0])
    if some.included():
        assert ringdp.map_reduce(list, range(5), lambda a, b: a + b, process_set=some) == [0, 1, 2, 3, 4]
        with pytest.raises((ringdp.PeerError, OSError), match=f"failed on rank {ringdp.size() - 1}|disk"):
            ringdp.map_reduce(_fails_at_the_end, range(5), process_set=some)
    else:
        with pytest.raises(ringdp.UsageError, match="map_reduce: this rank is not in"):
            ringdp.map_reduce(list, range(5), process_set=some)
        with pytest.raises(ringdp.UsageError, match="shard: this rank is not in"):
            ringdp.shard(range(5), process_set=some)
    ringdp.barrier()
    ringdp.remove_process_set(some)


def _fails_at_the_end(part):
    if 4 in part:
        raise OSError("disk")
    return 0
