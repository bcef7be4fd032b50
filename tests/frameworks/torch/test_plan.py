"""The plan as a pure function: where each parameter lies, and the text that the ranks compare."""

import pytest
import torch

from ringdp.torch.plan import Entry, lay_out, row_major, view_strides


def entry(name, *shape, dtype=torch.float32, strides=None):
    return Entry(name, shape, row_major(shape) if strides is None else strides, dtype)


def test_buckets_in_the_expected_order():
    entries = [entry("a", 100), entry("b", 10), entry("c", 300)]
    plan = lay_out(entries, [2, 1, 0], 1000, "o")
    assert [b.members for b in plan.buckets] == [(2,), (1, 0)]  # c alone fills a bucket of 1000 bytes
    assert [b.offsets for b in plan.buckets] == [(0,), (0, 16)]  # 64-byte boundaries
    assert [b.count for b in plan.buckets] == [300, 116]


def test_every_element_has_one_place():
    shapes = [(3, 5), (), (0, 4), (17,), (2, 2, 2), (1000,)]
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        entries = [entry(str(i), *shape, dtype=dtype) for i, shape in enumerate(shapes)]
        plan = lay_out(entries, [5, 4, 3, 2, 1, 0], 256, "")
        seen = sorted(m for bucket in plan.buckets for m in bucket.members)
        assert seen == list(range(len(shapes)))
        for bucket in plan.buckets:
            taken = []
            for member, offset in zip(bucket.members, bucket.offsets, strict=True):
                assert offset * dtype.itemsize % 64 == 0
                taken += range(offset, offset + entries[member].count)
            assert len(set(taken)) == len(taken) and all(i < bucket.count for i in taken)


def test_dtypes_never_share_a_bucket():
    entries = [entry("a", 4), entry("b", 4, dtype=torch.bfloat16), entry("c", 4)]
    plan = lay_out(entries, [0, 1, 2], 1 << 20, "")
    assert {(b.dtype, b.members) for b in plan.buckets} == {(torch.float32, (0, 2)), (torch.bfloat16, (1,))}


def test_the_text_names_the_cause_first():
    text = lay_out([entry("w", 2, 3), entry("b", 3)], [1, 0], 1024, "op Sum").text
    assert text.splitlines() == [
        "options: op Sum, buckets of 1024 bytes",
        "w: float32[2, 3]",
        "b: float32[3]",
        "b is in bucket 0 at 0",
        "w is in bucket 0 at 16",
    ]


@pytest.mark.parametrize(
    "other",
    [
        [entry("w", 2, 3), entry("c", 3)],
        [entry("w", 3, 2), entry("b", 3)],
        [entry("w", 2, 3, strides=(1, 2)), entry("b", 3)],
        [entry("w", 2, 3), entry("b", 3, dtype=torch.float16)],
        [entry("w", 2, 3)],
    ],
)
def test_the_digest_tells_plans_apart(other):
    mine = lay_out([entry("w", 2, 3), entry("b", 3)], [1, 0], 1024, "")
    assert mine.digest == lay_out([entry("w", 2, 3), entry("b", 3)], [1, 0], 1024, "").digest
    theirs = lay_out(other, list(reversed(range(len(other)))), 1024, "")
    assert theirs.digest != mine.digest
    assert lay_out([entry("w", 2, 3), entry("b", 3)], [0, 1], 1024, "").digest != mine.digest


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, 3),
        torch.zeros(2, 3).t(),
        torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.zeros(4, 1, 3),
        torch.zeros(3, 4).t()[:, :1].t(),
        torch.zeros(()),
    ],
    ids=["row_major", "transposed", "channels_last", "ones", "row", "scalar"],
)
def test_dense_parameters_keep_their_strides(tensor):
    assert view_strides(tensor.shape, tensor.stride()) == tensor.stride()


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(8)[::2], torch.zeros(3, 1).expand(3, 4), torch.zeros(4, 4)[:, :2]],
    ids=["gaps", "expanded", "columns"],
)
def test_others_get_row_major_ones(tensor):
    assert view_strides(tensor.shape, tensor.stride()) == torch.empty(tensor.shape).stride()
