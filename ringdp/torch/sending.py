"""How a full bucket leaves: looked at, weighed, and handed to the core or to a communication hook."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ringdp.constants import Adasum, Max, Min
from ringdp.ops import Handle
from ringdp.torch.bucket import Bucket
from ringdp.torch.checks.hashes import hash_of
from ringdp.torch.comm_hook import Waits
from ringdp.torch.finite import is_finite, not_finite
from ringdp.torch.plans import Plans
from ringdp.torch.wire import Options, Wire


def needs_look(plans: Plans) -> bool:
    """An overflow of one rank might not survive the exchange, and nobody else looks for it."""
    return hides_overflows(plans.options) or (plans.hook is not None and plans.hook.needs_look)


def hides_overflows(options: Options) -> bool:
    """Other ranks' numbers may win over an inf. (In sums and products they cannot.)"""
    return options.op in (Min, Max, Adasum)


@dataclass
class Seen:
    """Whether what this rank has put into a bucket is finite; where nobody looks, it is."""

    is_finite: bool = True  # as the host knows it
    overflow: torch.Tensor | None = None  # of a bucket on a GPU, where somebody looks: a scalar there, bool

    def nothing(self) -> None:
        """This rank has put in nothing of its own."""
        self.is_finite = True
        if self.overflow is not None:
            self.overflow = torch.zeros_like(self.overflow)


def look(bucket: Bucket) -> Seen:
    """Look for overflows. The host does not wait for what a GPU finds."""
    if bucket.gpu is None:
        return Seen(is_finite(bucket.gradients))
    return Seen(overflow=not_finite(bucket.gradients))


class Sent:
    """A bucket on its way."""

    def __init__(
        self,
        bucket: Bucket,
        future: Waits,
        wire: Wire,
        seen: Seen,
        weight: Handle[torch.Tensor] | None,
        kept: torch.Tensor | None,
        is_compared: bool,
    ) -> None:
        self._bucket, self._future, self._wire, self._weight = bucket, future, wire, weight
        self.seen = seen
        self.kept = kept  # what this rank has put in, to be exchanged a second time
        self._is_compared = is_compared
        self.first: int | None = None  # a hash of this rank's part of what came back, if it is compared

    def wait(self) -> None:
        """The bucket holds the reduced gradients."""
        self._future.wait()
        if self._is_compared:
            self.first = hash_of(self._bucket.flat[self._wire.own_part(self._bucket)])
        gradients = self._bucket.gradients
        if self._weight is None and not self._bucket.tail.numel():
            self._wire.rescale(gradients)
        if self._weight is not None:
            total = int(self._weight.wait()[0])
            gradients.mul_(self._wire.ranks).div_(max(total, 1))  # they were averaged
        elif self._bucket.tail.numel():
            code = self._wire.weight_code(gradients.dtype)
            # In float32 at least: a float16 has no room for a large total.
            total_weight = code.decode(self._bucket.tail).clamp_(min=1)
            wide = torch.promote_types(gradients.dtype, torch.float32)
            torch.div(gradients, total_weight.to(wide).view(1), out=gradients)


def send(plans: Plans, bucket: Bucket, weight: int, seen: Seen | None, is_compared: bool) -> Sent:
    """Let a bucket leave.

    Args:
        weight: what this rank's gradients stand for, if they are weighed.
        seen: what was seen in it, if somebody has looked.
        is_compared: it will be verified.
    """
    wire, hook = plans.wire, plans.hook
    looked = seen or (look(bucket) if needs_look(plans) else Seen())
    goes_apart = plans.weighed and plans.weights_go_apart()
    apart = wire.sum([weight], f"weight.{bucket.index}") if goes_apart else None
    if hook is None:
        if bucket.tail.numel():
            code = wire.weight_code(bucket.flat.dtype)
            bucket.tail.copy_(torch.tensor(code.encode(weight, wire.rank)), non_blocking=True)
        kept = bucket.flat.clone() if is_compared else None
        return Sent(bucket, wire.submit(bucket), wire, looked, apart, kept, is_compared)
    shown = wire.for_hook(bucket, bucket.index + 1 == len(plans.buckets))
    future = wire.submit_by(hook, shown)
    looked.is_finite &= shown.is_finite
    return Sent(bucket, future, wire, looked, apart, None, is_compared)
