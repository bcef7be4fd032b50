"""The plan that holds now, its buckets, and how the next one comes about.

A plan is made for the parameters that require grad, in reverse order of registration; once more in the order
in which rank 0's gradients came in the first complete window; and again whenever the leftovers of a window
show that the parameters have changed. Each is agreed on by all ranks before the first exchange under it.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from ringdp import world
from ringdp.torch import hooks
from ringdp.torch.bucket import Bucket
from ringdp.torch.comm_hook import CommHook
from ringdp.torch.plan import Plan, lay_out
from ringdp.torch.slot import Slot
from ringdp.torch.wire import Options, Wire

if TYPE_CHECKING:
    from ringdp.torch.exchange import Exchange


class Plans:
    """One optimizer's plans."""

    def __init__(self, exchange: Exchange, options: Options, groups: Mapping[torch.Tensor, int]) -> None:
        """`groups`: numbers of those that the user wants exchanged together."""
        self.options = options
        self.hook: CommHook | None = None
        self.weighed = False  # the ranks' gradients have weights, which travel in the buckets
        self._groups = groups
        self._exchange = weakref.ref(exchange)
        self.wire = Wire(options)
        self.slots: list[Slot] = []  # all parameters, planned or not
        self.buckets: list[Bucket] = []  # of the plan, once `prepare` was called
        self.gpu: int | None = None  # where some of them lie
        self.plan: Plan | None = None
        self._members: list[Slot] = []
        self._order: list[int] = []  # indices of the members, as their gradients are expected
        self._observed: list[int] | None = []  # as they came in this window; None: used
        self.frozen = False  # CUDA graphs have captured exchanges by this plan
        self._captured: list[Bucket] = []  # whose memory such graphs use, whatever becomes of the plan

    def extend(self, named: Sequence[tuple[str, torch.Tensor]]) -> None:
        """Further parameters, outside the plan."""
        for name, param in named:
            self.slots.append(Slot(len(self.slots), name, param, self._groups.get(param)))
            hooks.attach(self._exchange, self.slots[-1])

    def new_window(self) -> None:
        """Gradients come from the first on."""
        if self._observed:
            self._observed = []

    def observe(self, slot: Slot) -> None:
        """The window's first gradient of this parameter."""
        if self._observed is not None:
            self._observed.append(slot.index)

    def observed_order(self) -> list[int] | None:
        """Once, after a complete window: the order in which rank 0's gradients came, if the plan has another."""
        if self._observed is None:
            return None
        seen = set(self._observed)
        mine = self._observed + [i for i in self._order if i not in seen]
        self._observed = None
        order = self.wire.from_rank_0(mine, "order")
        return order if order != self._order else None

    def order(self) -> tuple[list[int], bool] | None:
        """The plan's parameters, by number, as their gradients are expected, and whether that order was observed: a
        plan made of it has the same buckets, however this one came about. None: there is no plan."""
        return (list(self._order), self._observed is None) if self.plan is not None else None

    def take_order(self, order: Sequence[int], observed: bool) -> None:
        """Plan by what `order()` was in a job before this one. The same on all ranks."""
        self._observed = None if observed else []
        self.renew([self.slots[i] for i in order], order)

    def has_settled(self) -> bool:
        """It has memory, and a complete window was exchanged by it, or by the one of which it is a better order."""
        return (
            self.plan is not None and len(self.buckets) == len(self.plan.buckets) and self._observed is None
        )

    def freeze(self) -> None:
        """A CUDA graph captures an exchange by this plan: no better one takes its place."""
        if not self.frozen:
            self._captured += self.buckets
        self.frozen = True

    def renew(self, members: Sequence[Slot], order: Sequence[int] | None = None) -> None:
        """Start to agree on a plan for `members`: in `order` (default: as before), those that it lacks first,
        the last registered of them before the others."""
        for slot in self.slots:
            slot.leave_plan()
        indices = {slot.index for slot in members}
        known = [i for i in (self._order if order is None else order) if i in indices]
        self._order = sorted(indices - set(known), reverse=True) + known
        self._members = [self.slots[i] for i in sorted(indices)]
        for slot in self._members:
            slot.enter_plan()
            hooks.attach(self._exchange, slot)
        position = {slot.index: i for i, slot in enumerate(self._members)}
        self.plan = lay_out(
            [slot.planned_as for slot in self._members],
            [position[i] for i in self._order],
            self.options.bucket_bytes,
            self._text(),
            self.options.compression,
            self._tail,
        )
        self.buckets = []
        self.wire.open(self.plan)

    def _text(self) -> str:
        hook = f", communication hook {self.hook}" if self.hook is not None else ""
        return f"{self.options}{hook}{', weighed' if self.weighed else ''}"

    def _tail(self, dtype: torch.dtype) -> int:
        return 0 if self.weights_go_apart() else self.wire.weight_code(dtype).elements * self.weighed

    def weights_go_apart(self) -> bool:
        """A hook would not leave a tail as it is, and of shards one rank alone would have its sum."""
        return self.hook is not None or bool(self.options.shard)

    def prepare(self) -> None:
        """The plan has memory from now on: not before it is needed, so that the last plan's may be gone by then."""
        assert self.plan is not None
        if len(self.buckets) != len(self.plan.buckets):
            self.buckets = [Bucket(i, b, self._members) for i, b in enumerate(self.plan.buckets)]
            self.gpu = next((bucket.gpu for bucket in self.buckets if bucket.gpu is not None), None)

    def out_of_date(self) -> bool:
        """There is no plan, or it is of a world that is gone: `shutdown()` and `init()` were called."""
        return self.plan is None or world.current() is not self.wire.world

    def abandon(self) -> None:
        """The exchange has failed: the next one begins with a new plan, the same on all ranks."""
        self.plan, self.buckets, self._order, self._observed = None, [], [], []
        self.frozen = False
        for slot in self.slots:
            slot.leave_plan()
            slot.sparse_dim = (
                0  # where that was this rank's knowledge alone, the next exchange shows it again
            )

    def start_over(self) -> None:
        """A plan where there is none."""
        if world.current() is not self.wire.world:
            self.abandon()
            self.wire = Wire(self.options)
        for slot in self.slots:
            hooks.attach(self._exchange, slot)
        self.renew([slot for slot in self.slots if slot.param.requires_grad and not slot.sparse_dim])
