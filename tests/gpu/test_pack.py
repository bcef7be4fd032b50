"""Pack and unpack, as functions of the host: the bits of the CPU's scale and cast; what lies between tensors stays."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from gpu import on_host
from gpu.test_kernels import array
from unit.test_kernels import (
    BITS,
    DTYPES,
    FACTORS,
    FLOATS,
    NAN,
    NOT_FINITE,
    STORAGE,
    assert_same_bits,
    pairs,
    scale,
)

from ringdp import _core

HALVES, WIDES = ("float16", "bfloat16"), ("float32", "float64")
CASTS = [pair for h, w in itertools.product(HALVES, WIDES) for pair in ((h, w), (w, h))]
ALL = [(d, d) for d in DTYPES] + CASTS
SCALED = [(s, t, f) for s, t in ALL for f in FACTORS if s != "bool" or f == 1]
PLAIN_OR_SCALED = [(s, t, f) for s, t in ALL for f in (1.0, -3.0) if s != "bool" or f == 1]
COUNTS = (5, 0, 1, 4096, 4097, 2, 3, 127, 3 * 4096 + 9, 16, 0, 8)
GAP = 3  # elements between tensors in the bucket, of which every second begins where 16 divides its address


def cast(source: str, target: str, values: np.ndarray) -> np.ndarray:
    """By the CPU's kernels."""
    to = np.empty(values.shape, STORAGE[target])
    if source in WIDES:
        narrow, wide, function = target, source, _core.kernels.narrow
        arguments = (DTYPES.index(narrow), to.ctypes.data, DTYPES.index(wide), values.ctypes.data)
    else:
        narrow, wide, function = source, target, _core.kernels.widen
        arguments = (DTYPES.index(wide), to.ctypes.data, DTYPES.index(narrow), values.ctypes.data)
    function(*arguments, values.size)
    return to


def expected(source: str, target: str, values: np.ndarray, factor: float) -> np.ndarray:
    """The product is taken in the wider dtype."""
    if source == target:
        return values if factor == 1 else scale(source, values, factor)
    if source in WIDES:
        return cast(source, target, scale(source, values, factor))
    return scale(target, cast(source, target, values), factor)


def layout(counts: tuple[int, ...]) -> tuple[list[int], int]:
    """Where each tensor begins in the bucket, and how many elements that has: gaps before, between and behind."""
    firsts, at = [], GAP
    for i, count in enumerate(counts):
        if i % 2:
            at += -at % 16
        firsts.append(at)
        at += count + GAP
    return firsts, at


def poisoned(count: int, dtype: str, shift: int = 0) -> np.ndarray:
    made = on_host.placed(np.zeros(count, STORAGE[dtype]), shift)
    made.view(np.uint8)[:] = 0x55
    return made


def move(
    way: str,
    source: str,
    target: str,
    tensors: list[np.ndarray],
    firsts: list[int],
    bucket: np.ndarray,
    factor: float,
    flag: np.ndarray | int = 0,
    grid: int = 5,
) -> None:
    """`way`: pack or unpack; `source`: the dtype that is read."""
    table, entries, tiles = on_host.table(tensors, firsts)
    on_host.run(f"{way}_{source}_{target}", grid, "QQQQdQ", table, entries, tiles, bucket, factor, flag)


# --- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source, target, factor", SCALED)
def test_values(source: str, target: str, factor: float) -> None:
    a, _ = pairs(source)
    wanted = expected(source, target, a, factor)
    for way in ("pack", "unpack"):
        to = poisoned(a.size, target)
        tensors, bucket = ([a], to) if way == "pack" else ([to], a)
        move(way, source, target, tensors, [0], bucket, factor)
        assert_same_bits(target, to, wanted)


# --- many tensors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source, target, factor", PLAIN_OR_SCALED)
@pytest.mark.parametrize("shift", (0, 1))
def test_many_tensors_into_a_bucket(source: str, target: str, factor: float, shift: int) -> None:
    tensors = [on_host.placed(array(source, n, i), shift * (i % 3)) for i, n in enumerate(COUNTS)]
    firsts, size = layout(COUNTS)
    wanted = poisoned(size, target)
    for tensor, first in zip(tensors, firsts, strict=True):
        wanted[first : first + tensor.size] = expected(source, target, tensor, factor)
    for grid in (1, 4, 100):
        bucket = poisoned(size, target, shift)
        move("pack", source, target, tensors, firsts, bucket, factor, grid=grid)
        assert_same_bits(target, bucket, wanted)


@pytest.mark.parametrize("source, target, factor", PLAIN_OR_SCALED)
@pytest.mark.parametrize("shift", (0, 1))
def test_a_bucket_to_many_tensors(source: str, target: str, factor: float, shift: int) -> None:
    firsts, size = layout(COUNTS)
    bucket = on_host.placed(array(source, size), shift)
    for grid in (1, 4, 100):
        rooms = [poisoned(n + 2 * 16, target, shift * (i % 3)) for i, n in enumerate(COUNTS)]
        tensors = [room[16 : 16 + n] for room, n in zip(rooms, COUNTS, strict=True)]
        move("unpack", source, target, tensors, firsts, bucket, factor, grid=grid)
        for room, tensor, first in zip(rooms, tensors, firsts, strict=True):
            wanted = expected(source, target, bucket[first : first + tensor.size], factor)
            assert_same_bits(target, tensor, wanted)
            assert (room[:16].view(np.uint8) == 0x55).all() and (room[-16:].view(np.uint8) == 0x55).all()


def test_a_thousand_tensors() -> None:
    counts = tuple(int(n) for n in np.random.default_rng(1).integers(1, 300, 1000))
    tensors = [array("float32", n, i) for i, n in enumerate(counts)]
    firsts, size = layout(counts)
    bucket, wanted = poisoned(size, "float32"), poisoned(size, "float32")
    for tensor, first in zip(tensors, firsts, strict=True):
        wanted[first : first + tensor.size] = tensor
    move("pack", "float32", "float32", tensors, firsts, bucket, 1.0, grid=1000)
    assert_same_bits("float32", bucket, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bucket_that_is_its_own_tensor(dtype: str) -> None:
    """In place: gradients that are views of their bucket are only scaled."""
    bucket = on_host.placed(array(dtype, 10_000), 0)
    views, before = [bucket[3:4100], bucket[4100:10_000]], bucket.copy()
    move("pack", dtype, dtype, views, [3, 4100], bucket, 1.0 if dtype == "bool" else 0.5)
    assert_same_bits(dtype, bucket[:3], before[:3])
    assert_same_bits(dtype, bucket[3:], before[3:] if dtype == "bool" else scale(dtype, before[3:], 0.5))


# --- the flag -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source, target", [pair for pair in ALL if pair[0] in FLOATS])
@pytest.mark.parametrize("factor", (1.0, 0.0))
@pytest.mark.parametrize("shift", (0, 1))
def test_what_is_not_finite_is_found(source: str, target: str, factor: float, shift: int) -> None:
    """Where it is read: in a tensor, not beside it; whatever the factor makes of it."""
    firsts, size = layout(COUNTS)
    for way in ("pack", "unpack"):
        bucket = poisoned(size, target if way == "pack" else source)
        tensors = [
            on_host.placed(np.ones(n, BITS[source if way == "pack" else target]), shift) for n in COUNTS
        ]
        if way == "unpack":
            bucket.view(BITS[source])[:] = NAN[source]  # the gaps hold it
        read = tensors if way == "pack" else [bucket[f : f + n] for f, n in zip(firsts, COUNTS, strict=True)]
        bits = [part.view(BITS[source]) for part in read]
        for part in bits:
            part[:] = 1
        flag = np.array([0, 77], np.uint32)
        move(way, source, target, tensors, firsts, bucket, factor, flag)
        assert flag.tolist() == [0, 77]
        for part in bits:
            for i in {0, part.size // 2, part.size - 1} if part.size else ():
                part[i] = NOT_FINITE[source]
                flag[0] = 0
                move(way, source, target, tensors, firsts, bucket, factor, flag)
                assert flag.tolist() == [1, 77]
                part[i] = 1
        move(way, source, target, tensors, firsts, bucket, factor, flag)
        assert flag.tolist() == [1, 77]  # never cleared


@pytest.mark.parametrize("source, target", CASTS)
def test_an_overflow_by_the_cast_is_not_what_was_read(source: str, target: str) -> None:
    largest = np.array([NOT_FINITE[source]], BITS[source]) - 1
    to, flag = poisoned(1, target), np.zeros(1, np.uint32)
    move("pack", source, target, [largest.view(STORAGE[source])], [0], to, 2.0, flag)
    assert flag[0] == 0
