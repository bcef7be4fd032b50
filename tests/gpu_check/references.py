"""What the kernels are to give, in NumPy, from float64: exact where float64 holds the exact result, rounded once.

A sum, product or quotient of float32 (24 bits) that is taken in float64 (53 bits) and rounded to float32 is the one
that float32 arithmetic gives, since 53 >= 2 * 24 + 2. Floats of 8 and 16 bits are computed in float32 and rounded after
that, and float64 becomes one of 16 bits by way of float32 (docs/reductions.md).
"""

from __future__ import annotations

import numpy as np
from unit.test_kernels import (
    INTEGERS,
    narrow,
    reference_reduce,
    widen,
)

WIDES = ("float32", "float64")
LEAST_NORMAL = 2.0**-126


def wide_of(dtype: str) -> type[np.floating]:
    return np.float64 if dtype == "float64" else np.float32


def to_float64(dtype: str, values: np.ndarray) -> np.ndarray:
    return widen(dtype, values).astype(np.float64)


def from_float64(dtype: str, values: np.ndarray) -> np.ndarray:
    """By way of the dtype that is computed in."""
    with np.errstate(all="ignore"):
        return narrow(dtype, values.astype(wide_of(dtype)))


def reduce(dtype: str, operation: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if operation in ("Min", "Max") or dtype == "bool" or dtype in INTEGERS:
        return reference_reduce(dtype, operation, a, b)  # nothing is rounded
    with np.errstate(all="ignore"):
        combine = np.add if operation == "Sum" else np.multiply
        return from_float64(dtype, combine(to_float64(dtype, a), to_float64(dtype, b)))


def scale(dtype: str, a: np.ndarray, factor: float) -> np.ndarray:
    with np.errstate(all="ignore"):
        if dtype not in INTEGERS:
            return from_float64(dtype, to_float64(dtype, a) * np.float64(wide_of(dtype)(factor)))
        product = np.trunc(
            np.nan_to_num(a.astype(np.float64) * factor, nan=0.0, posinf=np.inf, neginf=-np.inf)
        )
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        inside = (product > low) & (product < float(high))
        whole = np.where(inside, product, 0).astype(dtype)
        return np.where(inside, whole, np.where(product <= low, low, high)).astype(dtype)


def divide(dtype: str, a: np.ndarray, ranks: int) -> np.ndarray:
    if dtype in INTEGERS:
        return (a.astype(np.int64) // ranks).astype(dtype)  # rounds down
    with np.errstate(all="ignore"):
        return from_float64(dtype, to_float64(dtype, a) / np.float64(wide_of(dtype)(ranks)))


def move(source: str, target: str, values: np.ndarray, factor: float) -> np.ndarray:
    """Pack or unpack: one dtype to another, times a factor in the wider of the two."""
    if source == target:
        return values if factor == 1 else scale(source, values, factor)
    with np.errstate(all="ignore"):
        if source in WIDES:
            return from_float64(target, to_float64(source, scale(source, values, factor)))
        return scale(target, narrow(target, to_float64(source, values)), factor)


def quantise(values: np.ndarray, block: int) -> np.ndarray:
    """uint8 (blocks, block + 4): codes, then the scale as float32."""
    blocks = -(-values.size // block)
    whole = np.zeros((blocks, block), np.float64)
    whole.reshape(-1)[: values.size] = values
    scales = (np.abs(whole).max(axis=1, keepdims=True, initial=0) / 127).astype(np.float32)
    quotients = (whole / np.maximum(scales.astype(np.float64), LEAST_NORMAL)).astype(np.float32)
    codes = np.clip(np.rint(quotients), -127, 127).astype(np.int8)
    return np.concatenate([codes.view(np.uint8), scales.view(np.uint8)], axis=1)


def dequantise(wire: np.ndarray, count: int) -> np.ndarray:
    scales = np.ascontiguousarray(wire[:, -4:]).view(np.float32).astype(np.float64)
    codes = np.ascontiguousarray(wire[:, :-4]).view(np.int8)
    return (codes * scales).astype(np.float32).ravel()[:count]
