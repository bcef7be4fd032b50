"""Exchanges of gradients that are captured in CUDA graphs.

A step is captured once, by all ranks alike, hooks, vote and all; from then on replays do what was captured: gradients
into buckets, their reduction, and whatever the user captured besides. No hook runs then, and no vote is taken. So what
is captured must be a whole window under a plan that has settled, and that plan is frozen: the graph holds the addresses
of its buckets.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ringdp.errors import UsageError
from ringdp.torch import device
from ringdp.torch.vote import Vote

if TYPE_CHECKING:
    from ringdp.torch.bucket import Bucket
    from ringdp.torch.plans import Plans


def is_captured(plans: Plans) -> bool:
    """What the current stream is given becomes a part of a CUDA graph."""
    gpu = plans.gpu
    if not plans.buckets:  # not asked again and again of models on the CPU
        gpu = next((device.gpu_of(slot.param) for slot in plans.slots if device.is_on_gpu(slot.param)), None)
    return gpu is not None and device.is_captured(gpu)


def check(plans: Plans, passes: int, is_stepped: bool, name: str) -> None:
    """Whether a window that begins now can be captured. `passes` of it have ended; `is_stepped`: shards are there.

    Raises:
        UsageError: it cannot, with the reason. On all ranks alike, if they do alike.
    """
    reasons = (
        (
            not (plans.has_settled() and is_stepped),
            "take some steps before the capture (three will do), with all their gradients",
        ),
        (
            plans.weighed,
            "weigh() has other numbers in each step, and a replay would have those of the capture",
        ),
        (plans.hook is not None, "communication hooks and compressions of one's own are not captured"),
        (
            plans.options.checks.are_taken,
            "check_finite, check_replicas_every and verify_every are not captured",
        ),
        (passes > 0, "all backward passes of a window must be captured, or none"),
        (any(bucket.gpu is None for bucket in plans.buckets), "all parameters must be on the GPU"),
    )
    for holds, reason in reasons:
        if holds:
            raise UsageError(_refusal(name, reason))


def check_gradients(buckets: Iterable[Bucket], window: int, name: str) -> None:
    """Whether all gradients have come. Other ranks, where they have, wait for this one while they capture: so it does
    not ask them first.

    Raises:
        UsageError: they have not.
    """
    missing = [slot.name for bucket in buckets for slot in bucket.slots if not slot.came_in(window)]
    if missing:
        names = f"{', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}"
        raise UsageError(
            _refusal(name, f"there is no gradient for {names}, which had one in the steps before")
        )


def check_vote(vote: Vote, name: str) -> None:
    """Whether all that was captured is what each replay will need.

    Raises:
        UsageError: it is not. On all ranks.
    """
    if not (vote.complete and vote.in_plan and vote.by_all) or vote.joined:
        raise UsageError(
            _refusal(
                name,
                "some rank has joined, or has a gradient for a parameter that had none in the steps before",
            )
        )


def _refusal(name: str, reason: str) -> str:
    return f"{name}: this step cannot be captured in a CUDA graph: {reason}"
