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

A rank that has joined (`ringdp.join`) takes part in windows with nothing to contribute, as long as others have
something.

A pass inside `no_sync()` does not count among the passes of a window: it only adds to the gradients.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from ringdp.constants import Average, Sum
from ringdp.errors import MismatchError, UsageError
from ringdp.ops import Handle
from ringdp.process_sets import global_process_set
from ringdp.requests import awaiting_joined_ranks
from ringdp.torch import device, graphs, hooks
from ringdp.torch.bucket import Bucket
from ringdp.torch.checks.window import Checking
from ringdp.torch.comm_hook import CommHook
from ringdp.torch.finite import is_finite, partial_gradients_are_finite
from ringdp.torch.leftovers import exchange_leftovers, has_new_gradient, lacks_gradient
from ringdp.torch.passes import Passes
from ringdp.torch.plans import Plans
from ringdp.torch.sending import Sent, hides_overflows, needs_look, send
from ringdp.torch.slot import Slot
from ringdp.torch.vote import Vote
from ringdp.torch.weights import Weights
from ringdp.torch.wire import ELEMENTS, Options, Wire


@dataclass(frozen=True)
class JoinedBy:
    """How a rank has joined."""

    divide_by_active: bool


class Exchange:
    """The gradients of one optimizer."""

    def __init__(
        self,
        named: Sequence[tuple[str, torch.Tensor]],
        options: Options,
        groups: Mapping[torch.Tensor, int] | None = None,
        hook: CommHook | None = None,
    ) -> None:
        """Start to agree on the plan for `named`; the first exchange waits for that."""
        self.options = options
        self.lock = (
            threading.RLock()
        )  # hooks of parameters on a GPU and on the CPU run in two threads of autograd
        self.local = 0  # so many no_sync() are entered
        self._plans = Plans(self, options, groups or {})
        self._plans.hook = hook
        self._slots = self._plans.slots
        self._weights = Weights()
        self.checking = Checking(options.checks, self._plans)
        self._densify = options.sparse_as_dense or bool(options.shard) or options.op not in (Average, Sum)
        # By shards of elements, in the window that was finished last.
        self.exchanged: list[Bucket] | None = None
        self._passes = Passes(self._all_in, self._pass_ended)
        self._steps = 0
        self._captured = False  # this window is, in a CUDA graph
        self._joined: JoinedBy | None = None
        self.when_all_joined: Callable[[], object] = bool  # called when a join() of all ranks ends
        self._window = 0
        self._new_window()
        self.extend(named)
        weakref.finalize(self, hooks.detach_all, self._slots).atexit = False
        self._plans.renew([slot for slot in self._slots if slot.param.requires_grad])
        self._plans.wire.world.members.add(self)

    def agreed(self) -> None:
        """Wait until all ranks have compared their plans; raise MismatchError where they differ."""
        with self._abandoned_on_failure():
            self._plans.wire.agreed()

    # --- what the optimizer says ------------------------------------------------------------------

    def extend(self, named: Sequence[tuple[str, torch.Tensor]]) -> None:
        """Further parameters. Their first gradients come beside the plan; the next plan holds them."""
        self._plans.extend(named)

    def settle(self) -> None:
        """Finish the window: zeros for what has not come, and everything is reduced. Waits for all ranks."""
        if self.finished:
            return
        is_joined = self._joined is not None
        if self._plans.frozen and not is_joined and not self._begun() and not self._has_come():
            return  # replays of CUDA graphs have exchanged what there is
        self._uncover()
        self._passes.stop()
        self._weights.count(self._submitted > 0)
        self._weights.pass_ended()
        with self._abandoned_on_failure():
            self._prepare()
            self._conclude(everything=True)
        self.checking.raise_found()

    def before_zero_grad(self) -> None:
        """The gradients are about to be dropped. Other ranks count on what this one has begun to exchange."""
        if self._begun() and not self.finished:
            self.settle()
        self._uncover()
        for slot in self._slots:
            grad = slot.param.grad
            if grad is not None and grad.grad_fn is not None and slot.fits():
                # Of create_graph: torch could not zero it in place.
                slot.param.grad = slot.view if slot.in_view(grad) else grad.detach()

    def gradients_dropped(self) -> None:
        """zero_grad() was called."""
        for slot in self._slots:
            slot.forget()
        self.checking.gradients_dropped()
        self._new_window()

    def stepped(self) -> None:
        """step() was called."""
        self._steps += 1
        if self.finished or not self._begun():
            self._new_window()

    def start_over(self) -> None:
        """Ranks that failed at different places go on together: no window is open, and steps count from 0."""
        self._abandon()
        self._steps = 0

    def plan_order(self) -> tuple[list[int], bool] | None:
        """What a job that goes on from here gives `plan_again`, so that the bits stay the same."""
        return None if self._plans.out_of_date() else self._plans.order()

    def plan_again(self, order: tuple[list[int], bool] | None) -> None:
        """Between windows: the plan is as it was when `plan_order()` gave this (None: as it is), and has memory. On all
        ranks alike.

        Raises:
            UsageError: some parameter of that plan is not here; or not between windows.
        """
        if order is not None and not set(order[0]) <= set(range(len(self._slots))):
            raise UsageError(f"{self.name()}: the plan to go on with is of other parameters than these")
        self._between_windows("an optimizer can only go on from a commit between steps")
        with self._abandoned_on_failure():
            if self._plans.out_of_date():
                self._abandon()
                self._plans.start_over()
                self._plans.wire.world.members.add(self)
            if order is not None:
                self._plans.take_order(*order)
            self._plans.prepare()
        if self.options.shard == ELEMENTS:
            self.exchanged = self._plans.buckets

    def name(self) -> str:
        """The optimizer's, the same on all ranks."""
        return self._plans.wire.name

    @property
    def wire(self) -> Wire:
        """What it asks of the core."""
        return self._plans.wire

    def weigh(self, count: int) -> None:
        """What the gradients of the next pass stand for."""
        if not self._weights.on:
            self._between_windows("weigh() must be called before the first backward() of a window")
            self._weights.on = self._plans.weighed = True
            self._renew_as_it_is()
        self._weights.announce(count)

    def weight(self) -> int | None:
        """What this rank's gradients of this window stand for; None if they are not weighed."""
        return self._weights.total + self._weights.late if self._weights.on else None

    def use_hook(self, hook: CommHook) -> None:
        """Let buckets leave by a communication hook from now on."""
        self._between_windows("register_comm_hook() must be called between steps, before backward()")
        self._plans.hook = hook
        self._renew_as_it_is()

    def has_hook(self) -> bool:
        """Buckets leave by a communication hook."""
        return self._plans.hook is not None

    # --- see ringdp.joined.Member ---

    def exchanges_in(self, process_set_id: int) -> bool:
        """True if these gradients are exchanged in that process set."""
        return self._plans.wire.set == process_set_id

    def join_window(self, divide_by_active: bool) -> bool:
        """Take part in one window with nothing to contribute; True if all ranks did. Gradients are dropped."""
        if self.options.shard:
            raise UsageError(
                "join(): a rank that has joined steps no parameters, and others need its shard of them: "
                "use shard=False, or give all ranks as many batches"
            )
        if self._begun() and not self.finished:
            self.settle()
        self._drop_gradients()
        self._joined = JoinedBy(divide_by_active)
        try:
            self.settle()
            all_joined = self._all_joined
        finally:
            self._joined = None
            self._drop_gradients()
        if all_joined:
            self._steps = 0  # on every rank: they have taken different numbers of steps
            self.when_all_joined()
        return all_joined

    def like_this_thread(self) -> contextlib.AbstractContextManager[object]:
        """For another thread: inside, the calling thread's streams are its current ones."""
        params = [slot.param for slot in self._slots]
        return device.like_this_thread({device.gpu_of(p) for p in params if device.is_on_gpu(p)})

    def _drop_gradients(self) -> None:
        for slot in self._slots:
            slot.param.grad = None
        self.gradients_dropped()

    # --- what the hooks say -----------------------------------------------------------------------

    def arriving(self, slot: Slot, grads: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        """Autograd is about to accumulate into `param.grad`: put aside there what must not be exchanged again.

        Returns:
            What it is to accumulate instead of `grads`, or None.
        """
        if not self._passes.running:
            self.checking.look_for_dropped()
            if self._count > 0 and not self.finished:
                self._look_for_dropped()
        if self.finished:
            self._new_window()
        if slot.cover is not None:
            slot.uncover_gradient()
        slot.put_aside(slot.bucket is not None and slot.bucket.index < self._submitted)
        return (self._weights.scale(grads[0]),) if self._weights.on and grads[0] is not None else None

    def arrived(self, slot: Slot) -> None:
        """Autograd has accumulated into `param.grad`."""
        if self._passes.hook():
            self._pass_begins()
        grad = slot.param.grad
        if grad is None:
            return  # another hook has used it up
        if grad.layout is not torch.strided:
            grad = slot.dense_or_beside(grad, self._densify)
        bucket = slot.bucket
        if slot.late or bucket is None or not slot.fits():
            slot.late = self._has_late = True
            return
        if bucket.gpu is not None:
            slot.take_later(grad, bucket.gpu)
        elif grad is not slot.view:
            slot.take(grad)
        if slot.casts and bucket.gpu is None and self._is_last_pass():
            slot.pack()
        if slot.window != self._window:
            slot.window = self._window
            self._plans.observe(slot)
        if slot.arrived_in != self._passes.number:
            slot.arrived_in = self._passes.number
            bucket.waiting -= 1
            if bucket.waiting == 0 and self._is_last_pass():
                self._launch()

    # --- windows and passes -----------------------------------------------------------------------

    def _uncover(self) -> None:
        for slot in self._slots if self.options.shard == ELEMENTS else ():
            slot.uncover_gradient()

    def _new_window(self) -> None:
        self._window += 1
        self._count = 0  # passes that have ended
        self._outside = 0  # so many of them, and of those in no_sync(), were not captured
        self._submitted = 0  # buckets that have left
        self._reduced = 0  # buckets that are back
        self._sent: list[Sent] = []
        self._overflow: Handle[torch.Tensor] | None = None  # what GPUs have found in them
        self._voted = self._has_late = self._has_missing = self._all_joined = False
        self._plans.wire.active = None
        self._weights.new_window()
        self.checking.new_window()
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

    def _is_last_pass(self) -> bool:
        return self.local == 0 and self._count + 1 >= self.options.passes

    def _between_windows(self, otherwise: str) -> None:
        if not self.finished and (self._begun() or self._has_come()):
            raise UsageError(otherwise)
        if self._plans.frozen:
            raise UsageError(
                "a CUDA graph has captured this optimizer's exchange: how it exchanges stays as it is"
            )

    def _renew_as_it_is(self) -> None:
        if not self._plans.out_of_date():
            self._plans.renew([slot for slot in self._slots if slot.planned])

    def _has_come(self) -> bool:
        """Some gradient has, in this window."""
        return any(slot.came_in(self._window) or slot.late for slot in self._slots)

    def _begun(self) -> bool:
        """Other ranks may wait for this window."""
        return self._voted or self._submitted > 0

    def _pass_begins(self) -> None:
        self._uncover()
        self._weights.count(self._submitted > 0)
        with self._abandoned_on_failure():
            self._prepare()
        for bucket in self._plans.buckets:
            bucket.waiting = len(bucket.slots)

    def _all_in(self) -> bool:
        return all(bucket.waiting == 0 for bucket in self._plans.buckets)

    def _pass_ended(self) -> None:
        with self.lock:
            self._after_pass()

    def _after_pass(self) -> None:
        self._weights.pass_ended()
        self._outside += not self._captured
        if self.local:
            return
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
        self.checking.raise_found()

    # --- the exchange -----------------------------------------------------------------------------

    def _launch(self) -> None:
        with self._abandoned_on_failure():
            while (
                self._submitted < len(self._plans.buckets)
                and self._plans.buckets[self._submitted].waiting == 0
            ):
                self._submit(self._plans.buckets[self._submitted])

    def _submit(self, bucket: Bucket) -> None:
        if self._joined is None:
            self._has_missing |= not bucket.fill(self._window, self._densify)
            self._plans.wire.before_look(bucket)
        else:
            bucket.fill_with_nothing(self.options.op)
        is_joined = self._joined is not None
        seen = self.checking.look(bucket, is_joined)
        is_compared = not is_joined and self.checking.keeps(bucket, self._steps)
        self._sent.append(send(self._plans, bucket, self._weights.total, seen, is_compared))
        if self._joined is not None:
            self._sent[-1].seen.nothing()  # the inf that changes nothing in a Min is no overflow
        self._submitted += 1
        if self._submitted == len(self._plans.buckets):
            self._tell_overflows()

    def _tell_overflows(self) -> None:
        """Those that GPUs have found, to the other ranks' GPUs. All ranks look, or none does."""
        found = [sent.seen.overflow for sent in self._sent if sent.seen.overflow is not None]
        if found:
            self._overflow = self._plans.wire.start_max(
                torch.stack(found).any().to(torch.uint8).view(1), "overflow"
            )

    def _conclude(self, everything: bool) -> None:
        if self._captured and self._count >= self.options.passes:
            graphs.check_gradients(self._plans.buckets, self._window, self.name())
        while True:
            for bucket in self._plans.buckets[self._submitted :] if everything else ():
                self._submit(bucket)
            vote = self._vote()
            if not vote.by_all and self.options.op is Average and self._plans.wire.active is None:
                self._plans.wire.active = max(self._count_active(), 1)
            self._wait(vote.submitted)
            if vote.submitted == len(self._plans.buckets):
                return self._finish(vote)
            if not everything:
                return

    def _vote(self) -> Vote:
        is_first, self._voted = not self._voted, True
        extra = [s for s in self._slots if (s.late or not s.planned) and has_new_gradient(s)]
        beside = self._has_late or bool(extra)
        self.checking.look_beside(extra)
        is_joined = self._joined is not None
        self._plans.wire.agreed()
        try:
            vote = self._plans.wire.vote(
                self._steps,
                self._submitted,
                in_plan=not beside,
                complete=not self._has_missing,
                finite=self._is_finite(extra),
                replica=self.checking.replica(self._steps) if is_first and not is_joined else None,
                joined=is_joined,
                by_all=self._joined is None or not self._joined.divide_by_active,
            )
        except MismatchError:  # on all ranks: they count anew, and can go on once their parameters are equal
            self._steps = 0
            raise
        self.checking.heard(vote)
        return vote

    def _count_active(self) -> int:
        return int(self._plans.wire.sum([self._joined is None], "active").wait()[0])

    def _is_finite(self, extra: Sequence[Slot]) -> bool:
        """False if this rank has seen an overflow that the others might not see by themselves."""
        finite = all(sent.seen.is_finite for sent in self._sent) and not self.checking.has_found()
        if finite and hides_overflows(self.options):
            finite = all(slot.param.grad is None or is_finite(slot.param.grad) for slot in extra)
        if finite and self._plans.wire.set == global_process_set.process_set_id:
            finite = partial_gradients_are_finite(self._plans.wire.world)
        return finite

    def _wait(self, buckets: int) -> None:
        """Buckets up to this one are reduced, and so are the gradients that this rank has in them."""
        for bucket, sent in zip(
            self._plans.buckets[self._reduced : buckets], self._sent[self._reduced : buckets], strict=True
        ):
            sent.wait()
            bucket.came_back(self._window)
            self._reduced += 1

    def _finish(self, vote: Vote) -> None:
        self._all_joined = vote.joined
        if self._captured:
            graphs.check_vote(vote, self.name())
        if self._joined is None:
            wire = self._plans.wire
            wire.world.windows[wire.set] = wire.world.windows.get(wire.set, 0) + 1
        if vote.joined:
            self.finished = True
            return
        members = None
        if not (vote.complete and vote.in_plan):
            weights = self._weights if self._weights.on else None
            members = self._exchange_leftovers(weights, vote.step)
        if self._overflow is not None:
            self.checking.overflow_on_gpu(self._overflow.wait())
        self.checking.conclude(vote, self._sent, needs_look(self._plans))
        self.finished = True
        if self.options.shard == ELEMENTS:
            self.exchanged = self._plans.buckets
            for slot in self._slots:
                slot.cover_gradient()
        if self._plans.frozen:
            return
        if members is not None:
            self._plans.renew(members)
        elif vote.complete and vote.in_plan:
            order = self._plans.observed_order()
            if order is not None:
                self._plans.renew([slot for slot in self._slots if slot.planned], order)

    def _exchange_leftovers(self, weights: Weights | None, step: int) -> list[Slot] | None:
        wire, slots, missing = self._plans.wire, self._slots, self.checking.missing
        lacking = missing.marks(
            [self._joined is None and lacks_gradient(slot, self._window) for slot in slots]
        )

        def tell(had: Sequence[bool]) -> None:
            self.checking.misses(missing.tell(wire, slots, lacking, had, step))

        return exchange_leftovers(wire, slots, self._window, weights, tell, lacking)

    # --- plans ------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        self._captured = graphs.is_captured(self._plans)
        if self._captured and not self._begun():
            graphs.check(self._plans, self._outside, self._is_stepped(), self.name())
            self._plans.freeze()
        if self._plans.out_of_date():
            self._abandon()
            self._plans.start_over()
            self._plans.wire.world.members.add(self)
        self._plans.prepare()

    def _is_stepped(self) -> bool:
        """Shards of elements have been made for the buckets that there are."""
        return self.options.shard != ELEMENTS or self.exchanged is self._plans.buckets

    @contextlib.contextmanager
    def _abandoned_on_failure(self) -> Iterator[None]:
        try:
            with awaiting_joined_ranks():  # what is exchanged here, they do too
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
