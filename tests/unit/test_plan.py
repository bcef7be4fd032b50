"""Which tensor goes into which bucket (csrc/bucket/plan.h)."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from ringdp import _core
from ringdp.constants import Dtype

F32, F16, BF16, F64 = Dtype.float32, Dtype.float16, Dtype.bfloat16, Dtype.float64
BYTES: dict[int, int] = {F32: 4, F16: 2, BF16: 2, F64: 8}


def assign(
    tensors: Sequence[tuple[int, int]], first: int, limit: int
) -> list[tuple[int, int, list[int], list[int]]]:
    return _core.assign_buckets([n for n, _ in tensors], [int(d) for _, d in tensors], first, limit)


def test_a_bucket_is_closed_when_it_has_reached_its_limit() -> None:
    tensors = [(16, F32)] * 7
    assert assign(tensors, 64, 128) == [
        (F32, 16, [0], [0]),  # the first one is small
        (F32, 32, [1, 2], [0, 16]),
        (F32, 32, [3, 4], [0, 16]),
        (F32, 32, [5, 6], [0, 16]),
    ]


def test_what_is_left_over_is_the_last_bucket() -> None:
    assert assign([(16, F32)] * 4, 64, 128)[-1] == (F32, 16, [3], [0])


def test_a_tensor_larger_than_the_limit_has_its_bucket_alone() -> None:
    assert assign([(16, F32), (1000, F32), (16, F32)], 64, 128) == [
        (F32, 16, [0], [0]),
        (F32, 1000, [1], [0]),
        (F32, 16, [2], [0]),
    ]


def test_tensors_begin_on_64_byte_boundaries() -> None:
    assert assign([(1, F32), (17, F32), (3, F32)], 10**6, 10**6) == [(F32, 51, [0, 1, 2], [0, 16, 48])]
    assert assign([(1, F16), (33, F16), (3, F16)], 10**6, 10**6) == [(F16, 99, [0, 1, 2], [0, 32, 96])]


def test_each_dtype_has_its_own_buckets_in_the_order_in_which_they_are_complete() -> None:
    tensors = [(8, F32), (8, F16), (8, F32), (64, F16), (8, F64)]
    assert assign(tensors, 10**6, 10**6) == [
        (F32, 24, [0, 2], [0, 16]),
        (F16, 96, [1, 3], [0, 32]),
        (F64, 8, [4], [0]),
    ]


def test_no_tensors_no_buckets() -> None:
    assert assign([], 64, 128) == []


def test_tensors_of_no_elements_have_a_place_too() -> None:
    assert assign([(0, F32), (4, F32), (0, F32)], 10**6, 10**6) == [(F32, 16, [0, 1, 2], [0, 0, 16])]


@pytest.mark.parametrize("seed", range(20))
def test_every_tensor_is_in_one_bucket_and_none_overlap(seed: int) -> None:
    r = random.Random(seed)
    tensors = [(r.choice([0, 1, 5, 16, 100, 3000]), r.choice(list(BYTES))) for _ in range(60)]
    first, limit = r.choice([1, 64, 1024]), r.choice([256, 4096, 20000])
    buckets = assign(tensors, first, limit)
    assert sorted(i for _, _, indices, _ in buckets for i in indices) == list(range(len(tensors)))
    assert [indices[-1] for _, _, indices, _ in buckets] == sorted(
        indices[-1] for _, _, indices, _ in buckets
    )
    for dtype, count, indices, offsets in buckets:
        assert indices == sorted(indices)
        assert {tensors[i][1] for i in indices} == {dtype}
        assert all(offset * BYTES[dtype] % 64 == 0 for offset in offsets)
        ends = [offset + tensors[i][0] for i, offset in zip(indices, offsets, strict=True)]
        assert all(end <= offset for end, offset in zip(ends, offsets[1:], strict=False))
        assert count == ends[-1]
        full_before_last = offsets[-1] * BYTES[dtype]
        assert full_before_last < max(first, limit) + 64  # it was closed when its limit was reached
