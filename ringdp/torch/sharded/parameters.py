"""Shards of whole parameters, for optimizers whose step of an element depends on others (Muon, Adafactor).

Each parameter has an owner, so that the owners have about as many elements each. The gradients are all-reduced as
without shards; an owner steps its parameters, and broadcasts them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from ringdp.state import broadcast_object
from ringdp.torch import device
from ringdp.torch.ops import operations
from ringdp.torch.wire import Wire

State = dict[str, Any]  # of a parameter


class Parameters:
    """The shards of one optimizer. `state` is the optimizer's."""

    def __init__(self, wire: Wire, params: Iterable[torch.Tensor], state: dict[torch.Tensor, State]) -> None:
        self.wire, self.state = wire, state
        self._loads = [0] * wire.ranks
        self._owners: dict[torch.Tensor, int] = {}
        self.extend(params)

    def extend(self, params: Iterable[torch.Tensor]) -> None:
        """Further parameters: the largest first, each to the rank that has the least."""
        new = [param for param in params if param not in self._owners]
        for param in sorted(new, key=lambda param: -param.numel()):
            owner = self._loads.index(min(self._loads))
            self._owners[param] = owner
            self._loads[owner] += param.numel()

    # --- a step ---

    def pieces(self, params: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Those of `params` that are this rank's."""
        return [param for param in params if self._owners[param] == self.wire.rank]

    def gather(self) -> None:
        """Let all ranks have each other's parameters."""
        sent = []
        for owner, params in self._by_owner():
            flat = torch.cat([param.detach().reshape(-1) for param in params])
            name = f"{self.wire.name}.parameters.{owner}.{device.kind_of(flat)}"
            handle = operations.broadcast_async_(flat, self._root(owner), name, self._set())
            sent.append((owner, params, flat, handle))
        for owner, params, flat, handle in sent:
            handle.wait()
            if owner == self.wire.rank:
                continue
            with torch.no_grad():
                for param, part in zip(params, flat.split([p.numel() for p in params]), strict=True):
                    param.copy_(part.view(param.shape))

    def _by_owner(self) -> list[tuple[int, list[torch.Tensor]]]:
        """Those of one dtype and kind of memory together; without the empty ones."""
        found: dict[tuple[int, str], list[torch.Tensor]] = {}
        for param, owner in self._owners.items():
            if param.numel() > 0:
                found.setdefault((owner, device.kind_of(param)), []).append(param)
        return [(owner, params) for (owner, _), params in found.items()]

    # --- state ---

    def adopt(self) -> None:
        """Of state that is there for all parameters, keep this rank's."""
        for param, owner in self._owners.items():
            if owner != self.wire.rank:
                self.state.pop(param, None)

    def drop(self) -> None:
        """Forget the state."""
        for param in self._owners:
            self.state.pop(param, None)

    def whole_state(self, keep: bool) -> dict[torch.Tensor, State]:
        """The state by parameter, from all ranks; empty unless `keep`. Collective."""
        params = list(self._owners)
        whole: dict[torch.Tensor, State] = {}
        for owner in range(self.wire.ranks):
            mine = {
                i: {key: device.portable(value) for key, value in self.state[p].items()}
                for i, p in enumerate(params)
                if p in self.state and self._owners[p] == owner
            }
            name = f"{self.wire.name}.state.{owner}"
            theirs = broadcast_object(
                mine if owner == self.wire.rank else None, self._root(owner), name, self._set()
            )
            if keep and theirs is not None:
                for i, state in theirs.items():
                    whole[params[i]] = {key: device.beside(params[i], value) for key, value in state.items()}
        return whole

    def _root(self, owner: int) -> int:
        ranks = self.wire.options.process_set.ranks
        assert ranks is not None
        return ranks[owner]

    def _set(self) -> Any:
        return self.wire.options.process_set
