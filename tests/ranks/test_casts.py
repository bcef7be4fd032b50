"""A tensor that is cast to 16 bits as it travels has the bits of: cast all of it, all-reduce, cast back."""

import numpy as np
import pytest

import ringdp
from ringdp import _core, world
from ringdp.constants import Dtype, OpKind, ReduceOp

NARROW, WIDE = ("float16", "bfloat16"), ("float32", "float64")
COUNTS = {  # by the bytes of a segment
    8: [0, 1, 2, 5, 63, 64, 65, 300],
    4096: [2047, 2048, 2049, 4097, 20_011],
}
HOW = {
    "sum": (ReduceOp.Sum, 1.0, 1.0),
    "average": (ReduceOp.Average, 1.0, 1.0),
    "min": (ReduceOp.Min, 1.0, 1.0),
    "product": (ReduceOp.Product, 1.0, 1.0),
    "scaled": (ReduceOp.Sum, 0.3, 1.7),
    "scaled average": (ReduceOp.Average, 2.5, 0.7),
}


def narrowed(x, dtype):
    """The bits of `x` in 16: rounded to nearest even, by way of float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        x = x.astype(np.float32)
        if dtype == "float16":
            return x.astype(np.float16).view(np.uint16)
    bits = x.view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(x), 0x7FC0, bits).astype(np.uint16)


def widened(bits, dtype, wide):
    if dtype == "float16":
        return bits.view(np.float16).astype(wide)
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(wide)


def inputs(count, wide):
    """Numbers of many sizes, others on each rank, and what 16 bits do not hold."""
    random = np.random.default_rng([count, ringdp.rank()])
    x = random.standard_normal(count) * 10.0 ** random.integers(-9, 5, count)
    special = [np.inf, -np.inf, np.nan, 0.0, -0.0, 65519.9, 65520.0, 3e38, 2.0**-24, 2.0**-25, 1 + 2.0**-11]
    at = slice(ringdp.rank() + 3, None, 37)
    x[at] = np.resize(special, x[at].shape)
    return x.astype(wide)


def submit(name, wire, dtype, how, wide=None, output=None):
    op, prescale, postscale = how
    casts = () if wide is None else (Dtype[wide.dtype.name], wide.ctypes.data, output.ctypes.data)
    at = wire.ctypes.data, wire.ctypes.data
    submission = _core.Submission(
        OpKind.allreduce, name, 0, *at, Dtype[dtype], wire.shape, op, prescale, postscale, -1, [], *casts
    )  # fmt: skip
    return world.current().engine.submit(submission), (wire, wide, output)


def wait(submitted):
    handle, _ = submitted
    assert world.current().engine.wait(handle, 60)
    handle.check()


def cast_under_way(count):
    return world.current().engine.casts_under_way(2 * count, Dtype.float16)


def cast_by_hand(x, dtype, how, name):
    """What the operation must give: the same in three steps."""
    bits = narrowed(x, dtype)
    wait(submit(name, bits, dtype, how))
    return widened(bits, dtype, x.dtype)


@pytest.fixture(params=COUNTS)
def counts(request, monkeypatch):
    """With segments that cut them; under MPI, where one world serves all tests, with the usual ones, and one more."""
    monkeypatch.setenv("RINGDP_SEGMENT_BYTES", str(request.param))
    monkeypatch.setenv("RINGDP_LETTER_BYTES", "0")  # else small tensors may go along with their names
    more = [] if request.config.getoption("--local-ranks") or request.param == 8 else [57_345]
    return COUNTS[request.param] + more


def those_cast_under_way(counts):
    found = [count for count in counts if cast_under_way(count)]
    return found or pytest.skip("none is cast under way")


@pytest.mark.parametrize("in_place", [False, True], ids=["new", "in_place"])
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("wide", WIDE)
def test_the_bits_are_those_of_casts_before_and_after(counts, wide, dtype, in_place):
    for count in those_cast_under_way(counts):
        flying = []
        for name, how in HOW.items():
            x = inputs(count, wide)
            output = x.copy() if in_place else np.full(count, 77, wide)
            source = output if in_place else x
            wire = np.full(count, 0x7D55, np.uint16)  # a NaN: what is there before must not matter
            flying.append((name, how, x, source, output, submit(name, wire, dtype, how, source, output)))
        for name, how, x, source, output, submitted in flying:
            wait(submitted)
            want = cast_by_hand(x, dtype, how, f"{name} by hand")
            assert np.array_equal(output, want, equal_nan=True), (count, name)
            assert np.array_equal(np.signbit(output)[output == 0], np.signbit(want)[want == 0])
            assert in_place or np.array_equal(source, x, equal_nan=True)


@pytest.mark.min_ranks(2)
def test_a_rank_that_casts_by_itself_goes_along_with_those_that_do_not():
    for count in those_cast_under_way((3, 65, 20_011)):
        x, sum_ = inputs(count, "float32"), (ReduceOp.Sum, 1.0, 1.0)
        want = cast_by_hand(x, "bfloat16", sum_, "by hand")
        if ringdp.rank() == 0:
            got = cast_by_hand(x, "bfloat16", sum_, "mixed")
        else:  # the last one from float64
            wide = x.astype(np.float64) if ringdp.rank() == ringdp.size() - 1 else x
            got = np.empty_like(wide)
            wait(submit("mixed", np.empty(count, np.uint16), "bfloat16", sum_, wide, got))
        assert np.array_equal(got, want, equal_nan=True)


@pytest.mark.min_ranks(2)
def test_ranks_that_send_other_dtypes_are_told_and_no_output_is_touched():
    those_cast_under_way([20_000])
    last = ringdp.rank() == ringdp.size() - 1
    x, output, wire = inputs(20_000, "float32"), np.full(20_000, 77, np.float32), np.empty(20_000, np.uint16)
    submitted = submit("odd", wire, NARROW[last], HOW["sum"], x, output)
    with pytest.raises(ringdp.MismatchError) as raised:
        wait(submitted)
    assert f"rank {ringdp.size() - 1}: allreduce of float32[20000] sent as bfloat16" in str(raised.value)
    assert "float32[20000] sent as float16, op Sum" in str(raised.value)
    assert (output == 77).all()
    assert (ringdp.allreduce(np.ones(9), op=ringdp.Sum) == ringdp.size()).all()


def test_what_cannot_be_cast_under_way_is_refused():
    count = 20_000
    x, wire = np.ones(count, np.float32), np.empty(count, np.uint16)
    for few in (1, 1000, count):  # elements
        if not cast_under_way(few):
            with pytest.raises(ringdp.UsageError, match="is not cast under way"):
                submit("x", wire[:few], "float16", HOW["sum"], x[:few], x[:few])
    if not cast_under_way(count):
        return
    with pytest.raises(ringdp.UsageError, match="int32 cannot be sent as float16"):
        submit("x", wire, "float16", HOW["sum"], np.ones(count, np.int32), x)
    with pytest.raises(ringdp.UsageError, match="float32 cannot be sent as int16"):
        submit("x", wire, "int16", HOW["sum"], x, x.copy())
    with pytest.raises(ringdp.UsageError, match="float16 cannot be sent as bfloat16"):
        submit("x", wire, "bfloat16", HOW["sum"], wire.view(np.float16), wire)
    with pytest.raises(ringdp.UsageError, match="only an all-reduce in place is cast"):
        at = wire.ctypes.data, wire.copy().ctypes.data
        submission = _core.Submission(
            OpKind.allreduce, "x", 0, *at, Dtype.float16, (count,), ReduceOp.Sum, 1.0, 1.0, -1, [],
            Dtype.float32, x.ctypes.data, x.ctypes.data
        )  # fmt: skip
        world.current().engine.submit(submission)
    assert (ringdp.allreduce(np.ones(9), op=ringdp.Sum) == ringdp.size()).all()
