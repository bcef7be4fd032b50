"""Inputs whose value tells (rank, index), and what each operation must make of them, exactly, in NumPy."""

import functools

import numpy as np

import ringdp

DTYPES = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]
COUNTS = [0, 1, 2, 3, 5, 64, 1000, 100_003]


def values(dtype, count, rank, size):
    """Small whole numbers, so that every sum and average is exact in every dtype; multiples of `size`."""
    index = np.arange(count)
    if dtype == "bool":
        return (index + rank) % 3 == 0
    return (((index * 3 + rank * 5) % 7) * size).astype(dtype)


def small(dtype, count, rank):
    """1 and 2, so that a product over ten ranks stays exact."""
    if dtype == "bool":
        return (np.arange(count) + rank) % 3 == 0
    return ((np.arange(count) + rank) % 2 + 1).astype(dtype)


def expected(op, inputs):
    """The reduction of the ranks' inputs, in their dtype (integers wrap)."""
    dtype = inputs[0].dtype
    functions = {
        ringdp.Sum: np.logical_or if dtype.kind == "b" else np.add,
        ringdp.Average: np.add,
        ringdp.Min: np.minimum,
        ringdp.Max: np.maximum,
        ringdp.Product: np.logical_and if dtype.kind == "b" else np.multiply,
    }
    total = functools.reduce(functions[op], inputs)
    if op == ringdp.Average:
        total = total // len(inputs) if dtype.kind in "iu" else total / dtype.type(len(inputs))
    return total.astype(dtype)
