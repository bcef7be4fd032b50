"""Several tensors in one call. All are exchanged or none is: a name that is in flight already leaves nothing started,
and where ranks differ in one tensor, no tensor is touched. Their names are `name.0`, `name.1`, …
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ringdp.constants import Average, ReduceOp
from ringdp.ops import GroupHandle
from ringdp.process_sets import ProcessSet, global_process_set
from ringdp.requests import reduce_op
from ringdp.torch import ops
from ringdp.torch.autograd import wanted
from ringdp.torch.compression import Compression, check, wire_for
from ringdp.torch.ops import now, operations
from ringdp.torch.tracing import is_compiling, outside


def _compressed(tensors: Sequence[torch.Tensor], compression: Any) -> tuple[list[torch.Tensor], list[Any]]:
    pairs = [compression.compress(tensor) for tensor in tensors]
    return [narrow for narrow, _ in pairs], [context for _, context in pairs]


def _decompressed(
    results: Sequence[torch.Tensor], contexts: Sequence[Any], compression: Any
) -> list[torch.Tensor]:
    return [compression.decompress(r, context) for r, context in zip(results, contexts, strict=True)]


@outside
def grouped_allreduce_async(
    tensors: Sequence[torch.Tensor],
    average: bool | None = None,
    name: str | None = None,
    op: ReduceOp | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> GroupHandle:
    """`allreduce_async` of each tensor."""
    how = reduce_op(op, average), (prescale_factor, postscale_factor)
    requests = [operations.requests.allreduce(tensor, *how) for tensor in tensors]
    return operations.submit_group(requests, name, process_set)


@outside
def grouped_allreduce_async_(
    tensors: Sequence[torch.Tensor],
    average: bool | None = None,
    name: str | None = None,
    op: ReduceOp | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> GroupHandle:
    """`allreduce_async_` of each tensor."""
    how = reduce_op(op, average), (prescale_factor, postscale_factor)
    requests = [operations.requests.allreduce_(tensor, *how) for tensor in tensors]
    return operations.submit_group(requests, name, process_set)


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
    options = (op, prescale_factor, postscale_factor, process_set)
    if any(wanted(tensor) for tensor in tensors):
        return [
            ops.allreduce(tensor, average, name and f"{name}.{i}", compression, *options)
            for i, tensor in enumerate(tensors)
        ]
    if is_compiling():
        narrow, contexts = _compressed(tensors, compression)
        results = now().grouped_allreduce(
            narrow, name, reduce_op(op, average), (prescale_factor, postscale_factor), process_set
        )
        return _decompressed(results, contexts, compression)
    wires = [wire_for(tensor, compression, process_set) for tensor in tensors]
    pairs = [
        (tensor, None) if wire is not None else compression.compress(tensor)
        for tensor, wire in zip(tensors, wires, strict=True)
    ]
    how = reduce_op(op, average), (prescale_factor, postscale_factor)
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
        return now().grouped_allreduce_(  # type: ignore[no-any-return]
            tensors, name, reduce_op(op, average), (prescale_factor, postscale_factor), process_set
        )
    return grouped_allreduce_async_(
        tensors, average, name, op, prescale_factor, postscale_factor, process_set
    ).wait()


@outside
def grouped_allgather_async(
    tensors: Sequence[torch.Tensor], name: str | None = None, process_set: ProcessSet = global_process_set
) -> GroupHandle:
    """`allgather_async` of each tensor."""
    requests = [operations.requests.allgather(tensor) for tensor in tensors]
    return operations.submit_group(requests, name, process_set)


def grouped_allgather(
    tensors: Sequence[torch.Tensor], name: str | None = None, process_set: ProcessSet = global_process_set
) -> list[torch.Tensor]:
    """`allgather` of each tensor; gradients flow back."""
    if any(wanted(tensor) for tensor in tensors):
        return [
            ops.allgather(tensor, name and f"{name}.{i}", process_set) for i, tensor in enumerate(tensors)
        ]
    if is_compiling():
        return now().grouped_allgather(tensors, name, process_set)  # type: ignore[no-any-return]
    return grouped_allgather_async(tensors, name, process_set).wait()


@outside
def grouped_reducescatter_async(
    tensors: Sequence[torch.Tensor],
    name: str | None = None,
    op: ReduceOp = Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> GroupHandle:
    """`reducescatter_async` of each tensor."""
    how = reduce_op(op, None), (prescale_factor, postscale_factor), process_set
    requests = [operations.requests.reducescatter(tensor, *how) for tensor in tensors]
    return operations.submit_group(requests, name, process_set)


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
    if any(wanted(tensor) for tensor in tensors):
        return [
            ops.reducescatter(tensor, name and f"{name}.{i}", compression, op, process_set, *scale)
            for i, tensor in enumerate(tensors)
        ]
    narrow, contexts = _compressed(tensors, compression)
    if is_compiling():
        results = now().grouped_reducescatter(narrow, name, reduce_op(op, None), scale, process_set)
    else:
        results = grouped_reducescatter_async(narrow, name, op, process_set, *scale).wait()
    return _decompressed(results, contexts, compression)
