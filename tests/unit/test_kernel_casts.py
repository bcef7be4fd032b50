"""The kernels that cast, to 8 or 16 bits and back: the same bits from every variant, and those that torch gives."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from unit.test_kernels import (
    BITS,
    DTYPES,
    FLOAT8S,
    STORAGE,
    VARIANTS,
    assert_same_bits,
    automatic_variant,
    kernels,
    random_patterns,
    special_patterns,
)
from unit.test_kernels import narrow as reference_narrow
from unit.test_kernels import widen as reference_widen

from ringdp.errors import RingdpError

__all__ = ["automatic_variant"]  # a fixture
PAIRS = list(itertools.product(("float16", "bfloat16", *FLOAT8S), ("float32", "float64")))


def narrow(dtype: str, x: np.ndarray) -> np.ndarray:
    to = np.empty(x.shape, STORAGE[dtype])
    kernels.narrow(DTYPES.index(dtype), to.ctypes.data, DTYPES.index(x.dtype.name), x.ctypes.data, x.size)
    return to


def widen(wide: str, dtype: str, x: np.ndarray) -> np.ndarray:
    to = np.empty(x.shape, wide)
    kernels.widen(DTYPES.index(wide), to.ctypes.data, DTYPES.index(dtype), x.ctypes.data, x.size)
    return to


def all_patterns(dtype: str) -> np.ndarray:
    return np.arange(np.iinfo(BITS[dtype]).max + 1).astype(BITS[dtype]).view(STORAGE[dtype])


def all_widened(dtype: str, wide: str) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return reference_widen(dtype, all_patterns(dtype)).astype(wide)


def rounding_inputs(dtype: str, wide: str) -> np.ndarray:
    """Every number of the dtype, the middle to the next, and what lies just beside it; and any other patterns."""
    every = all_widened(dtype, wide)
    finite = np.sort(every[np.isfinite(every)])
    middle = finite[:-1] / 2 + finite[1:] / 2
    beside = [np.nextafter(middle, np.array(end, wide)) for end in (-np.inf, np.inf)]
    others = [random_patterns(wide, 50_000, 1).view(wide), special_patterns(wide).view(wide)]
    return np.concatenate([every, middle, *beside, *others])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dtype", "wide"), PAIRS)
def test_narrow(dtype: str, wide: str, variant: str) -> None:
    kernels.force_variant(variant)
    x = rounding_inputs(dtype, wide)
    with np.errstate(all="ignore"):
        want = reference_narrow(dtype, x.astype(np.float32))
    assert_same_bits(dtype, narrow(dtype, x), want)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dtype", "wide"), PAIRS)
def test_widen_all_patterns(dtype: str, wide: str, variant: str) -> None:
    kernels.force_variant(variant)
    x = all_patterns(dtype)
    want = reference_narrow(wide, all_widened(dtype, wide))  # any NaN the canonical one
    assert_same_bits(wide, widen(wide, dtype, x), want)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dtype", "wide"), PAIRS)
def test_counts_and_addresses(dtype: str, wide: str, variant: str) -> None:
    """Any count, from and to any address, and nothing beside it is written."""
    kernels.force_variant(variant)
    x = random_patterns(wide, 100, 5).view(wide)
    with np.errstate(all="ignore"):
        narrowed = reference_narrow(dtype, x.astype(np.float32)).view(BITS[dtype])
    for count, at in itertools.product([*range(20), 31, 33, 65, 100], range(2)):
        from_, to = np.full(900, 0xAA, np.uint8), np.full(900, 0xAA, np.uint8)
        size, narrow_size = count * x.itemsize, count * narrowed.itemsize
        from_[at : at + size] = x[:count].view(np.uint8)
        numbers = DTYPES.index(dtype), DTYPES.index(wide)
        kernels.narrow(numbers[0], to.ctypes.data + at, numbers[1], from_.ctypes.data + at, count)
        assert (to[at : at + narrow_size] == narrowed[:count].view(np.uint8)).all()
        assert (to[:at] == 0xAA).all() and (to[at + narrow_size :] == 0xAA).all()
        kernels.widen(numbers[1], from_.ctypes.data + at, numbers[0], to.ctypes.data + at, count)
        want = widen(wide, dtype, narrowed[:count].view(STORAGE[dtype]))
        assert (from_[at : at + size] == want.view(np.uint8)).all()
        assert (from_[:at] == 0xAA).all() and (from_[at + size :] == 0xAA).all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dtype", "wide"), PAIRS)
def test_as_torch_casts(dtype: str, wide: str, variant: str) -> None:
    torch = pytest.importorskip("torch")
    kernels.force_variant(variant)
    x = rounding_inputs(dtype, wide)
    if dtype == "float8_e4m3fn":  # what is too large torch makes 448 since 2.12: here no overflow goes unseen
        x = x[~(np.abs(x) > 464)]
    got, want = narrow(dtype, x), torch.from_numpy(x).to(getattr(torch, dtype))
    bits = want.view(torch.int16 if BITS[dtype].itemsize == 2 else torch.int8).numpy().view(BITS[dtype])
    is_nan = want.float().isnan().numpy()  # of which torch has several
    assert (np.isnan(x) == is_nan).all()
    assert_same_bits(dtype, got[~is_nan], bits[~is_nan].view(STORAGE[dtype]))
    back = widen(wide, dtype, got)
    assert (back[~is_nan] == want.to(getattr(torch, wide)).numpy()[~is_nan]).all()
    assert np.isnan(back[is_nan]).all()


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(RingdpError, match="int32 is not cast"):
        kernels.narrow(DTYPES.index("float16"), 0, DTYPES.index("int32"), 0, 0)
    with pytest.raises(RingdpError, match="float32 is no narrow float"):
        kernels.widen(DTYPES.index("float64"), 0, DTYPES.index("float32"), 0, 0)
