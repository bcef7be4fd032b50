"""The plan: which parameter lies where in which bucket, as a pure function of what the parameters look like.

Its text is what the ranks compare before the first exchange; its digest travels in the header of every bucket
and in every vote.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ringdp import _core
from ringdp.torch.adapter import DTYPES
from ringdp.torch.compression import Compressor, NoneCompressor

MIB = 1 << 20
FIRST_BYTES = MIB  # the first bucket is small, so that the exchange starts early in the backward pass


@dataclass(frozen=True)
class Entry:
    """What the plan knows of a parameter."""

    name: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @property
    def count(self) -> int:
        """Elements."""
        return torch.Size(self.shape).numel()

    def line(self) -> str:
        """The parameter in the plan's text: `conv.weight: float32[8, 3, 3, 3]`."""
        text = f"{self.name}: {DTYPES[self.dtype].name}{list(self.shape)}"
        return text if self.strides == row_major(self.shape) else f"{text}, strides {list(self.strides)}"


@dataclass(frozen=True)
class BucketPlan:
    """One bucket: `members` are positions in the plan's list of entries, `offsets` theirs in the bucket (elements)."""

    dtype: torch.dtype
    count: int
    members: tuple[int, ...]
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """The buckets in the order in which they leave."""

    buckets: tuple[BucketPlan, ...]
    text: str
    digest: int


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a dense row-major tensor (of torch: dimensions of size 0 count as 1)."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))


def view_strides(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """A parameter's own strides if its elements fill their memory without gap or overlap, else row-major ones.

    So a view of the bucket lies in memory as the parameter does (channels_last included), and optimizers walk
    both alike.
    """
    expected = 1
    for step, n in sorted((step, n) for step, n in zip(strides, shape, strict=True) if n > 1):
        if step != expected:
            return row_major(shape)
        expected *= n
    return tuple(strides) if 0 not in shape else row_major(shape)


def lay_out(
    entries: Sequence[Entry],
    order: Sequence[int],
    bucket_bytes: int,
    options: str,
    compression: type[Compressor] = NoneCompressor,
) -> Plan:
    """The plan for `entries`, whose gradients are expected in `order` (positions).

    Args:
        entries: the parameters, in the order of registration.
        order: a permutation of their positions.
        bucket_bytes: a bucket is full beyond this.
        options: further text that must be the same on all ranks, the compression's name included.
        compression: gives the dtype of each parameter in its bucket.
    """
    counts = [entries[i].count for i in order]
    dtypes = [compression.on_wire(entries[i].dtype) for i in order]
    buckets = tuple(
        BucketPlan(dtypes[members[0]], count, tuple(order[m] for m in members), tuple(offsets))
        for _, count, members, offsets in _core.assign_buckets(
            counts, [int(DTYPES[dtype]) for dtype in dtypes], min(FIRST_BYTES, bucket_bytes), bucket_bytes
        )
    )
    # First what the user has made, then what follows from it: the first line that differs is the cause.
    lines = [f"options: {options}, buckets of {bucket_bytes} bytes"]
    lines += [entry.line() for entry in entries]
    for number, bucket in enumerate(buckets):
        for member, offset in zip(bucket.members, bucket.offsets, strict=True):
            lines.append(f"{entries[member].name} is in bucket {number} at {offset}")
    text = "\n".join(lines)
    digest = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
    return Plan(buckets, text, digest)
