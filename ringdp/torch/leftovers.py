"""What the plan's buckets did not bring: gradients that one rank alone has, or that came beside the plan.

Runs on all ranks of a step whose vote says that some rank filled zeros in for a missing gradient, or has a
gradient outside the plan. First the marks are merged (the greatest of each over all ranks), so that all ranks
know the same:

    has     a gradient came for this parameter of the plan. A parameter that has none on any rank keeps `grad`
            None, as in a single process; if any rank has one, all get the reduced view.
    extra   1: a gradient beside the plan's buckets; 2: the same, and the parameter has changed its shape or dtype.
    wanted  the parameter requires grad: it belongs in the next plan, unless it is sparse.
    lacks   no gradient came for it, and that is to be named if another rank has one (ringdp/torch/checks/missing.py).
    sparse  the number of sparse dimensions of its gradient; 0: it is dense.

Then the extra gradients go as one flat tensor per dtype and kind of memory, in the order of the parameters, with zeros
where a rank has none; and sparse ones by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ringdp.constants import Sum
from ringdp.torch import device
from ringdp.torch.slot import Slot
from ringdp.torch.sparse import sparse_allreduce_async
from ringdp.torch.weights import Weights
from ringdp.torch.wire import Wire

TellMissing = Callable[[Sequence[bool]], None]


def exchange_leftovers(
    wire: Wire,
    slots: Sequence[Slot],
    window: int,
    weights: Weights | None,
    tell_missing: TellMissing,
    lacking: Sequence[bool],
) -> list[Slot] | None:
    """Exchange what is left over.

    Args:
        weights: those of this window, if the gradients are weighed.
        lacking: which parameters' gradients this rank lacks, as far as it wants that to be named.
        tell_missing: is called on all ranks where some rank lacks what another has, with which parameters have one.

    Returns:
        The parameters of the next plan, or None if the plan may stay.
    """
    marks = torch.tensor(
        [
            [slot.came_in(window) for slot in slots],
            [_extra(slot) for slot in slots],
            [slot.param.requires_grad for slot in slots],
            [slot.sparse_dim for slot in slots],
            lacking,
        ],
        dtype=torch.uint8,
    )
    wire.max_(marks, "marks")
    has, extra, wanted, sparse, lacks = marks.tolist()
    for slot in slots:
        slot.sparse_dim = sparse[slot.index]
        if has[slot.index] and slot.window != window and slot.fits():
            slot.adopt()
    had = [not sparse[i] and (has[i] or extra[i] > 0) for i in range(len(slots))]
    if any(is_had and is_lacking for is_had, is_lacking in zip(had, lacks, strict=True)):
        tell_missing(had)
    beside = [slot for slot in slots if extra[slot.index]]
    divisors = _divisors(wire, weights) if weights is not None and beside else None
    _exchange_sparse(wire, [slot for slot in beside if slot.sparse_dim], divisors)
    dense = [slot for slot in beside if not slot.sparse_dim]
    for kind in dict.fromkeys(map(_kind_of, dense)):
        _exchange_flat(wire, kind, [slot for slot in dense if _kind_of(slot) == kind], divisors)
    for slot in slots:
        if slot.late:
            slot.forget()  # it came late, and was dropped by module.zero_grad()
    members = [slot for slot in slots if wanted[slot.index] and not slot.sparse_dim]
    stays = 2 not in extra and members == [slot for slot in slots if slot.planned]
    return None if stays else members


def lacks_gradient(slot: Slot, window: int) -> bool:
    """This rank has none for it in this window, and might have."""
    return slot.param.requires_grad and not slot.came_in(window) and not has_new_gradient(slot)


def has_new_gradient(slot: Slot) -> bool:
    """A gradient that no exchange has seen, beside the plan's buckets."""
    grad = slot.param.grad
    return grad is not None and (slot.late or (not slot.planned and grad is not slot.reduced))


def _is_late(slot: Slot) -> bool:
    """What is beside the plan for it came after its bucket had left."""
    return slot.planned and not slot.sparse_dim


def _extra(slot: Slot) -> int:
    if not has_new_gradient(slot):
        return 0
    return 2 if slot.planned and not slot.sparse_dim and not slot.fits() else 1


def _divisors(wire: Wire, weights: Weights) -> tuple[int, int]:
    """The sums over all ranks of what this window's gradients, and its late ones, stand for."""
    total, late = wire.sum([weights.total + weights.late, weights.late], "weights").wait().tolist()
    return max(total, 1), max(late or total, 1)


def _kind_of(slot: Slot) -> str:
    return device.kind_of(slot.param)


def _exchange_flat(wire: Wire, kind: str, beside: list[Slot], divisors: tuple[int, int] | None) -> None:
    """Of one dtype, and in one kind of memory."""
    counts = [slot.param.numel() for slot in beside]
    first = beside[0].param
    flat = first.new_zeros(sum(counts), dtype=wire.options.compression.on_wire(first.dtype))
    parts = [
        part.view(slot.param.shape) for slot, part in zip(beside, flat.split(counts), strict=True)
    ]  # zeros where this rank has nothing
    with torch.no_grad():
        for slot, part in zip(beside, parts, strict=True):
            if has_new_gradient(slot):
                part.copy_(slot.param.grad)
        wire.reduce_(flat, f"leftovers.{kind}", Sum if divisors else None)
        for slot, part in zip(beside, parts, strict=True):
            if divisors:
                part.div_(divisors[_is_late(slot)])
            else:
                wire.rescale(part)
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
        total = slot.param.new_empty_strided(entry.shape, entry.strides)
        total.zero_() if base is None else total.copy_(base)
    slot.forget()
    slot.param.grad = slot.reduced = total.add_(part)


def _exchange_sparse(wire: Wire, beside: list[Slot], divisors: tuple[int, int] | None) -> None:
    op = Sum if divisors else wire.options.op
    mine = [_sparse_of(slot) for slot in beside]
    handles = [
        sparse_allreduce_async(grad, f"{wire.name}.sparse.{slot.index}", op, wire.options.process_set)
        for slot, grad in zip(beside, mine, strict=True)
    ]
    for slot, handle in zip(beside, handles, strict=True):
        part = handle.wait()
        part = part / divisors[_is_late(slot)] if divisors else wire.rescale(part)
        base = slot.base if has_new_gradient(slot) else slot.param.grad
        slot.forget()
        slot.param.grad = slot.reduced = part if base is None else (base + part).detach()


def _sparse_of(slot: Slot) -> torch.Tensor:
    """What this rank has for the parameter, as a sparse tensor; without entries where it has nothing."""
    grad = slot.param.grad
    if not has_new_gradient(slot) or grad is None:
        shape = slot.param.shape
        values = slot.param.new_empty((0, *shape[slot.sparse_dim :]))
        indices = slot.param.new_empty((slot.sparse_dim, 0), dtype=torch.int64)
        return torch.sparse_coo_tensor(indices, values, shape, is_coalesced=True, check_invariants=False)
    if grad.layout is torch.strided:
        return grad.detach().to_sparse(slot.sparse_dim)
    return grad
