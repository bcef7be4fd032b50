"""Gradients that are not finite: found on the rank that has them, before the exchange spreads them to all.

A bucket is looked at as it leaves, in one pass over its memory: so what has been accumulated, weighed, or cast to what
travels is looked at as it is sent. What comes beside the buckets is looked at before the vote.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ringdp import _core
from ringdp.errors import NonFiniteError
from ringdp.torch import device
from ringdp.torch.adapter import DTYPES
from ringdp.torch.bucket import Bucket
from ringdp.torch.checks.options import RAISE, SKIP, ZERO
from ringdp.torch.ops import operations
from ringdp.torch.sharded.covered import uncovered
from ringdp.torch.slot import Slot
from ringdp.torch.wire import Wire
from ringdp.words import MANY

NOTHING, ELEMENT, REPORTED = range(
    3
)  # what a rank has found: an element, or what a communication hook has reported
OUTCOMES = {
    RAISE: "no parameter was changed",
    SKIP: "no rank takes this step",
    ZERO: "zeros were exchanged instead",
}


@dataclass(frozen=True)
class Found:
    """The first element of a rank's gradients that is not finite, in the order in which they leave."""

    slot: int  # the parameter, by its place in the optimizer
    index: int  # flat, in row-major order
    value: float


def find(flat: torch.Tensor) -> int | None:
    """The first element of a dense CPU tensor, in the order of memory, that is not finite."""
    count = flat.numel()
    at = _core.kernels.find_not_finite(int(DTYPES[flat.dtype]), flat.data_ptr(), count)
    return None if at == count else at


def find_in_bucket(bucket: Bucket) -> Found | None:
    """What is to leave with it."""
    at = find(bucket.gradients)
    if at is None:
        return None
    for slot, entry, offset in zip(bucket.slots, bucket.entries, bucket.offsets, strict=True):
        if offset <= at < offset + entry.count:
            assert slot.place is not None
            return _first_of(slot.index, slot.place)
    raise AssertionError(f"element {at} of bucket {bucket.index} belongs to no parameter")


def find_in_gradient(number: int, grad: torch.Tensor | None, sent_as: torch.dtype) -> Found | None:
    """The same of one gradient, that of parameter `number`, if it is in host memory."""
    grad = uncovered(grad)
    if grad is None or not grad.is_floating_point() or device.is_on_gpu(grad):
        return None
    is_dense = grad.layout is torch.strided
    values = (grad.detach() if is_dense else grad.detach()._values()).to(sent_as)
    if (find(values) is None) if values.is_contiguous() else bool(torch.isfinite(values).all()):
        return None
    found = _first_of(number, values)
    return found if is_dense else _in_dense(found, grad)


def _in_dense(found: Found, grad: torch.Tensor) -> Found:
    """What was found in the values of a sparse gradient, by its place in the dense one."""
    per_entry = math.prod(grad._values().shape[1:])
    entry, inside = divmod(found.index, per_entry)
    place = 0
    for coordinate, size in zip(grad._indices()[:, entry].tolist(), grad.shape, strict=False):
        place = place * size + coordinate
    return Found(found.slot, place * per_entry + inside, found.value)


def zero_in_gradient(grad: torch.Tensor | None, sent_as: torch.dtype) -> None:
    """Put zeros into one gradient, on a GPU too: nothing waits for it."""
    grad = uncovered(grad)
    if grad is not None and grad.is_floating_point():
        values = grad.detach() if grad.layout is torch.strided else grad.detach()._values()
        values.masked_fill_(~torch.isfinite(values.to(sent_as)), 0.0)


def zero(flat: torch.Tensor) -> None:
    """Put zeros into a bucket. Nothing waits for a GPU."""
    with torch.no_grad():
        flat.nan_to_num_(0.0, 0.0, 0.0)


def _first_of(slot: int, tensor: torch.Tensor) -> Found:
    rows = tensor.detach().reshape(-1)
    index = int((~torch.isfinite(rows)).to(torch.uint8).argmax())
    return Found(slot, index, float(rows[index]))


# --- what all ranks hear ---


def tell(
    wire: Wire, slots: Sequence[Slot], found: Found | None, is_reported: bool, step: int
) -> NonFiniteError | None:
    """What the ranks have found, the same on all; None if none of them did. Collective."""
    row = [NOTHING, 0, 0, 0]
    if found is not None:
        row = [ELEMENT, found.slot, found.index, *struct.unpack("<q", struct.pack("<d", found.value))]
    elif is_reported:
        row[0] = REPORTED
    rows = operations.allgather(
        torch.tensor([row]), f"{wire.name}.not_finite", wire.options.process_set
    ).tolist()
    of_ranks = []
    for rank, (kind, slot, index, bits) in zip(wire.options.process_set.ranks or (), rows, strict=True):
        (value,) = struct.unpack("<d", struct.pack("<q", bits))
        if kind != NOTHING:
            of_ranks.append((rank, slots[slot] if kind == ELEMENT else None, index, value))
    if not of_ranks:
        return None
    parts = [_in_words(wire, *one) for one in of_ranks[:MANY]]
    if len(of_ranks) > MANY:
        parts.append(f"and so for {len(of_ranks) - MANY} other ranks")
    outcome = OUTCOMES[wire.options.checks.finite or RAISE]
    named = [
        (rank, slot.name if slot is not None else "", index, value) for rank, slot, index, value in of_ranks
    ]
    return not_finite_error(f"{wire.name}, step {step}: {'; '.join(parts)}: {outcome}", named)


def _in_words(wire: Wire, rank: int, slot: Slot | None, index: int, value: float) -> str:
    if slot is None:
        return f"rank {rank}: the communication hook has reported a gradient that is not finite"
    dtype = slot.param.dtype
    sent_as = wire.options.compression.on_wire(dtype)
    cast = f", sent as {str(sent_as).removeprefix('torch.')}" if sent_as is not dtype else ""
    return f"rank {rank} has {value} in the gradient of {slot.name}, at flat index {index}{cast}"


def not_finite_error(text: str, of_ranks: list[tuple[int, str, int, float]]) -> NonFiniteError:
    """`of_ranks`: (rank, parameter, flat index, value) each."""
    error = NonFiniteError(text)
    error.found = of_ranks
    error.rank, error.parameter, error.index, error.value = of_ranks[0]
    return error
