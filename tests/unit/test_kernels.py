"""The kernels: every row of the table in docs/reductions.md, and the same bits from every variant.

References are NumPy, written to be read. bfloat16 and the floats of 8 bits, which NumPy lacks, are held as
their bits and go through the functions between them and float32 below; all other dtypes are NumPy's own. Results are
compared bit for bit, NaNs included.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ringdp import _core

kernels = _core.kernels

DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")
FLOAT8S = {
    "float8_e4m3fn": (3, 7, 0x7F),
    "float8_e5m2": (2, 15, 0x7C),
}  # mantissa bits, bias, first after all numbers
DTYPES += tuple(FLOAT8S)
INTEGERS = DTYPES[1:6]
FLOATS = DTYPES[6:]
OPERATIONS = ("Average", "Sum", "Min", "Max", "Product")  # the index is the wire number, as in DTYPES
REDUCTIONS = OPERATIONS[1:]
VARIANTS = tuple(kernels.variants())
FACTORS = (0.5, 1.0, -3.0, 0.0, 1 / 3, 1e-3, 257.0, 1e30, 1e300, -1e-300, float("inf"), float("nan"))
RANKS = (1, 2, 3, 7, 64, 100, 1000, 2**31 - 1)

# How an array of each dtype is held, and the unsigned integer of the same size.
HELD_AS = {"bool": "uint8", "bfloat16": "uint16", **dict.fromkeys(FLOAT8S, "uint8")}
STORAGE = {d: np.dtype(HELD_AS.get(d, d)) for d in DTYPES}
BITS = {d: np.dtype(f"uint{8 * STORAGE[d].itemsize}") for d in DTYPES}
NAN = {"float16": 0x7E00, "bfloat16": 0x7FC0, "float32": 0x7FC00000, "float64": 0x7FF8000000000000}
NAN |= {"float8_e4m3fn": 0x7F, "float8_e5m2": 0x7E}
# The bits above those of all numbers: infinity, where there is one.
NOT_FINITE = {d: nan if d == "float8_e4m3fn" else nan & (nan - 1) for d, nan in NAN.items()}


# --- running a kernel ---------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def automatic_variant() -> Iterator[None]:
    """Leaves the automatic choice behind, whatever a test forced."""
    yield
    kernels.force_variant("")


def reduce(dtype: str, operation: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    to = np.empty_like(a)
    kernels.reduce(
        DTYPES.index(dtype), OPERATIONS.index(operation), to.ctypes.data, a.ctypes.data, b.ctypes.data, a.size
    )
    return to


def scale(dtype: str, a: np.ndarray, factor: float) -> np.ndarray:
    to = np.empty_like(a)
    kernels.scale(DTYPES.index(dtype), to.ctypes.data, a.ctypes.data, factor, a.size)
    return to


def divide(dtype: str, a: np.ndarray, ranks: int) -> np.ndarray:
    to = np.empty_like(a)
    kernels.divide(DTYPES.index(dtype), to.ctypes.data, a.ctypes.data, ranks, a.size)
    return to


def assert_same_bits(dtype: str, got: np.ndarray, want: np.ndarray, *inputs: np.ndarray) -> None:
    got, want = got.view(BITS[dtype]), want.view(BITS[dtype])
    wrong = np.flatnonzero(got != want)
    if wrong.size:
        i = wrong[0]
        given = ", ".join(hex(x.view(BITS[dtype])[i]) for x in inputs)
        differ = f"{wrong.size} of {got.size} differ"
        pytest.fail(f"{differ}; [{i}] of ({given}): {got[i]:#x}, expected {want[i]:#x}")


# --- inputs -------------------------------------------------------------------------------------------------


def special_patterns(dtype: str) -> np.ndarray:
    """Patterns at which something changes: ends of the range, signs, infinities, NaNs, subnormals, ties."""
    bits = 8 * STORAGE[dtype].itemsize
    top = 1 << (bits - 1)
    patterns = [0, 1, 2, 3, 0x55, top - 1, top, top + 1, 2 * top - 2, 2 * top - 1]
    if dtype in FLOATS:
        mantissa = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52, "float8_e4m3fn": 3}.get(
            dtype, 2
        )
        quiet, infinity = NAN[dtype], NAN[dtype] & ~(1 << (mantissa - 1))
        one = (infinity >> 1) & ~((1 << mantissa) - 1)
        least_normal = 1 << mantissa
        positive = [infinity - 1, infinity, infinity + 1, quiet, quiet + 5, one, one + 1, one - 1]
        positive += [least_normal - 1, least_normal, least_normal + 1]
        patterns += positive + [p | top for p in positive]
    return np.array(patterns, dtype=BITS[dtype])


def random_patterns(dtype: str, count: int, seed: int) -> np.ndarray:
    """Any bit patterns, a third of them special; for wide floats half with exponents near each other."""
    rng = np.random.default_rng(zlib.crc32(f"{dtype} {seed}".encode()))
    x = rng.integers(0, np.iinfo(BITS[dtype]).max, count, BITS[dtype], endpoint=True)
    if dtype in ("float32", "float64"):
        near = (rng.standard_normal(count) * 4).astype(dtype).view(BITS[dtype])
        x = np.where(rng.random(count) < 0.5, near, x)
    special = rng.choice(special_patterns(dtype), count)
    return np.where(rng.random(count) < 1 / 3, special, x)


def pairs(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of special patterns, then random ones; for 16 bits all 65536 patterns as well, of floats of 8 bits
    all pairs."""
    special = special_patterns(dtype)
    a, b = (x.ravel() for x in np.meshgrid(special, special))
    a = [a, random_patterns(dtype, 20_000, 1)]
    b = [b, random_patterns(dtype, 20_000, 2)]
    if BITS[dtype].itemsize == 2:
        every = np.arange(65536, dtype=np.uint16)
        a += [every, random_patterns(dtype, 65536, 3), every]
        b += [random_patterns(dtype, 65536, 4), every, every]
    if dtype in FLOAT8S:
        every = np.arange(65536, dtype=np.uint16)
        a += [(every >> 8).astype(np.uint8)]
        b += [(every & 0xFF).astype(np.uint8)]
    return np.concatenate(a).view(STORAGE[dtype]), np.concatenate(b).view(STORAGE[dtype])


# --- references ---------------------------------------------------------------------------------------------


def bfloat16_to_float32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def float32_to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Rounds to nearest, ties to even; a NaN becomes the canonical one."""
    bits = x.view(np.uint32)
    kept, dropped, half = bits >> 16, bits & 0xFFFF, 0x8000
    up = (dropped > half) | ((dropped == half) & (kept % 2 == 1))
    return np.where(np.isnan(x), NAN["bfloat16"], kept + up).astype(np.uint16)


def float8_magnitudes(dtype: str) -> np.ndarray:
    """Those of bits 0, 1, 2, …, the last one standing for what is too large."""
    mantissa, bias, end = FLOAT8S[dtype]
    bits = np.arange(end + 1)
    exponent, fraction = bits >> mantissa, bits & ((1 << mantissa) - 1)
    whole = np.where(exponent == 0, fraction, fraction + (1 << mantissa))
    return np.ldexp(whole.astype(np.float64), np.maximum(exponent, 1) - bias - mantissa)


def float8_to_float32(dtype: str, bits: np.ndarray) -> np.ndarray:
    end = FLOAT8S[dtype][2]
    values = np.full(128, np.nan, np.float32)
    values[:end] = float8_magnitudes(dtype)[:end]
    if dtype == "float8_e5m2":
        values[end] = np.inf
    return np.copysign(values[bits & 0x7F], np.where(bits & 0x80, -1, 1).astype(np.float32))


def float32_to_float8(dtype: str, x: np.ndarray) -> np.ndarray:
    """The nearest number, of two as near the one whose last bit is 0; a NaN becomes the canonical one."""
    numbers, end = float8_magnitudes(dtype), FLOAT8S[dtype][2]
    magnitude = np.abs(x).astype(np.float64)
    below = np.clip(np.searchsorted(numbers, magnitude, "right") - 1, 0, end - 1)
    under, over = magnitude - numbers[below], numbers[below + 1] - magnitude
    bits = below + ((under > over) | ((under == over) & (below % 2 == 1)))
    nan = np.isnan(x) | ((bits == end) & (dtype == "float8_e4m3fn"))
    return np.where(nan, NAN[dtype], bits | np.where(np.signbit(x), 0x80, 0)).astype(np.uint8)


def widen(dtype: str, x: np.ndarray) -> np.ndarray:
    """To the dtype that is computed in: float32 for floats of 8 and 16 bits, otherwise itself."""
    if dtype in FLOAT8S:
        return float8_to_float32(dtype, x)
    if dtype == "bfloat16":
        return bfloat16_to_float32(x)
    return x.astype(np.float32) if dtype == "float16" else x


def narrow(dtype: str, x: np.ndarray) -> np.ndarray:
    """Back from it, any NaN becoming the quiet, positive one without payload."""
    if dtype in FLOAT8S:
        return float32_to_float8(dtype, x)
    if dtype == "bfloat16":
        return float32_to_bfloat16(x)
    bits = x.astype(dtype).view(BITS[dtype])
    return np.where(np.isnan(x), BITS[dtype].type(NAN[dtype]), bits).view(dtype)


def reference_extreme(dtype: str, operation: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    wide_a, wide_b = widen(dtype, a), widen(dtype, b)
    if operation == "Min":
        first = (wide_a < wide_b) | ((wide_a == wide_b) & np.signbit(wide_a))
    else:
        first = (wide_a > wide_b) | ((wide_a == wide_b) & ~np.signbit(wide_a))
    nan = np.isnan(wide_a) | np.isnan(wide_b)
    bits = np.where(first, a.view(BITS[dtype]), b.view(BITS[dtype]))
    return np.where(nan, BITS[dtype].type(NAN[dtype]), bits).view(STORAGE[dtype])


def reference_reduce(dtype: str, operation: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if dtype == "bool":
        x, y = a != 0, b != 0
        return (x | y if operation in ("Sum", "Max") else x & y).astype(np.uint8)
    if dtype in INTEGERS:
        with np.errstate(over="ignore"):
            return {"Sum": np.add, "Product": np.multiply, "Min": np.minimum, "Max": np.maximum}[operation](
                a, b
            )
    if operation in ("Min", "Max"):
        return reference_extreme(dtype, operation, a, b)
    with np.errstate(all="ignore"):
        combine = np.add if operation == "Sum" else np.multiply
        return narrow(dtype, combine(widen(dtype, a), widen(dtype, b)))


def reference_scale(dtype: str, a: np.ndarray, factor: float) -> np.ndarray:
    with np.errstate(all="ignore"):
        if dtype in FLOATS:
            wide = widen(dtype, a)
            return narrow(dtype, wide * np.float64(factor).astype(wide.dtype))
        y = a.astype(np.float64) * factor
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        whole = [0 if np.isnan(v) else low if v <= low else high if v >= high else int(v) for v in y.tolist()]
        return np.array(whole, dtype=dtype)


def reference_divide(dtype: str, a: np.ndarray, ranks: int) -> np.ndarray:
    if dtype in INTEGERS:
        return np.array([v // ranks for v in a.tolist()], dtype=dtype)  # Python's division is floor division
    with np.errstate(all="ignore"):
        wide = widen(dtype, a)
        return narrow(dtype, wide / wide.dtype.type(ranks))


# --- the table of docs/reductions.md, row by row ------------------------------------------------------------


def table() -> list[tuple[str, str]]:
    """All (dtype, operation) pairs of the table's rows."""
    text = (Path(__file__).parents[2] / "docs" / "reductions.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w, ]+) \| ([\w, ]+) \| .+ \|$", text, re.MULTILINE)
    split = [(d.split(", "), o.split(", ")) for d, o in rows if d != "dtypes"]
    return [pair for dtypes, operations in split for pair in itertools.product(dtypes, operations)]


TABLE = table()


def test_table_has_each_dtype_and_operation_once() -> None:
    assert sorted(TABLE) == sorted(itertools.product(DTYPES, (*OPERATIONS, "prescale", "postscale")))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dtype", "operation"), TABLE)
def test_table(dtype: str, operation: str, variant: str) -> None:
    kernels.force_variant(variant)
    a, b = pairs(dtype)
    if operation == "Average":
        check_average(dtype, a, b)
    elif operation in REDUCTIONS:
        assert_same_bits(
            dtype, reduce(dtype, operation, a, b), reference_reduce(dtype, operation, a, b), a, b
        )
    elif dtype == "bool":
        with pytest.raises(ValueError, match="bool has no scale"):
            scale(dtype, a, 0.5)
    else:  # prescale and postscale are one function, applied to different things
        a = a[-30_000:]
        for factor in FACTORS:
            assert_same_bits(dtype, scale(dtype, a, factor), reference_scale(dtype, a, factor), a)


def check_average(dtype: str, a: np.ndarray, b: np.ndarray) -> None:
    if dtype == "bool":
        with pytest.raises(ValueError, match="bool has no Average"):
            reduce(dtype, "Average", a, b)
        with pytest.raises(ValueError, match="bool has no Average"):
            divide(dtype, a, 2)
    elif dtype == "float16" or dtype in FLOAT8S:  # scaled before, nothing afterwards
        half_a, half_b = scale(dtype, a, 0.5), scale(dtype, b, 0.5)
        want = reference_reduce(dtype, "Sum", reference_scale(dtype, a, 0.5), reference_scale(dtype, b, 0.5))
        assert_same_bits(dtype, reduce(dtype, "Average", half_a, half_b), want, a, b)
    else:
        total = reduce(dtype, "Average", a, b)
        assert_same_bits(dtype, total, reference_reduce(dtype, "Sum", a, b), a, b)
        for ranks in RANKS:
            assert_same_bits(dtype, divide(dtype, total, ranks), reference_divide(dtype, total, ranks), total)


# --- results that one can say without a reference -----------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_known_results(variant: str) -> None:
    kernels.force_variant(variant)

    def f16(*x: float) -> np.ndarray:
        return np.array(x, np.float16)

    assert reduce("float16", "Sum", f16(65504, 2048, 2048, 2**-24), f16(16, 1, 3, 2**-24)).tolist() == [
        float("inf"),  # half way to the next number, which is infinity
        2048,  # ties go to even
        2052,
        2**-23,  # subnormal
    ]

    def sums(dtype: str, a: list[int], b: list[int]) -> list[int]:
        return reduce(dtype, "Sum", np.array(a, np.uint8), np.array(b, np.uint8)).tolist()

    # 448 + 16: half way to 480, which would be the NaN; + 18: beyond; 1 + 0.0625: half way; 2^-9 + 2^-9.
    assert sums("float8_e4m3fn", [0x7E, 0x7E, 0x38, 0x01], [0x58, 0x59, 0x18, 0x01]) == [
        0x7E,
        0x7F,
        0x38,
        0x02,
    ]
    # 57344 + 4096: half way to the next, which is infinity; + 3584; inf - inf; 2^-16 + 2^-16.
    assert sums("float8_e5m2", [0x7B, 0x7B, 0x7C, 0x01], [0x6C, 0x6B, 0xFC, 0x01]) == [0x7C, 0x7B, 0x7E, 0x02]
    truths = np.array([0, 2, 0, 255], np.uint8), np.array([0, 0, 4, 2], np.uint8)
    assert reduce("bool", "Sum", *truths).tolist() == [0, 1, 1, 1]
    assert reduce("bool", "Min", *truths).tolist() == [0, 0, 0, 1]
    assert reduce("int8", "Sum", np.array([127, -128], np.int8), np.array([1, -1], np.int8)).tolist() == [
        -128,
        127,
    ]
    assert divide("int32", np.array([-1, -4, 7, -(2**31)], np.int32), 2).tolist() == [-1, -2, 3, -(2**30)]
    assert divide("int8", np.array([-128, -1, 0, 127], np.int8), 1000).tolist() == [-1, -1, 0, 0]
    assert scale("int64", np.array([2**62, -(2**62), 3, -3], np.int64), 2.5).tolist() == [
        2**63 - 1,
        -(2**63),
        7,
        -7,
    ]
    zeros = np.array([0.0, -0.0], np.float32)
    assert np.signbit(reduce("float32", "Min", zeros, zeros[::-1].copy())).tolist() == [True, True]
    assert np.signbit(reduce("float32", "Max", zeros, zeros[::-1].copy())).tolist() == [False, False]


# --- all variants, same bits --------------------------------------------------------------------------------


def results(dtype: str, a: np.ndarray, b: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    for operation in REDUCTIONS:
        yield operation, reduce(dtype, operation, a, b)
    if dtype != "bool":
        for factor in FACTORS:
            yield f"scale by {factor}", scale(dtype, a, factor)
        for ranks in RANKS:
            yield f"divide by {ranks}", divide(dtype, a, ranks)


@pytest.mark.parametrize("dtype", DTYPES)
def test_variants_agree(dtype: str) -> None:
    a, b = pairs(dtype)
    kernels.force_variant("portable")
    want = dict(results(dtype, a, b))
    assert len(want) == 4 if dtype == "bool" else len(want) > 20
    for variant in VARIANTS:
        kernels.force_variant(variant)
        for what, got in results(dtype, a, b):
            assert got.tobytes() == want[what].tobytes(), f"{variant} and portable differ: {dtype} {what}"


# --- counts, addresses, memory ------------------------------------------------------------------------------

GUARD = 64  # bytes on either side that must stay as they are


class Memory:
    """Elements at an address that is `shift` bytes off a 64-byte boundary, between guards."""

    def __init__(self, values: np.ndarray, shift: int) -> None:
        self.buffer = np.full(values.nbytes + 2 * GUARD + 128, 0xA5, np.uint8)
        self.begin = -self.buffer.ctypes.data % 64 + GUARD + shift
        self.end = self.begin + values.nbytes
        self.address = self.buffer.ctypes.data + self.begin
        self.buffer[self.begin : self.end] = values.view(np.uint8)

    def values(self) -> bytes:
        assert (self.buffer[: self.begin] == 0xA5).all(), "written below the first element"
        assert (self.buffer[self.end :] == 0xA5).all(), "written above the last element"
        return self.buffer[self.begin : self.end].tobytes()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_counts_and_addresses(dtype: str, variant: str) -> None:
    kernels.force_variant(variant)
    d = DTYPES.index(dtype)
    for count, shift in itertools.product((0, 1, 2, 3, 5, 7, 8, 15, 17, 31, 33, 67, 255), (0, 1, 3, 4)):
        a, b = (random_patterns(dtype, count, seed).view(STORAGE[dtype]) for seed in (5, 6))
        x, y = Memory(a, shift), Memory(b, 2 * shift)
        for operation in REDUCTIONS:
            to = Memory(np.zeros_like(a), shift + 1)
            kernels.reduce(d, OPERATIONS.index(operation), to.address, x.address, y.address, count)
            assert to.values() == reference_reduce(dtype, operation, a, b).tobytes()
        if dtype != "bool":
            to = Memory(np.zeros_like(a), shift + 1)
            kernels.scale(d, to.address, x.address, 0.3, count)
            assert to.values() == reference_scale(dtype, a, 0.3).tobytes()
            kernels.divide(d, to.address, x.address, 3, count)
            assert to.values() == reference_divide(dtype, a, 3).tobytes()
        assert x.values() == a.tobytes()
        assert y.values() == b.tobytes()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place(dtype: str, variant: str) -> None:
    kernels.force_variant(variant)
    d = DTYPES.index(dtype)
    a, b = (random_patterns(dtype, 1001, seed).view(STORAGE[dtype]) for seed in (7, 8))
    for operation in REDUCTIONS:
        op, want = OPERATIONS.index(operation), reference_reduce(dtype, operation, a, b)
        x, y = a.copy(), b.copy()
        kernels.reduce(d, op, x.ctypes.data, x.ctypes.data, y.ctypes.data, x.size)
        assert (x.tobytes(), y.tobytes()) == (want.tobytes(), b.tobytes()), f"{operation} into a"
        x = a.copy()
        kernels.reduce(d, op, y.ctypes.data, x.ctypes.data, y.ctypes.data, x.size)
        assert (x.tobytes(), y.tobytes()) == (a.tobytes(), want.tobytes()), f"{operation} into b"
        kernels.reduce(d, op, x.ctypes.data, x.ctypes.data, x.ctypes.data, x.size)
        assert x.tobytes() == reference_reduce(dtype, operation, a, a).tobytes(), f"{operation} of itself"
    if dtype != "bool":
        x = a.copy()
        kernels.scale(d, x.ctypes.data, x.ctypes.data, 0.3, x.size)
        assert x.tobytes() == reference_scale(dtype, a, 0.3).tobytes()
        x = a.copy()
        kernels.divide(d, x.ctypes.data, x.ctypes.data, 3, x.size)
        assert x.tobytes() == reference_divide(dtype, a, 3).tobytes()


# --- choosing a variant, refusing nonsense ------------------------------------------------------------------


def test_choice_of_variant() -> None:
    assert VARIANTS[-1] == "portable"
    assert kernels.variant() == VARIANTS[0], "the best one runs unless a test says otherwise"
    for variant in VARIANTS:
        kernels.force_variant(variant)
        assert kernels.variant() == variant
    with pytest.raises(ValueError, match="no variant 'mmx'"):
        kernels.force_variant("mmx")
    assert kernels.variant() == VARIANTS[-1], "a refused choice changes nothing"
    kernels.force_variant("")
    assert kernels.variant() == VARIANTS[0]


def test_unknown_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="no dtype has number 12"):
        kernels.scale(12, 0, 0, 1.0, 0)
    with pytest.raises(ValueError, match="no dtype has number -1"):
        kernels.divide(-1, 0, 0, 1, 0)
    with pytest.raises(ValueError, match="no reduce operation has number 5"):
        kernels.reduce(0, 5, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="cannot divide by 0 ranks"):
        kernels.divide(8, 0, 0, 0, 0)
