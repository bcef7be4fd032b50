"""Inputs of `ringdp bench` whose result is exactly known: small integers that encode (rank, index).

They are chosen so small that every partial sum or product is exact in the dtype, whatever the order of addition, so
results are compared with ==. The pattern repeats with a prime period: an element that lands in a wrong place, by a
whole chunk or segment for instance, shows up.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

PERIOD = 65521  # the largest prime below 2^16
# Up to here each dtype holds every integer; for float32 and wider types more than enough.
LIMITS = {"int8": 127, "uint8": 255, "int16": 32767, "bfloat16": 256, "float16": 2048}
_WIDE = 1 << 22
Integers = npt.NDArray[np.int64]


def _mixed(rank: int) -> Integers:
    """One number below PERIOD for each index of the period, another sequence for each rank."""
    index = np.arange(1, PERIOD + 1, dtype=np.int64)
    return (index * (40503 * (rank + 1) % PERIOD) + 7919 * rank) % PERIOD


def _summands(rank: int, ranks: int, limit: int) -> Integers:
    """Numbers >= 0 whose sum over all ranks is at most `limit` >= 1."""
    if ranks <= limit:
        return _mixed(rank) % (limit // ranks + 1)
    stride = math.ceil(ranks / limit)  # more ranks than that: each index takes ones from some of them only
    return ((np.arange(PERIOD) + rank) % stride == 0).astype(np.int64)


def period(rank: int, ranks: int, op: str, dtype: str) -> Integers:
    """One period of the input of `rank`, int64[PERIOD]; op is sum, avg, min, max or prod.

    Raises ValueError when no exact input exists: the average of more ranks than the dtype can count.
    """
    limit = LIMITS.get(dtype, _WIDE)
    if dtype == "bool":  # `or` needs mostly zeros, `and` mostly ones, to have results of both kinds
        rare = _mixed(rank) % (ranks + 1) == 0
        return (rare if op in ("sum", "max") else ~rare).astype(np.int64)
    if op in ("min", "max"):
        return _mixed(rank) % limit
    if op == "prod":  # of all ranks one has a 2 and one, perhaps the same, a 3
        index = np.arange(PERIOD)
        return np.where(index % (ranks + 1) == rank, 2, 1) * np.where(index // 3 % (ranks + 2) == rank, 3, 1)
    if op == "avg":  # multiples of the number of ranks, so that the division is exact
        if limit < ranks:
            raise ValueError(f"{dtype} cannot count {ranks} ranks exactly: check another dtype or give -c 0")
        return ranks * _summands(rank, ranks, limit // ranks)
    return _summands(rank, ranks, limit)


def storage(dtype: str) -> np.dtype[np.generic]:
    """The NumPy dtype that holds the values: bfloat16, which NumPy lacks, is kept as float32."""
    return np.dtype("float32" if dtype == "bfloat16" else dtype)


def _extended(values: Integers, count: int, dtype: str) -> npt.NDArray[np.generic]:
    return np.resize(values.astype(storage(dtype)), count)


def input_of(rank: int, ranks: int, op: str, dtype: str, count: int) -> npt.NDArray[np.generic]:
    """The input of `rank`: `count` elements."""
    return _extended(period(rank, ranks, op, dtype), count, dtype)


def expected(ranks: int, op: str, dtype: str, count: int) -> npt.NDArray[np.generic]:
    """The result on every rank: `count` elements, to be compared with ==."""
    combine = {"min": np.minimum, "max": np.maximum, "prod": np.multiply}.get(op, np.add)
    result = period(0, ranks, op, dtype)
    for rank in range(1, ranks):
        result = combine(result, period(rank, ranks, op, dtype))
    if op == "avg":
        result = result // ranks
    return _extended(result, count, dtype)
