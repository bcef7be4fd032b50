"""Buckets: flat memory, and the views of it that are the parameters' gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ringdp.torch.plan import BucketPlan
from ringdp.torch.slot import Slot


class Bucket:
    """The memory of one bucket of a plan. Elements between the parameters stay zero."""

    def __init__(self, index: int, plan: BucketPlan, members: Sequence[Slot]) -> None:
        self.index = index
        self.slots = [members[i] for i in plan.members]
        self.flat = torch.zeros(plan.count, dtype=plan.dtype)
        self.waiting = 0  # gradients that have not come in this pass
        for slot, offset in zip(self.slots, plan.offsets, strict=True):
            entry = slot.entry()
            slot.bucket = self
            slot.view = self.flat.as_strided(entry.shape, entry.strides, offset)
