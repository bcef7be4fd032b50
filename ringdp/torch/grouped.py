"""Several tensors in one call: `ringdp.grouped.GroupedOperations` does the work. What is torch's own here: gradients
flow through the blocking groups that return new tensors (`autograd.py`), and these take `compression`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ringdp.constants import Average, ReduceOp
from ringdp.grouped import GroupedOperations
from ringdp.process_sets import ProcessSet, global_process_set
from ringdp.requests import reduce_op
from ringdp.torch.autograd import GroupedAllgather, GroupedAllreduce, GroupedReducescatter, wanted
from ringdp.torch.compression import Compression, check, wire_for
from ringdp.torch.ops import operations
from ringdp.torch.tracing import is_compiling, outside

Scale = tuple[float, float]  # before and after


groups = GroupedOperations(operations)

grouped_allreduce_async = outside(groups.grouped_allreduce_async)
grouped_allreduce_async_ = outside(groups.grouped_allreduce_async_)
grouped_allgather_async = outside(groups.grouped_allgather_async)
grouped_reducescatter_async = outside(groups.grouped_reducescatter_async)


class Blocking:
    """The blocking groups, without gradients: what a compiler's recorder (`compiled.py`) stands in for."""

    def grouped_allreduce(
        self, tensors: Sequence[Any], name: str | None, op: ReduceOp, scale: Scale, process_set: ProcessSet
    ) -> list[Any]:
        return groups.grouped_allreduce(tensors, None, name, op, *scale, process_set)

    def grouped_allgather(
        self, tensors: Sequence[Any], name: str | None, process_set: ProcessSet
    ) -> list[Any]:
        return groups.grouped_allgather(tensors, name, process_set)

    def grouped_reducescatter(
        self, tensors: Sequence[Any], name: str | None, op: ReduceOp, scale: Scale, process_set: ProcessSet
    ) -> list[Any]:
        return groups.grouped_reducescatter(tensors, name, op, process_set, *scale)


_blocking = Blocking()


def _now() -> Any:
    """Who takes the blocking calls."""
    if not is_compiling():
        return _blocking
    from ringdp.torch import compiled

    return compiled.recorder


def _compressed(tensors: Sequence[torch.Tensor], compression: Any) -> tuple[list[torch.Tensor], list[Any]]:
    pairs = [compression.compress(tensor) for tensor in tensors]
    return [narrow for narrow, _ in pairs], [context for _, context in pairs]


def _decompressed(
    results: Sequence[torch.Tensor], contexts: Sequence[Any], compression: Any
) -> list[torch.Tensor]:
    return [compression.decompress(r, context) for r, context in zip(results, contexts, strict=True)]


def grouped_allreduce(
    tensors: Sequence[torch.Tensor],
    average: bool | None = None,
    name: str | None = None,
    compression: Any = Compression.none,
    op: ReduceOp | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> list[torch.Tensor]:
    """`allreduce` of each tensor; gradients flow back."""
    check(compression)
    how = reduce_op(op, average), (prescale_factor, postscale_factor)
    has_gradients = any(wanted(tensor) for tensor in tensors)
    if has_gradients or is_compiling():
        narrow, contexts = _compressed(tensors, compression)
        if has_gradients:
            results = GroupedAllreduce.apply(_now(), name, *how, process_set, *narrow)
        else:
            results = _now().grouped_allreduce(narrow, name, *how, process_set)
        return _decompressed(results, contexts, compression)
    wires = [wire_for(tensor, compression, process_set) for tensor in tensors]
    pairs = [
        (tensor, None) if wire is not None else compression.compress(tensor)
        for tensor, wire in zip(tensors, wires, strict=True)
    ]
    requests = [
        operations.requests.allreduce(tensor, *how)
        if wire is None
        else operations.requests.allreduce_through(wire, tensor, *how)
        for (tensor, _), wire in zip(pairs, wires, strict=True)
    ]
    results = operations.submit_group(requests, name, process_set).wait()
    return _decompressed(results, [context for _, context in pairs], compression)


def grouped_allreduce_(
    tensors: Sequence[torch.Tensor],
    average: bool | None = None,
    name: str | None = None,
    op: ReduceOp | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> list[torch.Tensor]:
    """`allreduce_` of each tensor."""
    if is_compiling():
        return _now().grouped_allreduce_(  # type: ignore[no-any-return]
            tensors, name, reduce_op(op, average), (prescale_factor, postscale_factor), process_set
        )
    return grouped_allreduce_async_(
        tensors, average, name, op, prescale_factor, postscale_factor, process_set
    ).wait()


def grouped_allgather(
    tensors: Sequence[torch.Tensor], name: str | None = None, process_set: ProcessSet = global_process_set
) -> list[torch.Tensor]:
    """`allgather` of each tensor; gradients flow back."""
    if any(wanted(tensor) for tensor in tensors):
        return list(GroupedAllgather.apply(_now(), name, process_set, *tensors))
    return _now().grouped_allgather(tensors, name, process_set)  # type: ignore[no-any-return]


def grouped_reducescatter(
    tensors: Sequence[torch.Tensor],
    name: str | None = None,
    compression: Any = Compression.none,
    op: ReduceOp = Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> list[torch.Tensor]:
    """`reducescatter` of each tensor; gradients flow back."""
    check(compression)
    scale = (prescale_factor, postscale_factor)
    how = reduce_op(op, None), scale, process_set
    narrow, contexts = _compressed(tensors, compression)
    if any(wanted(tensor) for tensor in narrow):
        results = GroupedReducescatter.apply(_now(), name, *how, *narrow)
    else:
        results = _now().grouped_reducescatter(narrow, name, *how)
    return _decompressed(results, contexts, compression)
