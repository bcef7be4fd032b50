"""`DistributedOptimizer(op=Adasum)`: each rank steps with its own gradients, then the steps are combined.

Not the gradients but what a step changes, the difference of the parameters, goes through the all-reduce, as in Horovod:
so the optimizer may be any. The products of Adasum are those of one parameter's differences; csrc/collectives/adasum.h
has the equation.

S. Maleki et al., "Scaling Distributed Training with Adaptive Summation", MLSys 2021, section 3.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch

from ringdp import preempt, world
from ringdp.constants import Adasum, Min
from ringdp.errors import UsageError
from ringdp.process_sets import ProcessSet
from ringdp.requests import usable
from ringdp.torch.finite import is_finite, show
from ringdp.torch.grouped import grouped_allreduce
from ringdp.torch.ops import operations
from ringdp.torch.optimizer import Closure, Distributed


class Combination:
    """How the ranks combine their steps."""

    def __init__(self, compression: Any, process_set: ProcessSet) -> None:
        """The next one of this process set.

        Raises:
            UsageError: another number of ranks than a power of two.
        """
        ranks = process_set.size()
        if ranks & (ranks - 1):
            raise UsageError(f"op=Adasum needs a power of two of ranks, not {ranks}")
        self._compression, self._process_set = compression, process_set
        here, number = world.current(), usable(process_set)
        self.name = f"adasum.{here.plans.get(number, 0)}"
        here.plans[number] = here.plans.get(number, 0) + 1

    def combine(self, params: list[torch.Tensor], before: list[torch.Tensor]) -> None:
        """Each parameter becomes what it was before plus the Adasum of what the ranks' steps have changed."""
        with torch.no_grad():
            steps = [param - start for param, start in zip(params, before, strict=True)]
            combined = grouped_allreduce(
                steps,
                name=self.name,
                compression=self._compression,
                op=Adasum,
                process_set=self._process_set,
            )
            for param, start, step in zip(params, before, combined, strict=True):
                param.copy_(start.add_(step))

    def is_of_all(self) -> bool:
        """All ranks of the job combine their steps."""
        return self._process_set.size() == world.size()

    def share_overflow(self, params: list[torch.Tensor]) -> None:
        """If some rank's gradients hold an inf or a NaN, each rank's do afterwards."""
        mine = all(param.grad is None or is_finite(param.grad) for param in params)
        flag = torch.tensor([mine], dtype=torch.uint8)
        operations.allreduce_(flag, name=f"{self.name}.finite", op=Min, process_set=self._process_set)
        if mine and not flag.item():
            show(params)


class AdasumOptimizer(Distributed):
    """What is put between an optimizer and its class, as `Distributed` is."""

    _combination: Combination

    def _plain_step(self, closure: Closure | None, **kwargs: Any) -> Any:
        params = [param for param in self._parameters() if param.requires_grad]
        before = [param.detach().clone() for param in params]
        result = super()._plain_step(closure, **kwargs)
        self._combination.combine(params, before)
        return result

    def _stop_if_asked(self) -> None:
        combination = self._combination
        if not world.is_initialized():
            return
        if of_all := combination.is_of_all():
            preempt.agree(world.current(), f"{combination.name}.stop")  # there is no vote that could tell
        preempt.stepped(world.current(), combination.name, of_all)

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Gradients are never exchanged: nothing is different inside."""
        yield

    def weigh(self, n: int) -> None:
        raise UsageError("op=Adasum does not average: weigh() means nothing for it")

    def register_comm_hook(self, state: Any, hook: Any) -> None:
        raise UsageError("op=Adasum exchanges no buckets of gradients: it takes no communication hook")

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """As torch's. Where GradScaler reads them, it is about to look for an overflow: all ranks must see the same."""
        combination = self.__dict__.get("_combination")
        if combination is not None and sys._getframe(1).f_code.co_name == "_unscale_grads_":
            combination.share_overflow(list(self._parameters()))
        return self.__dict__["param_groups"]

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.__dict__["param_groups"] = groups
