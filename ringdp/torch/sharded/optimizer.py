"""What comes between an optimizer that is sharded and its class.

While the optimizer's own `step()` runs, its parameter groups hold this rank's pieces in place of the parameters, and
its state is that of the pieces. All others see the parameters: schedulers, step hooks, `zero_grad()`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch

from ringdp import world
from ringdp.constants import Max, Sum
from ringdp.errors import UsageError
from ringdp.torch.exchange import Exchange
from ringdp.torch.finite import not_finite
from ringdp.torch.ops import operations
from ringdp.torch.optimizer import Closure, Distributed
from ringdp.torch.sharded.elements import Elements
from ringdp.torch.sharded.parameters import Parameters
from ringdp.torch.wire import ELEMENTS

Shards = Elements | Parameters


class Sharded(Distributed):
    """See `Distributed`. With one rank, and on ranks outside the process set, the shard is all there is."""

    _shards: Shards | None = None  # None: there has been no step yet, or there is one rank
    _whole_state: dict[torch.Tensor, dict[str, Any]] | None = None  # from all ranks, until the next step

    # --- what users call ---

    def clip_grad_norm_(
        self, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
    ) -> torch.Tensor:
        """As `torch.nn.utils.clip_grad_norm_` of all this optimizer's parameters, whose norm is over all shards.

        The exchange is finished first. To be called on all ranks, after `GradScaler.unscale_` where there is a scaler.

        Args:
            max_norm: what the norm is to be at the most.
            norm_type: of which p-norm, above 0; `inf` for the greatest absolute value.
            error_if_nonfinite: raise if the norm is an inf or NaN.

        Returns:
            The norm before, the same on all ranks: a scalar.

        Raises:
            RuntimeError: as `error_if_nonfinite` says, on all ranks.
            UsageError: another `norm_type`.
        """
        if not norm_type > 0:
            raise UsageError(f"norm_type must be above 0, not {norm_type!r}")
        exchange = self._exchange
        if exchange is not None:
            exchange.settle()
        if exchange is None or exchange.options.shard != ELEMENTS:  # this rank has all gradients
            return torch.nn.utils.clip_grad_norm_(self._parameters(), max_norm, norm_type, error_if_nonfinite)
        pieces = [piece for group in self._groups_of_pieces() for piece in group["params"]]
        grads = [piece.grad for piece in pieces if piece.grad is not None]
        counted = [piece.grad for piece in pieces if piece.grad is not None and self._counts(piece, exchange)]
        norm = _norm(counted, norm_type, exchange, self._home())
        if error_if_nonfinite and not torch.isfinite(norm):
            raise RuntimeError(
                f"the gradients' norm of order {norm_type} is {norm.item()}, so they cannot be clipped"
            )
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        with torch.no_grad():
            for grad in grads:
                grad.mul_(factor.to(grad.device, grad.dtype))
        return norm

    def consolidate_state_dict(self, to: int = 0) -> None:
        """Collect the state of all shards on rank `to`: its `state_dict()` is then that of an optimizer without shards.

        To be called on all ranks of the process set. Holds until the next `step()`. (The name is that of torch's
        ZeroRedundancyOptimizer.)

        Args:
            to: a rank of the job; -1: all ranks get the state.

        Raises:
            UsageError: `to` is no rank of the process set.
        """
        exchange = self._exchange
        if exchange is None:
            return
        if to != -1 and to not in (exchange.options.process_set.ranks or ()):
            raise UsageError(f"consolidate_state_dict: {to} is no rank of {exchange.options.process_set!r}")
        keep = to in (-1, world.rank())
        shards = self._follow(exchange)
        whole = shards.whole_state(keep)
        self._whole_state = {p: whole[p] for p in self._parameters() if p in whole} if keep else None

    # --- torch's methods ---

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with the state of all shards, on a rank to which `consolidate_state_dict` has brought it.

        Raises:
            UsageError: it has not, or there was a `step()` since.
        """
        if self._exchange is None:
            return super().state_dict()
        if self._whole_state is None:
            raise UsageError(
                "this rank has its own shard of the optimizer's state alone: call consolidate_state_dict(to=rank) on "
                "all ranks first, and state_dict() on that one"
            )
        sharded = self.__dict__["state"]
        self.__dict__["state"] = self._whole_state
        try:
            return super().state_dict()
        finally:
            self.__dict__["state"] = sharded

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, of an optimizer without shards or a consolidated one, from whatever number of ranks."""
        self._whole_state = None
        super().load_state_dict(state_dict)
        if self._shards is not None:
            self._shards.state = self.state
            self._shards.adopt()

    def __reduce__(self) -> Any:
        """Refuse: this rank has a part."""
        if self._exchange is None:
            return super().__reduce__()
        raise UsageError(
            "a sharded optimizer cannot be copied or pickled: call consolidate_state_dict() and save its state_dict()"
        )

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """As torch's. GradScaler, which reads them to unscale, sees this rank's pieces: an overflow in any shard
        is shown to all ranks before."""
        exchange = self.__dict__.get("_exchange")
        if exchange is None or sys._getframe(1).f_code.co_name != "_unscale_grads_":
            return self.__dict__["param_groups"]
        exchange.settle()
        exchange.checking.scaler_looks()
        if exchange.options.shard != ELEMENTS:  # all ranks have all gradients
            return self.__dict__["param_groups"]
        groups = self._groups_of_pieces()
        pieces = [piece for group in groups for piece in group["params"]]
        return [*groups, {"params": [self._overflow_of_all(exchange, pieces)]}]

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.__dict__["param_groups"] = groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As `Distributed`'s."""
        super().add_param_group(param_group)
        if isinstance(self._shards, Parameters):
            self._shards.extend(self._parameters())

    def _plain_step(self, closure: Closure | None, **kwargs: Any) -> Any:
        exchange = self._exchange
        if exchange is None:
            return super()._plain_step(closure, **kwargs)
        self._whole_state = None
        loss = None if closure is None else closure()  # sees the parameters
        exchange.settle()  # after skip_synchronize() too: to step what is not reduced would part the ranks for good
        if exchange.wire.world is not world.current():
            raise UsageError(
                "ringdp was initialised again since these gradients were reduced: call zero_grad() and backward() anew"
            )
        stepped = self._step_of_pieces(kwargs)
        return stepped if closure is None else loss

    def _step_of_pieces(self, kwargs: dict[str, Any]) -> Any:
        """The optimizer's own step; what torch runs before and after each step, hooks, sees the parameters."""
        own: Any = type(self).__bases__[1].step  # type: ignore[attr-defined]
        plain = own.__wrapped__ if getattr(own, "hooked", False) else own

        def step(optimizer: Sharded, **kwargs: Any) -> Any:
            with optimizer._pieces_in_place():
                result = plain(optimizer, **kwargs)
            assert optimizer._shards is not None
            optimizer._shards.gather()
            return result

        return torch.optim.Optimizer.profile_hook_step(step)(self, **kwargs)

    def is_sharded(self) -> bool:
        """There are several ranks, each with its part."""
        return self._exchange is not None

    # --- pieces ---

    def _follow(self, exchange: Exchange) -> Shards:
        """The shards for the gradients of the window that was exchanged last."""
        old, buckets = self._shards, exchange.exchanged
        if exchange.options.shard != ELEMENTS:
            if old is None:
                self._shards = Parameters(exchange.wire, list(self._parameters()), self.state)
                self._shards.adopt()
        elif buckets is not None and not (isinstance(old, Elements) and old.buckets is buckets):
            self._shards = Elements(exchange.wire, buckets, self.state)
            if isinstance(old, Elements):
                old.move_to(self._shards)
            self._shards.adopt()
        elif old is None:
            self._shards = Elements(exchange.wire, [], self.state)
        assert self._shards is not None
        return self._shards

    def _groups_of_pieces(self) -> list[dict[str, Any]]:
        groups = self.__dict__["param_groups"]
        if self._exchange is None:
            return groups
        shards = self._follow(self._exchange)
        return [{**group, "params": shards.pieces(group["params"])} for group in groups]

    @contextlib.contextmanager
    def _pieces_in_place(self) -> Iterator[None]:
        """The groups hold pieces: the same dicts, as a step may change what is in them."""
        groups = self.__dict__["param_groups"]
        whole = [group["params"] for group in groups]
        for group, pieces in zip(groups, self._groups_of_pieces(), strict=True):
            group["params"] = pieces["params"]
        try:
            yield
        finally:
            for group, params in zip(groups, whole, strict=True):
                group["params"] = params

    def _counts(self, piece: torch.Tensor, exchange: Exchange) -> bool:
        """This rank is the one that adds it to a norm."""
        assert isinstance(self._shards, Elements)
        return exchange.wire.rank == 0 or not self._shards.is_whole(piece)

    def _home(self) -> torch.Tensor:
        """A parameter beside which, on all ranks alike, what concerns all pieces is computed."""
        return next(iter(self._parameters()))

    def _overflow_of_all(self, exchange: Exchange, pieces: list[torch.Tensor]) -> torch.Tensor:
        """A parameter whose gradient is an inf if that of any piece on any rank is not finite, else 0. (A rank without
        pieces needs one too: GradScaler wants to see a gradient.)"""
        shown = self._home().new_zeros(1, dtype=torch.float32)
        mark = shown.to(torch.uint8)
        for piece in pieces:
            if piece.grad is not None:
                mark |= not_finite(piece.grad).to(mark.device)
        mark |= int(exchange.checking.zeroed)
        on_gpu = exchange.checking.zeroed_on_gpu
        if on_gpu is not None:
            mark |= (on_gpu.view(1) > 0).to(mark.device)
        exchange.wire.max_(mark, "overflow")
        shown.grad = torch.where(mark > 0, torch.inf, shown)
        return shown


def _norm(grads: list[torch.Tensor], order: float, exchange: Exchange, home: torch.Tensor) -> torch.Tensor:
    """Of all elements on all ranks. In float64, so that neither the ranks nor their number matter to it."""
    norms = [torch.linalg.vector_norm(g.detach(), order, dtype=torch.float64).to(home.device) for g in grads]
    parts = torch.stack(norms) if norms else home.new_zeros(1, dtype=torch.float64)
    largest = order == float("inf")
    mine = parts.max() if largest else parts.pow(order).sum()
    name, op = f"{exchange.name()}.norm", Max if largest else Sum
    total = operations.allreduce(mine, name=name, op=op, process_set=exchange.options.process_set)
    return total if largest else total.pow(1 / order)
