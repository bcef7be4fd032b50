"""Shards of elements: of each bucket, the chunk of this rank, which cuts through parameters.

The parameters of a bucket lie in flat memory as their gradients do. The reduce-scatter leaves this rank's chunk of the
gradients reduced; its *pieces*, one for each parameter that has elements in the chunk, are what the optimizer steps;
the all-gather of the flat parameters gives every rank the others' chunks. Both are the halves of the all-reduce that
an optimizer without shards would do, so each element is updated from the same bits.

The state of a piece is of its shape, or a scalar that all pieces of a parameter have alike (the number of steps). When
a plan with other buckets takes the place of the last one, the pieces are others, and their state moves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ringdp.torch import device
from ringdp.torch.bucket import Bucket
from ringdp.torch.memory import bucket_memory
from ringdp.torch.ops import operations
from ringdp.torch.plan import Entry
from ringdp.torch.sharded.covered import uncovered
from ringdp.torch.slot import Slot
from ringdp.torch.state import allgather_object
from ringdp.torch.wire import Wire

State = dict[str, Any]  # of a parameter or a piece
SCALARS = ("step", "eta", "mu", "mu_product")  # state that is one number, whatever the parameter's shape


class Place:
    """Where a parameter lies in the flat memory of its bucket, and the piece of it that is this rank's."""

    def __init__(
        self, slot: Slot, entry: Entry, offset: int, flat: torch.Tensor, own: tuple[int, int]
    ) -> None:
        self.slot, self.entry = slot, entry
        self.view = flat.as_strided(entry.shape, entry.strides, offset)
        self.begin = min(max(own[0] - offset, 0), entry.count)  # elements in the order of memory
        self.end = min(max(own[1] - offset, 0), entry.count)
        self.piece: torch.nn.Parameter | None = None
        if self.end > self.begin:
            self.piece = torch.nn.Parameter(flat[offset + self.begin : offset + self.end])

    def fits(self) -> bool:
        """The parameter is still as it was when the plan was made."""
        param = self.slot.param
        return (
            param.dtype == self.entry.dtype
            and tuple(param.shape) == self.entry.shape
            and device.is_on_gpu(param) == self.entry.on_gpu
        )

    def take_in(self) -> None:
        """The parameter lies here from now on (it may have been given other memory)."""
        param = self.slot.param
        if param.data_ptr() != self.view.data_ptr() or param.stride() != self.view.stride():
            with torch.no_grad():
                self.view.copy_(param)
            param.data = self.view

    def in_order(self, tensor: torch.Tensor) -> torch.Tensor:
        """The elements of a tensor of the parameter's shape, as one row, in the order of memory here."""
        tensor = tensor.detach()
        if tensor.stride() != self.entry.strides:
            tensor = tensor.new_empty_strided(self.entry.shape, self.entry.strides).copy_(tensor)
        return tensor.as_strided((self.entry.count,), (1,), tensor.storage_offset())

    def cut_gradient(self) -> torch.Tensor | None:
        """The piece's part of the gradient, in its memory."""
        grad = uncovered(self.slot.param.grad)
        if grad is None:
            return None
        if grad.stride() != self.entry.strides:
            # The user's own: what is done to the piece must be done to it.
            self.slot.param.grad = grad = self.in_order(grad).as_strided(self.entry.shape, self.entry.strides)
        return self.in_order(grad)[self.begin : self.end]

    def cut(self, state: State) -> State:
        """The piece's part of the parameter's state."""
        return {key: self._cut(key, value) for key, value in state.items()}

    def _cut(self, key: str, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if key in SCALARS or value.shape != self.slot.param.shape:
            return value.clone()
        return self.in_order(value)[self.begin : self.end].clone()


class Shard:
    """This rank's chunk of one bucket."""

    def __init__(self, bucket: Bucket, wire: Wire) -> None:
        self.index = bucket.index
        self.flat = bucket_memory(bucket.flat.numel(), bucket.flat.dtype, bucket.flat)
        self.own = wire.own_chunk(bucket.flat)
        self.places = [
            Place(slot, entry, offset, self.flat, self.own)
            for slot, entry, offset in zip(bucket.slots, bucket.entries, bucket.offsets, strict=True)
        ]

    def ranges(self) -> Iterator[tuple[Place, int]]:
        """Each place, with its offset in the bucket."""
        for place in self.places:
            yield place, place.view.storage_offset() - self.flat.storage_offset()


class Elements:
    """The shards of one optimizer. `state` is the optimizer's."""

    def __init__(self, wire: Wire, buckets: Sequence[Bucket], state: dict[torch.Tensor, State]) -> None:
        self.wire, self.buckets, self.state = wire, buckets, state
        self.shards = [Shard(bucket, wire) for bucket in buckets]
        self._places = {place.slot.param: place for shard in self.shards for place in shard.places}
        self._pieces = {place.piece for place in self._places.values() if place.piece is not None}
        for place in self._places.values():
            if place.fits():
                place.take_in()

    # --- a step ---

    def pieces(self, params: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What the optimizer is to step instead of `params`, with gradients. A parameter that is in no bucket has the
        same gradient on all ranks, and all step the whole of it."""
        pieces: list[torch.Tensor] = []
        for param in params:
            place = self._places.get(param)
            if place is None or not place.fits():
                param.grad = uncovered(param.grad)
                pieces.append(param)
                continue
            place.take_in()
            if place.piece is not None:
                place.piece.grad = place.cut_gradient()
                pieces.append(place.piece)
        return pieces

    def _steps_whole(self, param: torch.Tensor) -> bool:
        place = self._places.get(param)
        return param not in self._pieces and (place is None or not place.fits())

    def is_whole(self, piece: torch.Tensor) -> bool:
        """It is a parameter of which all ranks step the whole."""
        return piece not in self._pieces

    def gather(self) -> None:
        """Let all ranks have each other's chunks of the parameters."""
        handles = [self.wire.gather(shard.flat, shard.index) for shard in self.shards]
        for handle in handles:
            handle.wait()
        for place in self._places.values():
            torch.autograd.graph.increment_version(place.slot.param)  # the core wrote behind autograd's back

    # --- state ---

    def adopt(self) -> None:
        """Of state that is there for whole parameters, keep this rank's part."""
        for param, place in self._places.items():
            whole = self.state.pop(param, None)
            if whole and place.piece is not None:
                self.state[place.piece] = place.cut(whole)

    def drop(self) -> None:
        """Forget the state of all pieces."""
        for piece in self._pieces:
            self.state.pop(piece, None)

    def whole_state(self, keep: bool) -> dict[torch.Tensor, State]:
        """The state by parameter, in the parameter's shape, from all ranks; empty unless `keep`. Collective."""
        whole: dict[torch.Tensor, State] = {}
        for place, state in self._gathered(keep):
            whole[place.slot.param] = state
        if keep:
            whole |= {p: state for p, state in self.state.items() if state and self._steps_whole(p)}
        return whole

    def move_to(self, other: Elements) -> None:
        """Move the state to the pieces of `other`. Collective."""
        for place, state in self._gathered(True):
            there = other._places.get(place.slot.param)
            if there is None:
                self.state[place.slot.param] = state
            elif there.piece is not None:
                self.state[there.piece] = there.cut(state)
        self.drop()

    def _gathered(self, keep: bool) -> Iterator[tuple[Place, State]]:
        """Each parameter's state, whole; one bucket at a time is in memory."""
        known = self._described()
        name = f"{self.wire.name}.state.chunks"
        chunks = allgather_object([shard.own for shard in self.shards], name, self._set())
        for number, shard in enumerate(self.shards):
            states: dict[int, State] = {}
            for key, dtype in sorted(
                {
                    (k, v)
                    for place in shard.places
                    for k, v in known.get(place.slot.index, {}).items()
                    if _is_dtype(v)
                },
                key=str,
            ):
                flat = self._all_of(shard, key, dtype, [own[number] for own in chunks])
                for place, offset in shard.ranges() if keep else ():
                    if known.get(place.slot.index, {}).get(key) == dtype:
                        row = flat[offset : offset + place.entry.count]
                        whole = row.as_strided(place.entry.shape, place.entry.strides).clone()
                        states.setdefault(place.slot.index, {})[key] = whole
            for place in shard.places if keep else ():
                if place.slot.index in known:
                    described = known[place.slot.index]
                    found = states.get(place.slot.index, {})
                    yield (
                        place,
                        {
                            k: found[k] if _is_dtype(v) else device.beside(shard.flat, v)
                            for k, v in described.items()
                        },
                    )

    def _described(self) -> dict[int, State]:
        """By number of the parameter, the same on all ranks: of what is by element the dtype, else the value itself."""
        mine: dict[int, State] = {}
        for place in self._places.values():
            if place.piece is not None and place.piece in self.state:
                mine[place.slot.index] = {
                    key: value.dtype if _by_element(value, place.piece) else device.portable(value)
                    for key, value in self.state[place.piece].items()
                }
        known: dict[int, State] = {}
        for described in allgather_object(mine, f"{self.wire.name}.state", self._set()):
            known |= described
        return known

    def _all_of(
        self, shard: Shard, key: str, dtype: torch.dtype, chunks: Sequence[tuple[int, int]]
    ) -> torch.Tensor:
        """One kind of state of all elements of a bucket."""
        begin, end = shard.own
        mine = shard.flat.new_zeros(end - begin, dtype=dtype)
        for place, offset in shard.ranges():
            value = self.state.get(place.piece, {}).get(key) if place.piece is not None else None
            if value is not None:
                start = offset + place.begin - begin
                mine[start : start + value.numel()] = value.reshape(-1)
        name = f"{self.wire.name}.state.{shard.index}.{key}.{dtype}"
        rows = operations.allgather(mine, name, self._set())
        flat = shard.flat.new_empty(shard.flat.numel(), dtype=dtype)
        for (first, last), part in zip(chunks, rows.split([e - b for b, e in chunks]), strict=True):
            flat[first:last] = part
        return flat

    def _set(self) -> Any:
        return self.wire.options.process_set


def _by_element(value: Any, piece: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == piece.shape


def _is_dtype(value: Any) -> bool:
    return isinstance(value, torch.dtype)
