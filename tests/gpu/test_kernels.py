"""Kernels for GPUs, from their sources as functions of the host: the same bits as the CPU's.

What nvcc makes of these sources is test_nvcc.py's; what a GPU makes of that, only a GPU can show.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from gpu import on_host
from unit.test_kernels import (
    BITS,
    DTYPES,
    FACTORS,
    FLOATS,
    INTEGERS,
    NAN,
    NOT_FINITE,
    RANKS,
    STORAGE,
    assert_same_bits,
    divide,
    pairs,
    random_patterns,
    reduce,
    scale,
    special_patterns,
)

OPERATIONS = {"sum": "Sum", "min": "Min", "max": "Max", "product": "Product"}
NUMBERS = INTEGERS + FLOATS
SIZES = (0, 1, 2, 3, 15, 16, 127, 4095, 4096, 4097, 3 * 4096 + 5)
SHIFTS = (
    (0, 0),
    (1, 1),
    (0, 1),
    (3, 0),
)  # elements from an address that divides by 16, of `to` and of what is read


def array(dtype: str, count: int, seed: int = 0) -> np.ndarray:
    return random_patterns(dtype, count, seed).view(STORAGE[dtype])


def test_every_kernel_is_there() -> None:
    names = set(on_host.kernels())
    wanted = {f"reduce_{d}_{o}" for d in DTYPES for o in OPERATIONS}
    wanted |= {f"{what}_{d}" for d in NUMBERS for what in ("scale", "divide")} | {
        f"finite_{d}" for d in FLOATS
    }
    casts = [(d, d) for d in DTYPES]
    for half, wide in itertools.product(("float16", "bfloat16"), ("float32", "float64")):
        casts += [(half, wide), (wide, half)]
    wanted |= {f"{what}_{a}_{b}" for a, b in casts for what in ("pack", "unpack")}
    of_replays = {"begin_replay", "compare_replays", "note_exchange", "stop"}
    assert names == wanted | {"quantise", "dequantise"} | of_replays


# --- one dtype, all values at which something changes -------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_reduce(dtype: str, operation: str) -> None:
    a, b = pairs(dtype)
    to = np.zeros_like(a)
    on_host.run(f"reduce_{dtype}_{operation}", 3, "QQQQ", to, a, b, a.size)
    assert_same_bits(dtype, to, reduce(dtype, OPERATIONS[operation], a, b), a, b)


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("factor", FACTORS)
def test_scale(dtype: str, factor: float) -> None:
    a, _ = pairs(dtype)
    to = np.zeros_like(a)
    on_host.run(f"scale_{dtype}", 3, "QQQd", to, a, a.size, factor)
    assert_same_bits(dtype, to, scale(dtype, a, factor), a)


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("ranks", RANKS)
def test_divide(dtype: str, ranks: int) -> None:
    a, _ = pairs(dtype)
    to = np.zeros_like(a)
    on_host.run(f"divide_{dtype}", 3, "QQQq", to, a, a.size, ranks)
    assert_same_bits(dtype, to, divide(dtype, a, ranks), a)


# --- sizes and addresses: the elements beside the array stay as they are ----------------------------------------------


def with_margins(dtype: str, count: int, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """(all, the part inside): what lies beside the part is 0x55 in every byte."""
    margin = 16
    room = on_host.placed(np.zeros(count + 2 * margin, STORAGE[dtype]), shift)
    room.view(np.uint8)[:] = 0x55
    return room, room[margin : margin + count]


def margins_are_untouched(room: np.ndarray) -> bool:
    return bool((room[:16].view(np.uint8) == 0x55).all() and (room[-16:].view(np.uint8) == 0x55).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", SIZES)
def test_sizes_and_addresses(dtype: str, count: int) -> None:
    a, b = array(dtype, count, 1), array(dtype, count, 2)
    wanted = reduce(dtype, "Max", a, b)
    for grid, (shift_to, shift_from) in itertools.product((1, 2, 7), SHIFTS):
        room, to = with_margins(dtype, count, shift_to)
        at_a, at_b = on_host.placed(a, shift_from), on_host.placed(b, shift_from)
        on_host.run(f"reduce_{dtype}_max", grid, "QQQQ", to, at_a, at_b, count)
        assert_same_bits(dtype, to, wanted, a, b)
        assert margins_are_untouched(room)
        if dtype == "bool":
            continue
        on_host.run(f"scale_{dtype}", grid, "QQQd", to, at_a, count, -3.0)
        assert_same_bits(dtype, to, scale(dtype, a, -3.0), a)
        on_host.run(f"divide_{dtype}", grid, "QQQq", to, at_a, count, 3)
        assert_same_bits(dtype, to, divide(dtype, a, 3), a)
        assert margins_are_untouched(room)


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_elements(dtype: str) -> None:
    count = 1_000_003
    a, b = array(dtype, count, 1), array(dtype, count, 2)
    to = np.zeros_like(a)
    on_host.run(f"reduce_{dtype}_sum", on_host.tiles(count), "QQQQ", to, a, b, count)
    assert_same_bits(dtype, to, reduce(dtype, "Sum", a, b), a, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shift", (0, 1))
def test_in_place(dtype: str, shift: int) -> None:
    a, b = array(dtype, 5003, 1), array(dtype, 5003, 2)
    wanted = reduce(dtype, "Product", a, b)
    at_a, at_b = on_host.placed(a, shift), on_host.placed(b, shift)
    on_host.run(f"reduce_{dtype}_product", 2, "QQQQ", at_a, at_a, at_b, a.size)
    assert_same_bits(dtype, at_a, wanted, a, b)
    at_a = on_host.placed(a, shift)
    on_host.run(f"reduce_{dtype}_product", 2, "QQQQ", at_b, at_a, at_b, a.size)
    assert_same_bits(dtype, at_b, wanted, a, b)
    if dtype != "bool":
        on_host.run(f"scale_{dtype}", 2, "QQQd", at_a, at_a, a.size, 0.5)
        assert_same_bits(dtype, at_a, scale(dtype, a, 0.5), a)
        at_a = on_host.placed(a, shift)
        on_host.run(f"divide_{dtype}", 2, "QQQq", at_a, at_a, a.size, 7)
        assert_same_bits(dtype, at_a, divide(dtype, a, 7), a)


# --- finite -------------------------------------------------------------------------------------------------------


def is_found(dtype: str, a: np.ndarray, before: int = 0) -> int:
    flag = np.array([before, 77], np.uint32)
    on_host.run(f"finite_{dtype}", 2, "QQQ", a, a.size, flag)
    assert flag[1] == 77
    return int(flag[0])


@pytest.mark.parametrize("dtype", FLOATS)
def test_each_pattern_is_finite_or_not(dtype: str) -> None:
    magnitude = np.iinfo(BITS[dtype]).max // 2
    for x in special_patterns(dtype):
        a = np.array([x], BITS[dtype])
        assert is_found(dtype, a) == (int(x) & magnitude >= NOT_FINITE[dtype]), hex(x)
        assert is_found(dtype, a, before=1) == 1  # never cleared


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shift", (0, 1))
def test_one_that_is_not_finite_is_found_wherever_it_is(dtype: str, shift: int) -> None:
    count = 2 * 4096 + 21
    a = on_host.placed(np.ones(count, BITS[dtype]), shift)
    assert is_found(dtype, a) == 0
    for i in [0, 1, 17, 4095, 4096, 8191, 8192, count - 1]:
        a[i] = NAN[dtype]
        assert is_found(dtype, a) == 1, i
        assert is_found(dtype, a[:i]) == 0 and is_found(dtype, a[i + 1 :]) == 0
        a[i] = 1
