"""Every kernel on every dtype: bit for bit what float64 gives in NumPy, which the CPU's kernels give as well.

Of odd sizes, from addresses that fit words of 16 bytes and others, in place, of all pairs of special values; and no
byte beside an array changes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cupy
import numpy as np
from gpu.int8_values import values as int8_values
from gpu.test_kernels import array
from gpu.test_pack import ALL, layout
from unit import test_kernels as cpu
from unit.test_kernels import (
    BITS,
    DTYPES,
    FACTORS,
    FLOATS,
    NAN,
    NOT_FINITE,
    OPERATIONS,
    STORAGE,
    assert_same_bits,
    pairs,
    special_patterns,
)

from gpu_check import references
from gpu_check.device import Room, end_memory_with_arrays, poisoned
from gpu_check.parts import ONLY_A_FEW
from gpu_check.results import Result, Results
from ringdp import _core

NUMBER = {dtype: i for i, dtype in enumerate(DTYPES)}
SCALED = DTYPES[1:]  # bool has no factor
COUNTS = (5, 0, 1, 4096, 4097, 2, 3, 127, 3 * 4096 + 9)  # of the tensors of a bucket

k = _core.gpu.kernels


@dataclass(frozen=True)
class Scope:
    """What each kernel is tried with."""

    sizes: tuple[int, ...] = (0, 1, 2, 3, 127, 4097, 1_000_003)
    shifts: tuple[tuple[int, int], ...] = (
        (0, 0),
        (1, 0),
        (0, 1),
        (1, 1),
    )  # of what is written and read, in elements
    factors: tuple[float, ...] = FACTORS
    ranks: tuple[int, ...] = (1, 2, 3, 7, 1000)
    blocks: tuple[int, ...] = (1, 3, 32, 100, 256)
    special: bool = True  # values one by one, and all pairs of them


QUICK = Scope((0, 1, 3, 127, 4097), factors=FACTORS[::4], ranks=(1, 3, 1000), blocks=(1, 32, 256))
# Under compute-sanitizer, where a launch takes tens of times as long.
TINY = Scope((1, 127, 4097), ((0, 0), (1, 1)), (0.5,), (3,), (3, 256), special=False)


class Gpu:
    """Where the launches of a part go, and how many there were."""

    def __init__(self, scope: Scope) -> None:
        self.scope, self.launches = scope, 0

    def __call__(self, launch: Callable[..., None], *arguments: object) -> None:
        self.launches += 1
        launch(0, cupy.cuda.get_current_stream().ptr, *arguments)

    def inputs(self, dtype: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for size in self.scope.sizes:
            yield array(dtype, size, 1), array(dtype, size, 2)
        if self.scope.special:
            yield pairs(dtype)


def run(results: Results) -> None:
    only_a_few = ONLY_A_FEW in os.environ
    if only_a_few:
        end_memory_with_arrays()
    gpu = Gpu(TINY if only_a_few else QUICK if results.quick else Scope())
    with cupy.cuda.Device(0), cupy.cuda.Stream(non_blocking=True):
        for dtype in DTYPES:
            one(results, gpu, f"reduce {dtype}", check_reduce, dtype)
        for dtype in SCALED:
            one(results, gpu, f"scale {dtype}", check_scale, dtype)
            one(results, gpu, f"divide {dtype}", check_divide, dtype)
        for dtype in FLOATS:
            one(results, gpu, f"finite {dtype}", check_finite, dtype)
        for source, target in ALL:
            one(results, gpu, f"pack {source} to {target}", check_pack, source, target)
            one(results, gpu, f"unpack {source} to {target}", check_unpack, source, target)
        for block in gpu.scope.blocks:
            one(results, gpu, f"int8 in blocks of {block}", check_int8, block)


def one(results: Results, gpu: Gpu, name: str, check: Callable[..., None], *given: object) -> Result:
    before = gpu.launches
    with results.check(name, "same bits as float64 in NumPy and the CPU's kernels") as result:
        check(gpu, *given)
        result.figures["launches"] = (gpu.launches - before, "")
    return result


def check_reduce(gpu: Gpu, dtype: str) -> None:
    for op, operation in enumerate(OPERATIONS):
        if operation == "Average":
            continue
        for a, b in gpu.inputs(dtype):
            wanted = references.reduce(dtype, operation, a, b)
            assert_same_bits(dtype, cpu.reduce(dtype, operation, a, b), wanted, a, b)
            for shift_to, shift_from in gpu.scope.shifts:
                at_a, at_b = Room(a, shift_from), Room(b, shift_from)
                to = poisoned(a.dtype, a.size, shift_to)
                for target in (to, at_a):  # the second: in place
                    gpu(k.reduce, NUMBER[dtype], op, target.address, at_a.address, at_b.address, a.size)
                    assert_same_bits(dtype, target.get(), wanted, a, b)


def check_elementwise(
    gpu: Gpu,
    dtype: str,
    launch: Callable[[Room, Room, int], None],
    wanted: Callable[[np.ndarray], np.ndarray],
) -> None:
    for a, _ in gpu.inputs(dtype):
        expected = wanted(a)
        for shift_to, shift_from in gpu.scope.shifts:
            at_a, to = Room(a, shift_from), poisoned(a.dtype, a.size, shift_to)
            for target in (to, at_a):
                launch(target, at_a, a.size)
                assert_same_bits(dtype, target.get(), expected, a)


def check_scale(gpu: Gpu, dtype: str) -> None:
    for factor in gpu.scope.factors:
        check_by_number(gpu, dtype, k.scale, cpu.scale, references.scale, factor)


def check_divide(gpu: Gpu, dtype: str) -> None:
    for ranks in gpu.scope.ranks:
        check_by_number(gpu, dtype, k.divide, cpu.divide, references.divide, ranks)


def check_by_number(gpu: Gpu, dtype: str, kernel: Any, on_cpu: Any, reference: Any, number: float) -> None:
    """What multiplies or divides each element by one number: three times the same, `number` their last argument."""

    def launch(to: Room, from_: Room, count: int) -> None:
        gpu(kernel, NUMBER[dtype], to.address, from_.address, number, count)

    def wanted(a: np.ndarray) -> np.ndarray:
        expected = reference(dtype, a, number)
        assert_same_bits(dtype, on_cpu(dtype, a, number), expected, a)
        return expected

    check_elementwise(gpu, dtype, launch, wanted)


# --- the flag ---------------------------------------------------------------------------------------------------------


def flag_after(launch: Callable[[int], None]) -> int:
    flag = Room(np.zeros(1, np.uint32))
    launch(flag.address)
    return int(flag.get()[0])


def check_finite(gpu: Gpu, dtype: str) -> None:
    infinity = NOT_FINITE[dtype]

    def found(bits: np.ndarray, shift: int) -> int:
        there = Room(bits, shift)
        return flag_after(lambda flag: gpu(k.finite, NUMBER[dtype], there.address, bits.size, flag))

    for size in gpu.scope.sizes:
        for shift in (0, 1):
            bits = np.full(size, infinity - 1, BITS[dtype])  # the largest number
            assert found(bits, shift) == 0, "the largest number was taken for none"
            for at in sorted({0, size // 2, size - 1}) if size else ():
                for bad in (infinity, NAN[dtype]):
                    broken = bits.copy()
                    broken[at] = bad
                    assert found(broken, shift) == 1, f"element {at} of {size}, {bad:#x}, was not found"
    for one_of_them in special_patterns(dtype).view(STORAGE[dtype]) if gpu.scope.special else ():
        wanted = not np.isfinite(references.to_float64(dtype, np.array([one_of_them])))[0]
        assert found(np.array([one_of_them]).view(BITS[dtype]), 0) == wanted, one_of_them


# --- buckets ----------------------------------------------------------------------------------------------------------


def table_of(
    dtype: str, rooms: list[Room], counts: tuple[int, ...], firsts: list[int]
) -> tuple[Room, int, int]:
    rows, entries, tiles = k.table(
        NUMBER[dtype], [(r.address, n, f) for r, n, f in zip(rooms, counts, firsts, strict=True)]
    )
    return Room(np.frombuffer(rows, np.uint64)), entries, tiles


def factors_for(source: str) -> tuple[float, ...]:
    return (1.0,) if source == "bool" else (1.0, -3.0, 1 / 3)


def check_pack(gpu: Gpu, source: str, target: str) -> None:
    counts = COUNTS + (gpu.scope.sizes[-1],)
    firsts, size = layout(counts)
    for factor in factors_for(source):
        for shift in (0, 1):
            tensors = [array(source, n, i) for i, n in enumerate(counts)]
            rooms = [Room(t, shift * (i % 3)) for i, t in enumerate(tensors)]
            table, entries, tiles = table_of(source, rooms, counts, firsts)
            bucket = poisoned(STORAGE[target], size, shift)
            wanted = np.full(size * STORAGE[target].itemsize, 0x77, np.uint8).view(STORAGE[target])
            for tensor, first in zip(tensors, firsts, strict=True):
                wanted[first : first + tensor.size] = references.move(source, target, tensor, factor)
            words = NUMBER[source], NUMBER[target], (table.address, entries, tiles), bucket.address, factor
            flag = flag_after(lambda flag, words=words: gpu(k.pack, *words, flag))
            assert_same_bits(target, bucket.get(), wanted)
            assert flag == has_no_number(source, tensors), "the flag"


def check_unpack(gpu: Gpu, source: str, target: str) -> None:
    counts = COUNTS + (gpu.scope.sizes[-1],)
    firsts, size = layout(counts)
    for factor in factors_for(source):
        for shift in (0, 1):
            values = array(source, size, 9)
            bucket = Room(values, shift)
            rooms = [poisoned(STORAGE[target], n, shift * (i % 3)) for i, n in enumerate(counts)]
            table, entries, tiles = table_of(target, rooms, counts, firsts)
            words = NUMBER[source], NUMBER[target], (table.address, entries, tiles), bucket.address, factor
            flag = flag_after(lambda flag, words=words: gpu(k.unpack, *words, flag))
            parts = [values[first : first + n] for first, n in zip(firsts, counts, strict=True)]
            for room, part in zip(rooms, parts, strict=True):
                assert_same_bits(target, room.get(), references.move(source, target, part, factor))
            assert flag == has_no_number(source, parts), "the flag"


def has_no_number(dtype: str, tensors: list[np.ndarray]) -> bool:
    return dtype in FLOATS and not all(np.isfinite(references.to_float64(dtype, t)).all() for t in tensors)


# --- int8 -------------------------------------------------------------------------------------------------------------


def check_int8(gpu: Gpu, block: int) -> None:
    for count in gpu.scope.sizes:
        x = int8_values(count, block)
        wanted = references.quantise(x, block)
        for shift, wire_shift in ((0, 0), (1, 0), (0, 1), (3, 7)):
            there, wire = Room(x, shift), poisoned(np.dtype(np.uint8), wanted.size, wire_shift)
            gpu(k.quantise, wire.address, there.address, count, block)
            assert np.array_equal(wire.get(), wanted.ravel()), f"codes of {count} values"
            back = poisoned(np.dtype(np.float32), count, shift)
            gpu(k.dequantise, back.address, wire.address, count, block)
            expected = references.dequantise(wanted, count)
            assert_same_bits("float32", back.get(), expected)
