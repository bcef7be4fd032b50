"""The checks of one exchange, window by window: what is looked at before the vote, told after it, and raised.

What a rank finds is told to all by operations of their own, beside the vote, which only says whether there is anything
to tell: so steps in which all is well send nothing more.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from ringdp.errors import NonFiniteError, RingdpError
from ringdp.torch.bucket import Bucket
from ringdp.torch.checks import finite, replicas, verify
from ringdp.torch.checks.missing import Missing
from ringdp.torch.checks.options import RAISE, SKIP, ZERO, Checks, refusal
from ringdp.torch.finite import is_finite, not_finite, show, show_where
from ringdp.torch.plans import Plans
from ringdp.torch.sending import Seen, Sent
from ringdp.torch.slot import Slot
from ringdp.torch.vote import Vote
from ringdp.torch.wire import ELEMENTS


class Checking:
    """What is checked of one optimizer's gradients and parameters."""

    def __init__(self, checks: Checks, plans: Plans) -> None:
        self.checks, self._plans = checks, plans
        self.missing = Missing(checks.missing)
        self.skipped_steps = 0
        self._verdict: NonFiniteError | None = None  # on the gradients that are there; the same on all ranks
        self._is_told = False  # the verdict, on stderr
        self.zeroed = False  # some rank's gradients of the last window were, as the host knows it
        self.zeroed_on_gpu: torch.Tensor | None = None  # a byte there: 0 if none were
        self.new_window()

    def new_window(self) -> None:
        """Nothing is found yet."""
        self._found: finite.Found | None = None
        self._hashes: list[int] = []
        self._differs = False  # the parameters do, between ranks
        self._raised: RingdpError | None = None

    # --- before the vote ---

    def look(self, bucket: Bucket, is_joined: bool) -> Seen | None:
        """At what is about to leave; None if nobody has asked for it."""
        policy = self.checks.finite
        if policy is None:
            return None
        if bucket.gpu is not None:
            if policy != ZERO:
                raise refusal(policy)
            seen = Seen(overflow=not_finite(bucket.gradients))
            if not is_joined:  # what changes nothing in a Min is an inf
                finite.zero(bucket.gradients)
            return seen
        found = None if is_joined else finite.find_in_bucket(bucket)
        if found is not None:
            self._found = self._found or found
            if policy == ZERO:
                finite.zero(bucket.gradients)
        return Seen()

    def look_beside(self, extra: Sequence[Slot]) -> None:
        """At gradients that go beside the buckets."""
        policy = self.checks.finite
        for slot in extra if policy is not None else ():
            sent_as = self._plans.options.compression.on_wire(slot.param.dtype)
            found = finite.find_in_gradient(slot.index, slot.param.grad, sent_as)
            self._found = self._found or found
            if policy == ZERO:
                finite.zero_in_gradient(slot.param.grad, sent_as)

    def has_found(self) -> bool:
        """This rank has gradients that are not finite."""
        return self._found is not None

    def keeps(self, bucket: Bucket, step: int) -> bool:
        """What this rank puts into the bucket is to be exchanged a second time, or its result compared."""
        every, buckets = self.checks.verify_every, len(self._plans.buckets)
        return verify.is_due(every, step) and verify.which(every, step, buckets) == bucket.index

    def replica(self, step: int) -> int | None:
        """For the first vote of a window: one number for all parameters, where it is time."""
        every = self.checks.replicas_every
        if every == 0 or step % every != 0:
            return None
        self._hashes = replicas.hashes_of(self._plans.slots)
        return replicas.together(self._hashes)

    def heard(self, vote: Vote) -> None:
        """One vote of the window."""
        self._differs |= vote.replicas_differ

    # --- after it ---

    def conclude(self, vote: Vote, sent: Sequence[Sent], hides_overflows: bool) -> None:
        """All gradients are reduced: tell what was found, on all ranks. Collective, where there is something."""
        wire, slots = self._plans.wire, self._plans.slots
        if self._differs:
            self._raise(replicas.name_the_minority(wire, slots, self._hashes, vote.step))
        every = self.checks.verify_every
        if verify.is_due(every, vote.step) and sent:
            number = verify.which(every, vote.step, len(sent))
            bucket, has_hook = self._plans.buckets[number], self._plans.hook is not None
            self._raise(verify.verify(wire, sent[number], bucket, has_hook, vote.step))
        self.zeroed = False
        if vote.finite:
            return
        reported = self.checks.finite != ZERO and any(not one.seen.is_finite for one in sent)
        error = None
        if self.checks.finite is not None:
            error = finite.tell(wire, slots, self._found, reported, vote.step)
        if error is None:
            show(slot.param for slot in slots)  # it is for a scaler that this optimizer shares with others
        elif self.checks.finite == ZERO:
            self.zeroed = True
            self._print(error)
        else:
            self._verdict, self._is_told = error, False
            if hides_overflows:
                show(slot.param for slot in slots)

    def overflow_on_gpu(self, found: torch.Tensor) -> None:
        """A byte there says whether some rank's GPU has found one."""
        if self.checks.finite == ZERO:
            self.zeroed_on_gpu = found
        else:
            show_where(found, (slot.param for slot in self._plans.slots))

    def misses(self, error: RingdpError | None) -> None:
        """What `missing.tell` gave."""
        self._raise(error)

    def raise_found(self) -> None:
        """What all ranks are to raise as the exchange ends."""
        error, self._raised = self._raised, None
        if error is not None:
            raise error

    def _raise(self, error: RingdpError | None) -> None:
        self._raised = self._raised or error

    # --- what becomes of the step ---

    def may_step(self) -> bool:
        """False if the step is to be skipped. All ranks answer alike.

        Raises:
            NonFiniteError: as `check_finite="raise"` wants it.
        """
        if self._verdict is None:
            return True
        if self.checks.finite == RAISE:
            raise self._verdict
        self._tell_verdict()
        self.skipped_steps += 1
        return False

    def may_go_on(self) -> bool:
        """As `may_step`, within a step: nothing can be skipped any more.

        Raises:
            NonFiniteError: with "skip" too.
        """
        if self._verdict is not None:
            raise self._verdict
        return True

    def scaler_looks(self) -> None:
        """GradScaler is about to look for overflows: it must see what was zeroed, and decides by itself."""
        if self.checks.finite == SKIP and self._verdict is not None:
            self._tell_verdict()
        if self._plans.options.shard == ELEMENTS:
            return  # `Sharded` shows it
        if self.zeroed:
            show(slot.param for slot in self._plans.slots)
        if self.zeroed_on_gpu is not None:
            show_where(self.zeroed_on_gpu, (slot.param for slot in self._plans.slots))

    def gradients_dropped(self) -> None:
        """The verdict was on gradients that are gone."""
        self._verdict, self.zeroed, self.zeroed_on_gpu = None, False, None

    def look_for_dropped(self) -> None:
        """module.zero_grad() may have dropped them, or written zeros. On all ranks alike."""
        if self._verdict is None and not self.zeroed and self.zeroed_on_gpu is None:
            return
        grads = [slot.param.grad for slot in self._plans.slots if slot.param.grad is not None]
        is_sharded = self._plans.options.shard == ELEMENTS
        if not grads or (not is_sharded and self._verdict is not None and all(map(is_finite, grads))):
            self.gradients_dropped()

    def _tell_verdict(self) -> None:
        assert self._verdict is not None
        if not self._is_told:
            self._print(self._verdict)
        self._is_told = True

    def _print(self, error: NonFiniteError) -> None:
        from ringdp import world

        if error.rank == world.rank():
            print(f"ringdp: {error}", file=sys.stderr, flush=True)
