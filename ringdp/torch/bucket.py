"""Buckets: gradients that are exchanged together.

Where the ranks share memory, a bucket is the list of its gradients: they pass through the core's staging areas, and
nothing is kept twice. What goes by messages lies in one place, and so does what is cast to 16 bits: there the bucket has
memory of its own, and the gradients have places in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ringdp.torch.memory import bucket_memory
from ringdp.torch.plan import BucketPlan
from ringdp.torch.slot import Slot


class Bucket:
    """One bucket of a plan. Of its memory, if it has any, the elements between the parameters stay zero."""

    def __init__(self, index: int, plan: BucketPlan, members: Sequence[Slot], shares_memory: bool) -> None:
        """shares_memory: of all ranks, as `engine.shares_memory` says."""
        self.index = index
        self.slots = [members[i] for i in plan.members]
        self.dtype = plan.dtype
        self.bytes = plan.count * plan.dtype.itemsize
        self.waiting = 0  # gradients that have not come in this pass
        casts = any(slot.planned_as.dtype != plan.dtype for slot in self.slots)
        self.flat = None if shares_memory and not casts else bucket_memory(plan.count, plan.dtype)
        for slot, offset in zip(self.slots, plan.offsets, strict=True):
            entry = slot.planned_as
            slot.join(
                self, None if self.flat is None else self.flat.as_strided(entry.shape, entry.strides, offset)
            )

    def tensors(self) -> list[torch.Tensor]:
        """Where it lies, in order."""
        return [slot.memory() for slot in self.slots] if self.flat is None else [self.flat]

    def complete(self, window: int) -> bool:
        """Every gradient came in this window."""
        return all(slot.came_in(window) for slot in self.slots)

    def fill(self, window: int, sparse_as_dense: bool) -> bool:
        """The bucket is about to leave: whatever did not come is filled in. False if a gradient is missing."""
        complete = True
        for slot in self.slots:
            if not slot.came_in(window):
                grad = slot.param.grad
                if grad is not None and grad.layout is not torch.strided:
                    grad = slot.densify(grad, sparse_as_dense)
                complete &= slot.fill(grad, window)
            if slot.window == window:
                slot.pack()
        return complete

    def came_back(self, window: int) -> None:
        """It is reduced."""
        torch.autograd.graph.increment_version(self.tensors())  # the core wrote behind autograd's back
        for slot in self.slots:
            if slot.window == window:
                slot.came_back()
