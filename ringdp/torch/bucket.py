"""Buckets: flat memory, and the places in it of the parameters' gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ringdp.constants import Max, Min, Product, ReduceOp
from ringdp.torch import device
from ringdp.torch.memory import bucket_memory
from ringdp.torch.packing import Packing
from ringdp.torch.plan import BucketPlan
from ringdp.torch.slot import Slot


class Bucket:
    """The memory of one bucket of a plan. Elements between the parameters stay zero; `tail` is what travels besides."""

    def __init__(self, index: int, plan: BucketPlan, members: Sequence[Slot]) -> None:
        self.index = index
        self.slots = [members[i] for i in plan.members]
        self.entries, self.offsets = [slot.planned_as for slot in self.slots], plan.offsets
        self.flat = bucket_memory(plan.count + plan.tail, plan.dtype, self.slots[0].param)
        self._packing = Packing(self.flat)
        self.gpu = device.gpu_of(self.flat) if device.is_on_gpu(self.flat) else None
        self.gradients, self.tail = self.flat.split([plan.count, plan.tail])
        self.waiting = 0  # gradients that have not come in this pass
        for slot, offset in zip(self.slots, plan.offsets, strict=True):
            entry = slot.planned_as
            slot.join(self, self.flat.as_strided(entry.shape, entry.strides, offset))

    def complete(self, window: int) -> bool:
        """Every gradient came in this window."""
        return all(slot.came_in(window) for slot in self.slots)

    def fill(self, window: int, densify: bool) -> bool:
        """The bucket is about to leave: whatever did not come is filled in. False if a gradient is missing."""
        complete = True
        if self.gpu is not None:
            self._wait_for_other_streams([slot for slot in self.slots if slot.came_in(window)])
        for slot in self.slots:
            if not slot.came_in(window):
                grad = slot.param.grad
                if grad is not None and grad.layout is not torch.strided:
                    grad = slot.dense_or_beside(grad, densify)
                complete &= slot.fill(grad, window)
        came = [slot for slot in self.slots if slot.window == window]
        self._packing.pack([copy for slot in came for copy in slot.copies_in()])
        return complete

    def _wait_for_other_streams(self, came: Sequence[Slot]) -> None:
        """On the GPU, where backward passes ran in other streams than the current one."""
        assert self.gpu is not None
        current = device.current_stream(self.gpu)
        elsewhere = [slot for slot in came if slot.stream != current]
        if elsewhere:
            device.follow(self.gpu, {slot.stream for slot in elsewhere})
        for slot in elsewhere:
            if slot.param.grad is not None:
                device.used_in_current_stream(slot.param.grad)

    def fill_with_nothing(self, op: ReduceOp) -> None:
        """What changes nothing in the other ranks' gradients."""
        self._fill_with_nothing(self.flat, op)

    def nothing(self, op: ReduceOp) -> torch.Tensor:
        """The same, in memory of its own."""
        flat = torch.zeros_like(self.flat)
        self._fill_with_nothing(flat, op)
        return flat

    def _fill_with_nothing(self, flat: torch.Tensor, op: ReduceOp) -> None:
        neutral = {Min: math.inf, Max: -math.inf, Product: 1.0}.get(op, 0.0)
        for entry, offset in zip(
            self.entries, self.offsets, strict=True
        ):  # what lies between them stays zero
            flat[offset : offset + entry.count].fill_(neutral)

    def came_back(self, window: int) -> None:
        """The places hold the reduced gradients."""
        torch.autograd.graph.increment_version(self.flat)  # the core wrote behind autograd's back
        came = [slot for slot in self.slots if slot.window == window]
        self._packing.unpack([copy for slot in came for copy in slot.copies_out()])
        for slot in came:
            slot.came_back()
