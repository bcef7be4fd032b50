"""How a sharded optimizer is saved: each rank its shard, from which all ranks, however many, get theirs again."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np

from ringdp import world
from ringdp.errors import UsageError
from ringdp.numpy.ops import operations
from ringdp.process_sets import global_process_set
from ringdp.state import broadcast_object
from ringdp.torch.elastic import rows
from ringdp.torch.elastic.handlers import OptimizerStateHandler
from ringdp.torch.elastic.payload import pack, unpack


class ShardedStateHandler(OptimizerStateHandler):
    """An optimizer with `shard`. On one rank, and before the first step, the shard is all there is."""

    def set_value(self, value: Any) -> None:
        exchange = value._exchange
        if exchange is not None and exchange.options.process_set is not global_process_set:
            raise UsageError("a sharded optimizer in a TorchState must be of all ranks of the job")
        super().set_value(value)

    def save(self) -> None:
        optimizer = self.value
        self._groups = copy.deepcopy(self._options())
        self._shards = optimizer._shards
        self._homes = self._homes_now()
        self._saved = rows.rows(self._homes, optimizer.state)

    def restore(self) -> None:
        """Local. If the plan has changed since, the shards are as they were, and the next step cuts them anew."""
        self.value._whole_state = None
        self._put_options(copy.deepcopy(self._groups))
        self.value._shards = self._shards
        self._put(self._homes, self._saved)

    def sync(self) -> None:
        """Options are rank 0's. Shards that were cut before ringdp was initialised again are cut anew."""
        self._put_options(broadcast_object(self._options()))
        if self._shards is not None and self._shards.wire.world is not world.current():
            self._cut_anew(None)
            for rank in range(world.size()):
                self.take_own({"rows": _sent(self._saved, rank)})
            self.own_taken()
        else:
            self.save()

    # --- commits in a folder ---

    def committed(self) -> Any:
        exchange = self.value._exchange
        return {"groups": self._groups, "order": None if exchange is None else exchange.plan_order()}

    def put_committed(self, committed: Any) -> None:
        self._put_options(committed["groups"])
        self._cut_anew(committed["order"])

    def own(self) -> Any:
        cut = self._shards is not None or self.value._exchange is None
        return {"rows": self._saved, "places": _places(self._homes) if cut else None}

    def fits(self, own: Any) -> bool:
        return own["places"] is not None and own["places"] == _places(self._homes)

    def take_own(self, own: Any) -> None:
        for row in own["rows"]:
            if row["parameter"] in self._by_number:
                self._by_number[row["parameter"]].take(row)

    def own_taken(self) -> None:
        rows.put(self._homes, self.value.state)
        self.save()

    def put_own(self, own: Any) -> None:
        self.take_own(own)
        self.own_taken()

    # --- parts ---

    def _options(self) -> list[dict[str, Any]]:
        return [{k: v for k, v in group.items() if k != "params"} for group in self.value.param_groups]

    def _put_options(self, groups: list[dict[str, Any]]) -> None:
        for group, options in zip(self.value.param_groups, groups, strict=True):
            group.update(options)

    def _cut_anew(self, order: tuple[list[int], bool] | None) -> None:
        """There is no state, and shards for a plan in this order (None: as it is) that wait for theirs."""
        optimizer = self.value
        optimizer.state.clear()
        optimizer._shards = optimizer._whole_state = None
        exchange = optimizer._exchange
        if exchange is not None:
            exchange.plan_again(order)
            optimizer._follow(exchange)
        self._homes = self._homes_now()
        self._by_number = {home.parameter: home for home in self._homes}

    def _homes_now(self) -> list[rows.Home]:
        return rows.homes(list(self.value._parameters()), self.value._shards)

    def _put(self, homes: list[rows.Home], saved: list[rows.Row]) -> None:
        self.value.state.clear()
        fresh = {home.parameter: home.empty() for home in homes}
        for row in saved:
            fresh[row["parameter"]].take(row)
        rows.put(list(fresh.values()), self.value.state)


def _places(homes: list[rows.Home]) -> list[list[int]]:
    return [[home.parameter, home.begin, home.end] for home in homes]


def _sent(saved: list[rows.Row], root: int) -> list[rows.Row]:
    """Those of one rank, to all: as tensors."""
    buffer = io.BytesIO()
    if world.rank() == root:
        pack(saved)(buffer)
    size = broadcast_object(len(buffer.getbuffer()), root, "elastic.shards.size")
    data = (
        np.frombuffer(bytearray(buffer.getbuffer()), np.uint8)
        if world.rank() == root
        else np.empty(size, np.uint8)
    )
    operations.broadcast_(data, root, "elastic.shards")
    return unpack(data.data)
