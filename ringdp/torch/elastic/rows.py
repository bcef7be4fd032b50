"""The state of a sharded optimizer as rows, and how rows come to shards that are cut otherwise.

A *row* is the state of the elements [begin, end) of one parameter, in the order of memory. What is of the elements'
shape is one row of numbers; what all pieces of a parameter have alike, such as the number of steps, is beside it. A
shard of elements has rows of its pieces, one of whole parameters has rows of those, and an optimizer on one rank has
all.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ringdp.errors import UsageError
from ringdp.torch.plan import view_strides
from ringdp.torch.sharded.elements import SCALARS, Elements, State
from ringdp.torch.sharded.optimizer import Shards
from ringdp.torch.sharded.parameters import Parameters

Row = dict[str, Any]  # plain data and tensors, so that it can be packed


@dataclass
class Home:
    """Where a row of this rank's belongs: a piece, or a whole parameter."""

    parameter: int  # number in the optimizer
    key: torch.Tensor  # of the optimizer's state
    begin: int
    end: int
    strides: tuple[int, ...]  # of the whole parameter
    filled: int = 0  # elements that have come
    state: State = field(default_factory=dict)
    numbers: set[str] = field(default_factory=set)  # what of the state is by element

    def empty(self) -> Home:
        """The same, to which nothing has come."""
        return Home(self.parameter, self.key, self.begin, self.end, self.strides)

    def row(self, state: State) -> Row:
        """The state that is there for it. Copied."""
        numbers, others = {}, {}
        for name, value in state.items():
            by_element = isinstance(value, torch.Tensor) and value.shape == self.key.shape
            if by_element and name not in SCALARS:
                numbers[name] = flat(value.detach(), self.key, self.strides)
            else:
                others[name] = copy.deepcopy(value)
        place = {"parameter": self.parameter, "begin": self.begin, "end": self.end}
        return {**place, "strides": list(self.strides), "numbers": numbers, "others": others}

    def take(self, row: Row) -> None:
        """What there is in the row for it. Copied."""
        begin, end = max(self.begin, row["begin"]), min(self.end, row["end"])
        if begin >= end or self.filled == self.end - self.begin:
            return
        if tuple(row["strides"]) != self.strides:
            raise UsageError(
                f"parameter {self.parameter} lies otherwise in memory (strides {list(self.strides)}) than when its "
                f"optimizer's state was committed ({row['strides']})"
            )
        for name, value in row["numbers"].items():
            if name not in self.state:
                self.state[name] = value.new_zeros(self.end - self.begin)
            part = value[begin - row["begin"] : end - row["begin"]]
            self.state[name][begin - self.begin : end - self.begin] = part
        for name, value in row["others"].items():
            if name not in self.state:
                self.state[name] = copy.deepcopy(value)
        self.numbers |= set(row["numbers"])
        self.filled += end - begin

    def whole(self) -> State:
        """The state, as the optimizer has it."""
        if self.filled != self.end - self.begin:
            raise UsageError(
                f"{self.end - self.begin - self.filled} elements of parameter {self.parameter} are in no shard of the "
                "optimizer's state that was committed"
            )
        if self.key.dim() == 1:
            return self.state
        return {
            name: value.as_strided(self.key.shape, self.strides) if name in self.numbers else value
            for name, value in self.state.items()
        }


def flat(value: torch.Tensor, key: torch.Tensor, strides: Sequence[int]) -> torch.Tensor:
    """A copy as one row, in the order of memory that these strides of the key's shape mean."""
    if value.dim() == 1:
        return value.clone()
    ordered = value.new_empty_strided(key.shape, tuple(strides)).copy_(value)
    return ordered.as_strided((value.numel(),), (1,))


def homes(params: Sequence[torch.Tensor], shards: Shards | None) -> list[Home]:
    """Of all state that this rank is to have. `shards`: None on one rank, which has all of it."""
    found = []
    for number, param in enumerate(params):
        place = shards._places.get(param) if isinstance(shards, Elements) else None
        if isinstance(shards, Parameters) and shards._owners[param] != shards.wire.rank:
            continue
        if place is None or not place.fits():
            strides = view_strides(param.shape, param.stride())
            found.append(Home(number, param, 0, param.numel(), strides))
        elif place.piece is not None:
            found.append(Home(number, place.piece, place.begin, place.end, place.entry.strides))
    return found


def rows(homes: Sequence[Home], state: dict[torch.Tensor, State]) -> list[Row]:
    """The state that is there. Copied."""
    return [home.row(state[home.key]) for home in homes if state.get(home.key)]


def put(homes: Sequence[Home], state: dict[torch.Tensor, State]) -> None:
    """Let the optimizer have what the homes have taken."""
    for home in homes:
        if home.filled:
            state[home.key] = home.whole()
