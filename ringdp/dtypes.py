"""The one table of element types, for all frameworks: they find `Dtype` by the name that they themselves have for it.

NumPy's, CuPy's, TensorFlow's, JAX's and torch's names are the same. So ml_dtypes' bfloat16 and float8 are in it without
importing that package.
"""

from __future__ import annotations

from typing import Any

from ringdp.constants import Dtype

BY_NAME: dict[str, Dtype] = {dtype.name: dtype for dtype in Dtype}
KNOWN = ", ".join(BY_NAME)
FLOATS = frozenset(dtype for dtype in Dtype if "float" in dtype.name)
WIDE = frozenset({Dtype.float32, Dtype.float64})  # what a compression to 16 bits casts
HALVES = frozenset({Dtype.float16, Dtype.bfloat16})


SIZES: dict[Dtype, int] = {  # bytes
    Dtype.bool: 1, Dtype.uint8: 1, Dtype.int8: 1, Dtype.int16: 2, Dtype.int32: 4, Dtype.int64: 8,
    Dtype.float16: 2, Dtype.bfloat16: 2, Dtype.float32: 4, Dtype.float64: 8,
    Dtype.float8_e4m3fn: 1, Dtype.float8_e5m2: 1,
}  # fmt: skip


def unsupported(dtype: Any, what: str = "this tensor", remedy: str = "") -> TypeError:
    """The error for an element type that the core does not know.

    Args:
        dtype: as its framework writes it.
        what: the tensor, in words.
        remedy: what to do about it, if there is anything.
    """
    help = f" ({remedy})" if remedy else ""
    return TypeError(f"{what} has dtype {dtype}, which ringdp cannot exchange; it knows {KNOWN}{help}")


def of_array(array: Any) -> Dtype | None:
    """The element type of a NumPy or CuPy array; None for one that the core does not know: by name, or because its
    bytes are not in this machine's order."""
    return BY_NAME.get(array.dtype.name) if array.dtype.isnative else None
