"""The first element that is infinite or NaN, by every variant of the kernels."""

from collections.abc import Iterator

import numpy as np
import pytest

from ringdp._core import kernels

DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")
DTYPES += ("float8_e4m3fn", "float8_e5m2")
# Bytes of an element, and all bits of the first magnitude that is no number. (docs/reductions.md)
FIRST = {
    "float8_e4m3fn": (1, 0x7F),
    "float8_e5m2": (1, 0x7C),
    "float16": (2, 0x7C00),
    "bfloat16": (2, 0x7F80),
    "float32": (4, 0x7F80_0000),
    "float64": (8, 0x7FF0_0000_0000_0000),
}


@pytest.fixture(params=kernels.variants(), autouse=True)
def variant(request: pytest.FixtureRequest) -> Iterator[None]:
    kernels.force_variant(request.param)
    yield
    kernels.force_variant("")


def find(dtype: str, bits: np.ndarray, shift: int = 0) -> int:
    memory = np.frombuffer(bytes(shift) + bits.tobytes(), np.uint8)
    return kernels.find_not_finite(DTYPES.index(dtype), memory.ctypes.data + shift, bits.size)


def unsigned(dtype: str) -> np.dtype:
    return np.dtype(f"uint{8 * FIRST[dtype][0]}")


@pytest.mark.parametrize("dtype", FIRST)
def test_each_magnitude_and_sign(dtype: str) -> None:
    size, first = FIRST[dtype]
    sign = 1 << (8 * size - 1)
    for magnitude in {0, 1, first // 2, first - 1, first, min(first + 1, sign - 1), sign - 1}:
        for bits in (magnitude, magnitude | sign):
            one = np.full(5, bits, unsigned(dtype))
            assert find(dtype, one) == (0 if magnitude >= first else 5), hex(bits)


@pytest.mark.parametrize("shift", [0, 1, 3])
@pytest.mark.parametrize("dtype", FIRST)
def test_wherever_it_is(dtype: str, shift: int) -> None:
    """The first of two, in and across blocks, at the ends."""
    first = FIRST[dtype][1]
    for count in (0, 1, 2, 31, 2047, 2048, 2049, 5000):
        numbers = np.full(count, first - 1, unsigned(dtype))
        assert find(dtype, numbers, shift) == count
        for at in {0, 1, count // 2, 2047, 2048, 4096, count - 1} & set(range(count)):
            spoilt = numbers.copy()
            spoilt[[at, count - 1]] = first
            assert find(dtype, spoilt, shift) == at


def test_integers_are_finite() -> None:
    ones = np.full(100, 0xFF, np.uint8)
    for dtype in DTYPES[:6]:
        assert find(dtype, ones) == 100
