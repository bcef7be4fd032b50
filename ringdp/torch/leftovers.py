"""What the plan's buckets did not bring: gradients that one rank alone has, or that came beside the plan.

Runs on all ranks of a step whose vote says that some rank filled zeros in for a missing gradient, or has a
gradient outside the plan. First the marks are merged (the greatest of each over all ranks), so that all ranks
know the same:

    has     a gradient came for this parameter of the plan. A parameter that has none on any rank keeps `grad`
            None, as in a single process; if any rank has one, all get the reduced view.
    extra   1: a gradient beside the plan's buckets; 2: the same, and the parameter has changed its shape or dtype.
    wanted  the parameter requires grad: it belongs in the next plan.

Then the extra gradients go as one flat tensor per dtype, in the order of the parameters, with zeros where a
rank has none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ringdp.torch.slot import Slot
from ringdp.torch.wire import Wire


def exchange_leftovers(wire: Wire, slots: Sequence[Slot], window: int) -> list[Slot] | None:
    """Exchange what is left over.

    Returns:
        The parameters of the next plan, or None if the plan may stay.
    """
    marks = torch.tensor(
        [
            [slot.came_in(window) for slot in slots],
            [_extra(slot) for slot in slots],
            [slot.param.requires_grad for slot in slots],
        ],
        dtype=torch.uint8,
    )
    wire.max_(marks, "marks")
    has, extra, wanted = marks.tolist()
    for slot in slots:
        if has[slot.index] and slot.window != window and slot.fits():
            slot.adopt()
    beside = [slot for slot in slots if extra[slot.index]]
    for dtype in dict.fromkeys(slot.param.dtype for slot in beside):
        _exchange_flat(wire, dtype, [slot for slot in beside if slot.param.dtype == dtype])
    for slot in slots:
        if slot.late:
            slot.forget()  # it came late, and was dropped by module.zero_grad()
    stays = 2 not in extra and all(slot.planned == bool(wanted[slot.index]) for slot in slots)
    return None if stays else [slot for slot in slots if wanted[slot.index]]


def has_new_gradient(slot: Slot) -> bool:
    """A gradient that no exchange has seen, beside the plan's buckets."""
    grad = slot.param.grad
    return grad is not None and (slot.late or (not slot.planned and grad is not slot.reduced))


def _extra(slot: Slot) -> int:
    if not has_new_gradient(slot):
        return 0
    return 2 if slot.planned and not slot.fits() else 1


def _exchange_flat(wire: Wire, dtype: torch.dtype, beside: list[Slot]) -> None:
    counts = [slot.param.numel() for slot in beside]
    flat = torch.zeros(sum(counts), dtype=wire.options.compression.on_wire(dtype))
    parts = [
        part.view(slot.param.shape) for slot, part in zip(beside, flat.split(counts), strict=True)
    ]  # zeros where this rank has nothing
    with torch.no_grad():
        for slot, part in zip(beside, parts, strict=True):
            if has_new_gradient(slot):
                part.copy_(slot.param.grad)
        wire.reduce_(flat, f"leftovers.{dtype}")
        for slot, part in zip(beside, parts, strict=True):
            _take(slot, part)


def _take(slot: Slot, part: torch.Tensor) -> None:
    """Add the reduced part to what was exchanged before; `param.grad` is the sum, in the view where there is one."""
    base = slot.base if has_new_gradient(slot) else slot.param.grad
    if slot.fits():
        total = slot.memory()
        if base is None:
            total.zero_()
        elif not slot.in_view(base):
            total.copy_(base)
    else:
        entry = slot.entry()
        total = torch.empty_strided(entry.shape, entry.strides, dtype=entry.dtype)
        total.zero_() if base is None else total.copy_(base)
    slot.forget()
    slot.param.grad = slot.reduced = total.add_(part)
