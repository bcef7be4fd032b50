"""The plan: which parameter lies where in which bucket, as a pure function of what the parameters look like.

Its text is what the ranks compare before the first exchange; its digest travels in the header of every bucket
and in every vote.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ringdp import _core
from ringdp.buckets import FIRST_BYTES
from ringdp.torch.adapter import DTYPES
from ringdp.torch.compression import Compressor, NoneCompressor

NO_LIMIT = 1 << 62
NO_GROUP = -1


@dataclass(frozen=True)
class Entry:
    """What the plan knows of a parameter."""

    name: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    group: int | None = None  # whose parameters are exchanged together
    on_gpu: bool = False

    @property
    def count(self) -> int:
        """Elements."""
        return torch.Size(self.shape).numel()

    def line(self) -> str:
        """The parameter in the plan's text: `conv.weight: float32[8, 3, 3, 3]`."""
        text = f"{self.name}: {DTYPES[self.dtype].name}{list(self.shape)}"
        if self.strides != row_major(self.shape):
            text += f", strides {list(self.strides)}"
        if self.on_gpu:
            text += ", on a GPU"
        return text if self.group is None else f"{text}, group {self.group}"


@dataclass(frozen=True)
class BucketPlan:
    """One bucket: `members` are positions in the plan's list of entries, `offsets` theirs in the bucket (elements).
    `tail` elements follow the `count` of the gradients."""

    dtype: torch.dtype
    count: int
    members: tuple[int, ...]
    offsets: tuple[int, ...]
    tail: int = 0


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
    tail: Callable[[torch.dtype], int] = lambda _: 0,
) -> Plan:
    """The plan for `entries`, whose gradients are expected in `order` (positions).

    Args:
        entries: the parameters, in the order of registration.
        order: a permutation of their positions.
        bucket_bytes: a bucket is full beyond this.
        options: further text that must be the same on all ranks, the compression's name included.
        compression: gives the dtype of each parameter in its bucket.
        tail: elements that a bucket of some dtype has besides.
    """
    buckets = _buckets(entries, order, bucket_bytes, compression, tail)
    # First what the user has made, then what follows from it: the first line that differs is the cause.
    lines = [f"options: {options}, buckets of {bucket_bytes} bytes"]
    lines += [entry.line() for entry in entries]
    for number, bucket in enumerate(buckets):
        for member, offset in zip(bucket.members, bucket.offsets, strict=True):
            lines.append(f"{entries[member].name} is in bucket {number} at {offset}")
    text = "\n".join(lines)
    digest = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
    return Plan(tuple(buckets), text, digest)


def _buckets(
    entries: Sequence[Entry],
    order: Sequence[int],
    bucket_bytes: int,
    compression: type[Compressor],
    tail: Callable[[torch.dtype], int],
) -> list[BucketPlan]:
    """Those of each group, and of what is in none, in each kind of memory; of several such parts, in the order in which
    they become complete."""
    parts = sorted({_part_of(entries[i]) for i in order})
    buckets = []
    for part in parts:
        members = [i for i in order if _part_of(entries[i]) == part]
        dtypes = [compression.on_wire(entries[i].dtype) for i in members]
        first, full = (
            (min(FIRST_BYTES, bucket_bytes), bucket_bytes) if part[0] == NO_GROUP else (NO_LIMIT, NO_LIMIT)
        )
        for _, count, places, offsets in _core.assign_buckets(
            [entries[i].count for i in members], [int(DTYPES[dtype]) for dtype in dtypes], first, full
        ):
            dtype = dtypes[places[0]]
            inside = tuple(members[i] for i in places)
            buckets.append(BucketPlan(dtype, count, inside, tuple(offsets), tail(dtype)))
    if len(parts) > 1:
        position = {member: i for i, member in enumerate(order)}
        buckets.sort(key=lambda bucket: max(position[member] for member in bucket.members))
    return buckets


def _part_of(entry: Entry) -> tuple[int, bool]:
    return NO_GROUP if entry.group is None else entry.group, entry.on_gpu
