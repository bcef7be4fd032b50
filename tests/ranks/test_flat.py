"""The exchange of a step's gradients at once: `ringdp.flat.FlatExchange`."""

import time

import numpy as np
import pytest
from ranks.inputs import DTYPES, expected, values

import ringdp
from ringdp import flat, flat_layout, world

ml_dtypes = pytest.importorskip("ml_dtypes")

pytestmark = pytest.mark.host_only

ALL_DTYPES = [*DTYPES, "bfloat16", "float8_e4m3fn", "float8_e5m2"]
SHAPES = [(3, 5), (), (0, 4), (1000,), (7, 11, 2), (1,)]


def still_works():
    assert (ringdp.allreduce(np.ones(10), op=ringdp.Sum) == ringdp.size()).all()


def gradients(rank, dtype="float32", shapes=SHAPES):
    """Exact in every dtype that has whole numbers to some hundreds."""
    size = ringdp.size()
    return [values(dtype, int(np.prod(s)), rank + i, size).reshape(s) for i, s in enumerate(shapes)]


def wanted(op, dtype="float32", shapes=SHAPES):
    of_ranks = [gradients(rank, dtype, shapes) for rank in range(ringdp.size())]
    return [expected(op, list(arrays)) for arrays in zip(*of_ranks, strict=True)]


def same(results, wanted):
    assert len(results) == len(wanted)
    for got, want in zip(results, wanted, strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape and (got == want).all()


@pytest.mark.parametrize("bucket_bytes", [1, 25 << 20])
@pytest.mark.parametrize("op", [ringdp.Sum, ringdp.Average, ringdp.Min])
def test_results_are_the_callers_and_inputs_stay(op, bucket_bytes):
    exchange = flat.FlatExchange(op=op, bucket_bytes=bucket_bytes)
    arrays = gradients(ringdp.rank())
    for array in arrays:
        array.flags.writeable = False
    first = exchange(arrays)
    kept = [array.copy() for array in first]
    second = exchange([array[...] + 0 for array in arrays])
    same(first, wanted(op))
    same(second, kept)
    for array in first:
        assert array.flags.owndata and array.flags.writeable
        array[...] = -1
    same(exchange(arrays), kept)


def test_all_dtypes_in_one_list():
    arrays, want = [], []
    size = ringdp.size()
    for dtype in ALL_DTYPES:
        kind = getattr(ml_dtypes, dtype, dtype)
        of_ranks = [((np.arange(5) + rank) % 2).astype(kind) for rank in range(size)]
        arrays.append(of_ranks[ringdp.rank()])
        want.append(expected(ringdp.Max, of_ranks) if dtype == "bool" else np.maximum.reduce(of_ranks))
    same(flat.FlatExchange(op=ringdp.Max)(arrays), want)


def test_sums_of_bfloat16_and_of_views_with_strides():
    rank, size = ringdp.rank(), ringdp.size()
    table = (np.arange(24.0).reshape(4, 6) * (rank + 1)).astype(np.float32)
    arrays = [table.T, table[::2, 1::2], table.astype(ml_dtypes.bfloat16)[:, 0], table[:, :0]]
    total = size * (size + 1) // 2
    whole = np.arange(24.0).reshape(4, 6) * total
    results = flat.FlatExchange(op=ringdp.Sum)(arrays)
    same(results[:2], [whole.T.astype(np.float32), whole[::2, 1::2].astype(np.float32)])
    assert results[2].dtype == ml_dtypes.bfloat16 and results[2].tolist() == whole[:, 0].tolist()
    assert results[3].shape == (4, 0)


@pytest.mark.parametrize("compression", ["fp16", "bf16"])
def test_compressed(compression):
    rank, size = ringdp.rank(), ringdp.size()
    wire = np.float16 if compression == "fp16" else ml_dtypes.bfloat16
    exchange = flat.FlatExchange(op=ringdp.Sum, compression=compression)
    column = np.arange(600, dtype=np.float32).reshape(20, 30)[:, 3]  # beyond what bfloat16 has exactly
    arrays = [np.full(9, 1 + 2.0**-14), column, np.arange(4) * (rank + 1), np.array(rank, np.float32)]
    once = np.full(9, 1.0), column.astype(wire)
    results = exchange(arrays)
    assert [r.dtype for r in results] == [a.dtype for a in arrays]
    assert (results[0] == size).all()  # the last bit is lost on the way
    if size == 1:
        assert (results[1] == once[1].astype(np.float32)).all() and (results[1] != column).any() == (
            compression == "bf16"
        )
    assert (results[2] == np.arange(4) * (size * (size + 1) // 2)).all()  # integers travel as they are
    assert results[3] == size * (size - 1) / 2
    out = [np.zeros(a.shape, a.dtype, order="F") for a in arrays]
    assert exchange(arrays, out=out)[1] is out[1]
    same(out, results)


def test_factors():
    rank, size = ringdp.rank(), ringdp.size()
    array = np.full(4, float(rank))
    (got,) = flat.FlatExchange(op=ringdp.Sum, prescale_factor=4.0, postscale_factor=0.5)([array])
    assert (got == size * (size - 1)).all()
    (got,) = flat.FlatExchange(gradient_predivide_factor=2.0)([array * 4])
    assert (got == 2 * (size - 1)).all()
    for wrong in (
        {"op": ringdp.Sum, "gradient_predivide_factor": 2.0},
        {"gradient_predivide_factor": 0.0},
        {"compression": "int8"},
        {"bucket_bytes": 0},
    ):
        with pytest.raises(ringdp.UsageError):
            flat.FlatExchange(**wrong)


def test_lists_may_change_on_all_ranks():
    exchange = flat.FlatExchange("changes", op=ringdp.Sum, bucket_bytes=64)
    for shapes in (SHAPES, SHAPES[:2], [], [(5,)], SHAPES):
        same(exchange(gradients(ringdp.rank(), shapes=shapes)), wanted(ringdp.Sum, shapes=shapes))


def test_a_steady_step_takes_its_buckets_and_one_vote():
    exchange = flat.FlatExchange(op=ringdp.Sum, bucket_bytes=1024)
    arrays = gradients(ringdp.rank())
    exchange(arrays)
    buckets = len(exchange._layout.buckets)
    memory = [bucket.address for bucket in exchange._layout.buckets]
    before = world.current().engine.counters()["named"]
    exchange(arrays)
    assert world.current().engine.counters()["named"] - before == buckets + 1
    assert [bucket.address for bucket in exchange._layout.buckets] == memory


def test_out_must_fit():
    exchange = flat.FlatExchange()
    array, frozen = np.ones((2, 3)), np.ones((2, 3))
    frozen.flags.writeable = False
    for out in ([], [np.ones((3, 2))], [np.ones((2, 3), np.float32)], [frozen], [[[1.0] * 3] * 2]):
        with pytest.raises(TypeError, match="out "):
            exchange([array], out=out)
    with pytest.raises(TypeError, match="gradient 'w' has dtype complex128, which ringdp cannot exchange"):
        exchange([np.ones(2, complex)], names=["w"])
    with pytest.raises(ringdp.UsageError, match="2 names were given for 1 arrays"):
        exchange([array], names=["a", "b"])
    same(exchange([array], out=[array]), [np.ones((2, 3))])  # nothing of that was exchanged


# The lists of usual and of odd ranks, and what the error says.
DIFFERENT = {
    "shape": ([(3,), (4, 2)], [(3,), (4, 3)], r"gradient 1: .*'b' float32\[4, 2\].*'b' float32\[4, 3\]"),
    "the same size": ([(4, 2)], [(2, 4)], r"gradient 0: .*'a' float32\[4, 2\].*'a' float32\[2, 4\]"),
    "number": ([(3,), (4,)], [(3,)], r"gradient 1: .*'b' float32\[4\].*none"),
    "many more": ([(3,)], [(3,)] * 9, r"gradient 1: .*none.*'b' float32\[3\]"),
    "nothing at all": ([], [(3,), (4,)], r"gradient 0: .*none.*'a' float32\[3\]"),
}


@pytest.mark.min_ranks(2)
@pytest.mark.parametrize("what", DIFFERENT)
def test_lists_that_differ(what):
    usual, odd, text = DIFFERENT[what]
    exchange = flat.FlatExchange(op=ringdp.Sum, bucket_bytes=1)
    for differs in (0, ringdp.size() - 1):
        shapes = odd if ringdp.rank() == differs else usual
        out = [np.full(shape, -1, np.float32) for shape in shapes]
        began = time.monotonic()
        with pytest.raises(ringdp.MismatchError, match=text if differs else "gradient") as caught:
            exchange(gradients(ringdp.rank(), shapes=shapes), names=list("abcdefghi")[: len(shapes)], out=out)
        assert time.monotonic() - began < 20  # seconds: long before the deadline
        assert f"rank {ringdp.rank()}: exchange." in str(caught.value)
        assert f"rank {differs}" in str(caught.value) and all((o == -1).all() for o in out)
        still_works()
        same(exchange(gradients(ringdp.rank())), wanted(ringdp.Sum))


@pytest.mark.min_ranks(2)
def test_dtypes_names_and_options_that_differ():
    odd = ringdp.rank() == 1
    exchange = flat.FlatExchange("named")
    with pytest.raises(
        ringdp.MismatchError, match=r"gradient 0: rank.* 0.*'0' float32\[3\]; rank 1: '0' float64\[3\]"
    ):
        exchange([np.ones(3, np.float64 if odd else np.float32)])
    with pytest.raises(
        ringdp.MismatchError, match=r"gradient 0: .*'a' float32\[3\]; rank 1: 'b' float32\[3\]"
    ):
        exchange([np.ones(3, np.float32)] * 2, names=["b", "a"] if odd else ["a", "b"])
    for options in (
        {"op": ringdp.Max},
        {"compression": "fp16"},
        {"prescale_factor": 2.0},
        {"bucket_bytes": 8},
    ):
        other = flat.FlatExchange("options", **(options if odd else {}))
        with pytest.raises(ringdp.MismatchError, match="the options: .*op "):
            other([np.ones(3, np.float32)] * 2)
    still_works()


@pytest.mark.min_ranks(2)
def test_a_rank_whose_list_changed_since_the_last_step():
    exchange = flat.FlatExchange(op=ringdp.Sum)
    same(exchange(gradients(ringdp.rank())), wanted(ringdp.Sum))
    with pytest.raises(ringdp.MismatchError, match="gradient 5"):
        exchange(gradients(ringdp.rank())[: 5 + (ringdp.rank() > 0)])
    same(exchange(gradients(ringdp.rank())), wanted(ringdp.Sum))


@pytest.mark.parametrize("op", [ringdp.Sum, ringdp.Average, ringdp.Max])
@pytest.mark.parametrize("bad", [-np.inf, np.nan])
def test_an_overflow_of_one_rank_is_seen_by_all(op, bad):
    exchange = flat.FlatExchange(op=op, looks=True, bucket_bytes=64)
    assert exchange.is_finite is None
    for bad_rank in (None, 0, ringdp.size() - 1):
        arrays = [np.ones(30), np.arange(5), np.ones((4, 4), np.float32)]
        if ringdp.rank() == bad_rank:
            arrays[2][3, 3] = bad
        exchange(arrays)
        assert exchange.is_finite is (bad_rank is None)


def test_an_overflow_on_the_wire_is_seen():
    exchange = flat.FlatExchange(op=ringdp.Sum, compression="fp16", looks=True)
    (got,) = exchange([np.array([1e5, 1.0])])
    assert got[0] == np.inf and exchange.is_finite is False


@pytest.mark.min_ranks(2)
def test_over_a_process_set():
    some = ringdp.add_process_set([0, 1])
    if some.included():
        (got,) = flat.FlatExchange(op=ringdp.Sum, process_set=some)([np.full(3, ringdp.rank() + 1)])
        assert (got == 3).all()
        with pytest.raises(ringdp.MismatchError, match="gradient 0: rank 0: .*; rank 1: "):
            flat.FlatExchange(process_set=some)([np.ones(3 + ringdp.rank())])
    ringdp.barrier()
    ringdp.remove_process_set(some)


def test_large_gradients_in_several_buckets():
    exchange = flat.FlatExchange(op=ringdp.Sum, bucket_bytes=5 << 20)
    rank, size = ringdp.rank(), ringdp.size()
    arrays = [np.arange(n, dtype=np.float32) % 13 + rank for n in (1_300_000, 700_001, 40_000, 900_000, 3)]
    results = exchange(arrays)
    same(
        results, [(np.arange(a.size, dtype=np.float32) % 13) * size + size * (size - 1) // 2 for a in arrays]
    )
    assert len(exchange._layout.buckets) == 3


def test_adasum_takes_each_gradient_for_itself():
    if ringdp.size() & (ringdp.size() - 1):
        pytest.skip("Adasum needs a power of two of ranks")
    exchange = flat.FlatExchange(op=ringdp.Adasum)
    (a, b) = exchange([np.full(4, 2.0, np.float32), np.full(3, float(ringdp.rank()), np.float32)])
    assert (a == 2).all()  # equal gradients count once
    assert (b == ringdp.allreduce(np.full(3, float(ringdp.rank()), np.float32), op=ringdp.Adasum)).all()


def test_a_digest_says_all():
    entry = flat_layout.Entry("w", flat.Dtype.float32, (3, 4))
    a = flat_layout.lay_out([entry], "options", 100, None)
    b = flat_layout.lay_out([entry], "options", 100, None)
    c = flat_layout.lay_out([flat_layout.Entry("w", flat.Dtype.float32, (4, 3))], "options", 100, None)
    assert a.digest == b.digest != c.digest and 0 <= a.digest <= flat.ALL_ONES


@pytest.mark.min_ranks(2)
def test_a_rank_that_has_joined_adds_nothing():
    exchange, rank, size = flat.FlatExchange(op=ringdp.Sum, looks=True), ringdp.rank(), ringdp.size()
    same(exchange(gradients(rank)), wanted(ringdp.Sum))
    if rank < size - 1:
        (a, b) = exchange([np.full(3, 2.0), np.arange(40_000)])
        assert (a == 2 * (size - 1)).all() and (b == np.arange(40_000) * (size - 1)).all()
        assert exchange.is_finite
        with pytest.raises(ringdp.PeerError, match=f"rank {size - 1} joined, and their data are missing"):
            ringdp.map_reduce(np.sum, np.ones(5))
    ringdp.join()
    same(exchange(gradients(rank)), wanted(ringdp.Sum))


@pytest.mark.processes_only
def test_a_new_job_has_new_memory():
    exchange = flat.FlatExchange(op=ringdp.Sum)
    same(exchange(gradients(ringdp.rank())), wanted(ringdp.Sum))
    old = exchange._layout
    ringdp.shutdown()
    ringdp.init()
    same(exchange(gradients(ringdp.rank())), wanted(ringdp.Sum))
    assert exchange._layout is not old
