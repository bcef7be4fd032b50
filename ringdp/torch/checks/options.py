"""What the user asks to be checked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from ringdp.errors import UsageError
from ringdp.torch import device

RAISE, SKIP, ZERO = "raise", "skip", "zero"


class Skipped(Exception):
    """Raised within an optimizer's step, and caught around it: no rank takes this one."""


@dataclass(frozen=True)
class Checks:
    """Of one optimizer, the same on all ranks."""

    finite: str | None = None  # what becomes of gradients that are not finite; None: nobody looks
    replicas_every: int = 0  # steps; 0: never
    verify_every: int = 0  # steps; 0: never
    missing: str = ZERO  # what becomes of a gradient that some ranks lack

    @property
    def are_taken(self) -> bool:
        """In the steps themselves something is looked at that need not be."""
        return self.finite is not None or self.replicas_every > 0 or self.verify_every > 0

    def __str__(self) -> str:
        """For the plan's text: "" where nothing is asked."""
        asked = (
            (self.finite is not None, f"check_finite {self.finite}"),
            (self.replicas_every > 0, f"check_replicas_every {self.replicas_every}"),
            (self.verify_every > 0, f"verify_every {self.verify_every}"),
            (self.missing != ZERO, f"missing_gradients {self.missing}"),
        )
        return "".join(f", {text}" for wanted, text in asked if wanted)


def checks_for(finite: Any, replicas_every: Any, verify_every: Any, missing: Any) -> Checks:
    """What `DistributedOptimizer` was given.

    Raises:
        UsageError: values that mean nothing.
    """
    if finite not in (None, RAISE, SKIP, ZERO):
        raise UsageError(f'check_finite must be None, "raise", "skip" or "zero", not {finite!r}')
    if missing not in (ZERO, RAISE):
        raise UsageError(f'missing_gradients must be "zero" or "raise", not {missing!r}')
    return Checks(
        finite,
        _steps("check_replicas_every", replicas_every),
        _steps("verify_every", verify_every),
        missing,
    )


def check_params(checks: Checks, params: Iterable[torch.Tensor]) -> None:
    """Refuse what cannot be done for gradients on a GPU.

    Raises:
        UsageError: the host would have to wait for it.
    """
    if checks.finite in (RAISE, SKIP) and any(device.is_on_gpu(param) for param in params):
        raise refusal(checks.finite)


def refusal(policy: str) -> UsageError:
    """Of a policy on a GPU."""
    return UsageError(
        f'check_finite="{policy}" looks at gradients in host memory: whether those on a GPU are finite is known there '
        'alone, and each step would wait for it. Use a GradScaler (all ranks skip alike), or check_finite="zero"'
    )


def _steps(name: str, value: Any) -> int:
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{name} must be None or a number of steps from 1, not {value!r}")
    return value
