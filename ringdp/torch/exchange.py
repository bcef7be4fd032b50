"""One optimizer's exchange of gradients, from the hooks of its parameters to the reduced views.

A *window* is what one step exchanges. While autograd runs, hooks copy each gradient into its bucket once, and
`param.grad` is a view of it from then on. In the window's last backward pass a bucket leaves as soon as all
its gradients are in and the one before it has left. When that pass ends, the ranks vote; if every bucket has
left on every rank, the window is finished before `backward()` returns. Otherwise what has left everywhere is
waited for, and `settle()` (from `step`, `synchronize`, or GradScaler's `unscale_`) fills zeros in, lets the
rest leave, and votes until all ranks have come as far.

Every decision that touches the wire follows from a vote's result, which is the same on all ranks, or from the
calls that the user makes on all ranks alike: `backward`, `zero_grad`, `synchronize`, `step`.

What is exchanged once is never exchanged again: a gradient that comes on top of a reduced one starts a new
window; the reduced one is carried beside and added afterwards. One that comes after its bucket has left, in a
window that is still open, is late: it is exchanged with the leftovers.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence

import torch

from ringdp.ops import Handle
from ringdp.torch import hooks
from ringdp.torch.bucket import Bucket
from ringdp.torch.leftovers import exchange_leftovers, has_new_gradient
from ringdp.torch.passes import Passes
from ringdp.torch.plans import Plans
from ringdp.torch.slot import Slot
from ringdp.torch.vote import Vote
from ringdp.torch.wire import Options


class Exchange:
    """The gradients of one optimizer."""

    def __init__(self, named: Sequence[tuple[str, torch.Tensor]], options: Options) -> None:
        """Start to agree on the plan for `named`; the first exchange waits for that."""
        self.options = options
        self._plans = Plans(self, options)
        self._slots = self._plans.slots
        self._passes = Passes(self._all_in, self._pass_ended)
        self._steps = 0
        self._window = 0
        self._new_window()
        self.extend(named)
        weakref.finalize(self, hooks.detach_all, self._slots).atexit = False
        self._plans.renew([slot for slot in self._slots if slot.param.requires_grad])

    # --- what the optimizer says ------------------------------------------------------------------

    def extend(self, named: Sequence[tuple[str, torch.Tensor]]) -> None:
        """Further parameters. Their first gradients come beside the plan; the next plan holds them."""
        self._plans.extend(named)

    def settle(self) -> None:
        """Finish the window: zeros for what has not come, and everything is reduced. Waits for all ranks."""
        if self.finished:
            return
        self._passes.stop()
        with self._abandoned_on_failure():
            self._prepare()
            self._conclude(everything=True)

    def before_zero_grad(self) -> None:
        """The gradients are about to be dropped. Other ranks count on what this one has begun to exchange."""
        if self._begun() and not self.finished:
            self.settle()
        for slot in self._slots:
            grad = slot.param.grad
            if grad is not None and grad.grad_fn is not None and slot.fits():
                # Of create_graph: torch could not zero it in place.
                slot.param.grad = slot.view if slot.in_view(grad) else grad.detach()

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
        return self._plans.wire.name

    # --- what the hooks say -----------------------------------------------------------------------

    def arriving(self, slot: Slot) -> None:
        """Autograd is about to accumulate into `param.grad`: put aside there what must not be exchanged again."""
        if self._count > 0 and not self._passes.running and not self.finished:
            self._look_for_dropped()
        if self.finished:
            self._new_window()
        slot.put_aside(slot.bucket is not None and slot.bucket.index < self._submitted)

    def arrived(self, slot: Slot) -> None:
        """Autograd has accumulated into `param.grad`."""
        if self._passes.hook():
            self._pass_begins()
        grad = slot.param.grad
        if grad is None:
            return  # another hook has used it up
        if grad.layout is not torch.strided:
            grad = slot.densify(grad, self.options.sparse_as_dense)
        bucket = slot.bucket
        if slot.late or bucket is None or not slot.fits():
            slot.late = self._has_late = True
            return
        if grad is not slot.view:
            slot.take(grad)
        if slot.casts and self._count + 1 >= self.options.passes:
            slot.pack()
        if slot.window != self._window:
            slot.window = self._window
            self._plans.observe(slot)
        if slot.arrived_in != self._passes.number:
            slot.arrived_in = self._passes.number
            bucket.waiting -= 1
            if bucket.waiting == 0 and self._count + 1 >= self.options.passes:
                self._launch()

    # --- windows and passes -----------------------------------------------------------------------

    def _new_window(self) -> None:
        self._window += 1
        self._count = 0  # passes that have ended
        self._submitted = 0  # buckets that have left
        self._reduced = 0  # buckets that are back
        self._handles: list[Handle[None]] = []
        self._voted = self._has_late = self._has_missing = False
        self.finished = False  # all gradients of the window are reduced
        self._plans.new_window()

    def _look_for_dropped(self) -> None:
        """module.zero_grad() may have dropped the gradients of an open window: do as optimizer.zero_grad() does."""
        came = [slot for slot in self._slots if slot.window == self._window or slot.late]
        dropped = [slot for slot in self._slots if slot.param.grad is None]
        if not any(slot.param.grad is None for slot in came):
            return
        if self._begun():
            self.settle()
        elif all(slot.param.grad is None for slot in came):
            self._new_window()
        for slot in dropped:
            slot.param.grad = None
            slot.forget()

    def _begun(self) -> bool:
        """Other ranks may wait for this window."""
        return self._voted or self._submitted > 0

    def _pass_begins(self) -> None:
        with self._abandoned_on_failure():
            self._prepare()
        for bucket in self._plans.buckets:
            bucket.waiting = len(bucket.slots)

    def _all_in(self) -> bool:
        return all(bucket.waiting == 0 for bucket in self._plans.buckets)

    def _pass_ended(self) -> None:
        self._count += 1
        if self._count < self.options.passes:
            return
        with self._abandoned_on_failure():
            self._prepare()
            for bucket in self._plans.buckets[self._submitted :]:
                if not bucket.complete(self._window):
                    break
                self._submit(bucket)
            self._conclude(everything=False)

    # --- the exchange -----------------------------------------------------------------------------

    def _launch(self) -> None:
        with self._abandoned_on_failure():
            while (
                self._submitted < len(self._plans.buckets)
                and self._plans.buckets[self._submitted].waiting == 0
            ):
                self._submit(self._plans.buckets[self._submitted])

    def _submit(self, bucket: Bucket) -> None:
        self._has_missing |= not bucket.fill(self._window, self.options.sparse_as_dense)
        self._handles.append(self._plans.wire.submit(bucket))
        self._submitted += 1

    def _conclude(self, everything: bool) -> None:
        while True:
            for bucket in self._plans.buckets[self._submitted :] if everything else ():
                self._submit(bucket)
            vote = self._vote()
            self._wait(vote.submitted)
            if vote.submitted == len(self._plans.buckets):
                return self._finish(vote)
            if not everything:
                return

    def _vote(self) -> Vote:
        self._voted = True
        beside = self._has_late or any(has_new_gradient(s) for s in self._slots if not s.planned)
        return self._plans.wire.vote(self._steps, self._submitted, not beside, not self._has_missing)

    def _wait(self, buckets: int) -> None:
        """Buckets up to this one are reduced, and so are the gradients that this rank has in them."""
        for bucket, handle in zip(
            self._plans.buckets[self._reduced : buckets], self._handles[self._reduced : buckets], strict=True
        ):
            handle.wait()
            bucket.came_back(self._window)
            self._reduced += 1

    def _finish(self, vote: Vote) -> None:
        members = None
        if not (vote.complete and vote.in_plan):
            members = exchange_leftovers(self._plans.wire, self._slots, self._window)
        self.finished = True
        if members is not None:
            self._plans.renew(members)
        elif vote.complete and vote.in_plan:
            order = self._plans.observed_order()
            if order is not None:
                self._plans.renew([slot for slot in self._slots if slot.planned], order)

    # --- plans ------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        if self._plans.out_of_date():
            self._abandon()
            self._plans.start_over()
        self._plans.prepare()

    @contextlib.contextmanager
    def _abandoned_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._abandon()
            raise

    def _abandon(self) -> None:
        self._plans.abandon()
        for slot in self._slots:
            slot.forget()
        self._passes.stop()
        self._new_window()
