"""One optimizer's exchange of gradients, from the hooks of its parameters to the reduced views.

A *window* is what one step exchanges. While autograd runs, hooks copy each gradient into its bucket once, and `param.grad` is a
view of it from then on. In the window's last backward pass a bucket leaves as soon as all its gradients are in and the one
before it has left. When that pass ends, the ranks vote; if every bucket has left on every rank, the window is finished before
`backward()` returns. Otherwise what has left everywhere is waited for, and `settle()` (from `step`, `synchronize`, or
GradScaler's `unscale_`) fills zeros in, lets the rest leave, and votes until all ranks have come as far.

Every decision that touches the wire follows from a vote's result, which is the same on all ranks, or from the calls that
the user makes on all ranks alike: `backward`, `zero_grad`, `synchronize`, `step`.

What is exchanged once is never exchanged again: a gradient that comes on top of a reduced one starts a new window; the reduced
one is carried beside and added afterwards. One that comes after its bucket has left, in a window that is still open, is late:
it is exchanged with the leftovers.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch

from ringdp import world
from ringdp.errors import UsageError
from ringdp.ops import Handle
from ringdp.torch import hooks
from ringdp.torch.bucket import Bucket
from ringdp.torch.leftovers import exchange_leftovers, has_new_gradient
from ringdp.torch.passes import Passes
from ringdp.torch.plan import Plan, lay_out
from ringdp.torch.slot import Slot
from ringdp.torch.vote import Vote
from ringdp.torch.wire import Options, Wire


class Exchange:
    """The gradients of one optimizer."""

    def __init__(self, named: Sequence[tuple[str, torch.Tensor]], options: Options) -> None:
        """Start to agree on the plan for `named`; the first exchange waits for that."""
        self.options = options
        self.finished = False  # the window's gradients are reduced
        self._slots: list[Slot] = []
        self._passes = Passes(self._all_in, self._pass_ended)
        self._steps = 0
        self._window = 0
        self._observed: list[int] | None = []  # the order in which gradients came first, until it is used
        self._new_window()
        self._wire = Wire(options)
        self.extend(named)
        weakref.finalize(self, hooks.detach_all, self._slots).atexit = False
        self._renew_plan([slot for slot in self._slots if slot.param.requires_grad], [])

    # --- what the optimizer says ---------------------------------------------------------------------------------------

    def extend(self, named: Sequence[tuple[str, torch.Tensor]]) -> None:
        """Further parameters. Their first gradients come beside the plan; the next plan holds them."""
        for name, param in named:
            self._slots.append(Slot(len(self._slots), name, param))
            hooks.attach(self, self._slots[-1])

    def settle(self) -> None:
        """Finish the window: zeros for what has not come, and everything is reduced. Waits for all ranks."""
        if self.finished:
            return
        self._passes.stop()
        try:
            self._prepare()
            self._conclude(everything=True)
        except BaseException:
            self._abandon()
            raise

    def before_zero_grad(self) -> None:
        """The gradients are about to be dropped. Other ranks count on what this one has begun to exchange."""
        if self._begun() and not self.finished:
            self.settle()
        for slot in self._slots:
            if slot.param.grad is not None and slot.param.grad.grad_fn is not None and slot.fits():
                slot.param.grad = slot.view  # of create_graph: torch could not zero it in place

    def gradients_dropped(self) -> None:
        """zero_grad() was called."""
        for slot in self._slots:
            slot.forget()
        self._new_window()

    def stepped(self) -> None:
        """step() was called."""
        self._steps += 1
        if self.finished or not self._begun():
            self._new_window()

    def name(self) -> str:
        """The optimizer's, the same on all ranks."""
        return self._wire.name

    # --- what the hooks say --------------------------------------------------------------------------------------------

    def arriving(self, slot: Slot) -> None:
        """Autograd is about to accumulate into `param.grad`: put aside there what must not be exchanged again."""
        if self.finished:
            self._new_window()
        if slot.late:
            return
        left = slot.bucket is not None and slot.bucket.index < self._submitted
        if slot.reduced is None and not left:
            return
        if left or not slot.planned:
            slot.base, slot.late = slot.param.grad, True
        else:
            slot.carry = slot.param.grad
        slot.reduced = slot.param.grad = None

    def arrived(self, slot: Slot) -> None:
        """Autograd has accumulated into `param.grad`."""
        if self._passes.hook():
            self._pass_begins()
        grad = slot.param.grad
        if grad is None:
            return  # another hook has used it up
        if grad.layout is not torch.strided:
            grad = self._dense(slot, grad)
        bucket = slot.bucket
        if slot.late or bucket is None or not slot.fits():
            slot.late = self._has_late = True
            return
        if grad is not slot.view:
            slot.take(grad)
        if slot.window != self._window:
            slot.window = self._window
            if self._observed is not None:
                self._observed.append(slot.index)
        if slot.arrived_in != self._passes.number:
            slot.arrived_in = self._passes.number
            bucket.waiting -= 1
            if bucket.waiting == 0 and self._count + 1 >= self.options.passes:
                self._launch()

    def _dense(self, slot: Slot, grad: torch.Tensor) -> torch.Tensor:
        if not self.options.sparse_as_dense:
            raise UsageError(
                f"rank {world.rank()}: the gradient of {slot.name} is sparse; give DistributedOptimizer "
                "sparse_as_dense=True (sparse gradients on the wire come in a later release)"
            )
        slot.param.grad = dense = grad.to_dense()
        return dense

    # --- windows and passes --------------------------------------------------------------------------------------------

    def _new_window(self) -> None:
        self._window += 1
        self._count = 0  # passes that have ended
        self._submitted = 0  # buckets that have left
        self._reduced = 0  # buckets that are back
        self._handles: list[Handle[None]] = []
        self._voted = self._has_late = self._has_missing = False
        self.finished = False
        if self._observed is not None:
            self._observed = []

    def _begun(self) -> bool:
        """Other ranks may wait for this window."""
        return self._voted or self._submitted > 0

    def _pass_begins(self) -> None:
        self._prepare()
        for bucket in self._buckets:
            bucket.waiting = len(bucket.slots)

    def _all_in(self) -> bool:
        return all(bucket.waiting == 0 for bucket in self._buckets)

    def _pass_ended(self) -> None:
        self._count += 1
        if self._count < self.options.passes:
            return
        try:
            self._prepare()
            for bucket in self._buckets[self._submitted :]:
                if any(slot.window != self._window for slot in bucket.slots):
                    break
                self._submit(bucket)
            self._conclude(everything=False)
        except BaseException:
            self._abandon()
            raise

    # --- the exchange --------------------------------------------------------------------------------------------------

    def _launch(self) -> None:
        while self._submitted < len(self._buckets) and self._buckets[self._submitted].waiting == 0:
            self._submit(self._buckets[self._submitted])

    def _submit(self, bucket: Bucket) -> None:
        for slot in bucket.slots:
            if slot.window != self._window:
                self._fill(slot)
        self._handles.append(self._wire.submit(bucket))
        self._submitted += 1

    def _fill(self, slot: Slot) -> None:
        """Nothing came for this parameter: what lies in `param.grad` counts if it is new, and zeros do otherwise."""
        assert slot.view is not None
        grad = slot.param.grad
        if grad is not None and grad.layout is not torch.strided:
            grad = self._dense(slot, grad)
        if grad is None or slot.late or not slot.fits():
            self._has_missing = True
            slot.view.zero_()
            return
        slot.window = self._window
        if grad is slot.reduced:
            slot.carry, slot.reduced = grad, None
            slot.keep_carry()
            slot.view.zero_()
            slot.param.grad = slot.view
        elif not slot.in_view(grad):
            slot.take(grad)

    def _conclude(self, everything: bool) -> None:
        while True:
            for bucket in self._buckets[self._submitted :] if everything else ():
                self._submit(bucket)
            vote = self._vote()
            self._wait(vote.submitted)
            if vote.submitted == len(self._buckets):
                return self._finish(vote)
            if not everything:
                return

    def _vote(self) -> Vote:
        self._voted = True
        beside = self._has_late or any(has_new_gradient(s) for s in self._slots if not s.planned)
        return self._wire.vote(self._steps, self._submitted, not beside, not self._has_missing)

    def _wait(self, buckets: int) -> None:
        """Buckets up to this one are reduced, and so are the gradients that this rank has in them."""
        for bucket, handle in zip(
            self._buckets[self._reduced : buckets], self._handles[self._reduced : buckets], strict=True
        ):
            handle.wait()
            torch.autograd.graph.increment_version(bucket.flat)
            for slot in bucket.slots:
                if slot.window == self._window:
                    self._reduced_slot(slot)
            self._reduced += 1

    @staticmethod
    def _reduced_slot(slot: Slot) -> None:
        assert slot.view is not None
        if slot.carry is not None:
            with torch.no_grad():
                slot.view.add_(slot.carry)
            slot.carry = None
        if not slot.late:
            slot.reduced = slot.param.grad

    def _finish(self, vote: Vote) -> None:
        members = None
        if not (vote.complete and vote.in_plan):
            members = exchange_leftovers(self._wire, self._slots, self._window)
        self.finished = True
        if members is not None:
            self._renew_plan(members, self._order)
        elif self._observed is not None and vote.complete and vote.in_plan:
            self._use_observed_order()

    # --- plans ---------------------------------------------------------------------------------------------------------

    def _use_observed_order(self) -> None:
        """Once: buckets in the order in which rank 0's gradients came."""
        assert self._observed is not None
        seen = set(self._observed)
        order = self._observed + [i for i in self._order if i not in seen]
        self._observed = None
        order = self._wire.from_rank_0(order, "order")
        if order != self._order:
            self._renew_plan([slot for slot in self._slots if slot.planned], order)

    def _renew_plan(self, members: Sequence[Slot], order: Sequence[int]) -> None:
        """A new plan for `members`: in `order`, before it those that it lacks, the last registered first."""
        for slot in self._slots:
            slot.leave_plan()
        indices, known = {slot.index for slot in members}, set(order)
        self._order = sorted(indices - known, reverse=True) + [i for i in order if i in indices]
        self._members = [self._slots[i] for i in sorted(indices)]
        for slot in self._members:
            slot.planned = True
            hooks.attach(self, slot)
        position = {slot.index: i for i, slot in enumerate(self._members)}
        self._plan: Plan | None = lay_out(
            [slot.entry() for slot in self._members],
            [position[i] for i in self._order],
            self.options.bucket_bytes,
            str(self.options),
        )
        self._buckets: list[Bucket] = []
        self._wire.open(self._plan)

    def _prepare(self) -> None:
        """There is a plan, with memory: made when first needed, so that the last plan's can be dropped before."""
        if world.current() is not self._wire.world:
            self._abandon()  # shutdown() and init() since the last step
            self._wire = Wire(self.options)
        if self._plan is None:
            self._renew_plan([slot for slot in self._slots if slot.param.requires_grad], self._order)
        assert self._plan is not None
        if len(self._buckets) != len(self._plan.buckets):
            self._buckets = [Bucket(i, b, self._members) for i, b in enumerate(self._plan.buckets)]

    def _abandon(self) -> None:
        """The exchange has failed: the next one agrees on a plan anew."""
        self._plan, self._buckets = None, []
        for slot in self._slots:
            slot.leave_plan()
            slot.forget()
        self._passes.stop()
        self._new_window()
