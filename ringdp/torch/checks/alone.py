"""`check_finite` where nothing is exchanged: with one rank, and on ranks outside the process set."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from weakref import WeakMethod

import torch

from ringdp import world
from ringdp.errors import NonFiniteError
from ringdp.torch.checks.finite import OUTCOMES, find_in_gradient, not_finite_error, zero_in_gradient
from ringdp.torch.checks.options import RAISE, ZERO

Named = Callable[[], Sequence[tuple[str, torch.Tensor]]]


class Alone:
    """The same policies, on gradients as they are when the optimizer steps."""

    def __init__(self, policy: str, named: Named) -> None:
        """`named`: a method of an object that is not kept alive."""
        self._policy, self._named = policy, WeakMethod(named)
        self.skipped_steps = 0

    def may_step(self) -> bool:
        """False if the step is to be skipped.

        Raises:
            NonFiniteError: as the policy wants it.
        """
        error = self._look()
        if error is None:
            return True
        if self._policy == RAISE:
            raise error
        print(f"ringdp: {error}", file=sys.stderr, flush=True)
        self.skipped_steps += self._policy != ZERO
        return self._policy == ZERO

    def may_go_on(self) -> bool:
        """As `may_step`, within a step.

        Raises:
            NonFiniteError: it cannot be skipped any more.
        """
        error = self._look()
        if error is None:
            return True
        if self._policy != ZERO:
            raise error
        print(f"ringdp: {error}", file=sys.stderr, flush=True)
        return True

    def _look(self) -> NonFiniteError | None:
        named = self._named()
        error = None
        for number, (name, param) in enumerate(() if named is None else named()):
            found = find_in_gradient(number, param.grad, param.dtype)
            if found is not None and error is None:
                text = f"rank {world.rank()} has {found.value} in the gradient of {name}, at flat index {found.index}"
                of_ranks = [(world.rank(), name, found.index, found.value)]
                error = not_finite_error(f"{text}: {OUTCOMES[self._policy]}", of_ranks)
            if self._policy == ZERO:
                zero_in_gradient(param.grad, param.dtype)
        return error
