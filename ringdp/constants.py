"""The numbers that Python and the core share: reduce operations, dtypes, kinds of operation."""

from __future__ import annotations

import enum


class ReduceOp(enum.IntEnum):
    """How the ranks' tensors become one. `docs/reductions.md` says what each does to which dtype."""

    Average = 0
    Sum = 1
    Min = 2
    Max = 3
    Product = 4
    Adasum = 5


Average, Sum, Min, Max, Product, Adasum = ReduceOp


class Dtype(enum.IntEnum):
    """The element types of the core."""

    bool = 0
    uint8 = 1
    int8 = 2
    int16 = 3
    int32 = 4
    int64 = 5
    float16 = 6
    bfloat16 = 7
    float32 = 8
    float64 = 9
    float8_e4m3fn = 10
    float8_e5m2 = 11


class OpKind(enum.IntEnum):
    """The kinds of named operation."""

    allreduce = 0
    reducescatter = 1
    broadcast = 2
    allgather = 3
    alltoall = 4
    barrier = 5
    join = 7
