"""Several tensors in one call. All are handed in at once; each is an operation of its own, `name.0`, `name.1`, …"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ringdp.constants import Average, ReduceOp
from ringdp.ops import Handle
from ringdp.process_sets import ProcessSet, global_process_set
from ringdp.torch import ops
from ringdp.torch.autograd import wanted
from ringdp.torch.compression import Compression, check, wire_for


class GroupHandle:
    """The operations of a group in flight, for `poll` and `synchronize`."""

    def __init__(self, handles: list[Handle[Any]]) -> None:
        self._handles = handles

    def poll(self) -> bool:
        """True once all have completed or failed."""
        return all(handle.poll() for handle in self._handles)

    def wait(self) -> list[Any]:
        """The results. All are waited for; then the first failure is raised, if there was one."""
        results, failures = [], []
        for handle in self._handles:
            try:
                results.append(handle.wait())
            except Exception as failure:
                failures.append(failure)
        if failures:
            raise failures[0]
        return results


def _group(
    tensors: Sequence[torch.Tensor], name: str | None, start: Callable[..., Handle[Any]]
) -> GroupHandle:
    return GroupHandle([start(tensor, name and f"{name}.{i}") for i, tensor in enumerate(tensors)])


def _compressed(tensors: Sequence[torch.Tensor], compression: Any) -> tuple[list[torch.Tensor], list[Any]]:
    pairs = [compression.compress(tensor) for tensor in tensors]
    return [narrow for narrow, _ in pairs], [context for _, context in pairs]


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
    return _group(
        tensors,
        name,
        lambda tensor, own: ops.allreduce_async(
            tensor, average, own, op, prescale_factor, postscale_factor, process_set
        ),
    )


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
    return _group(
        tensors,
        name,
        lambda tensor, own: ops.allreduce_async_(
            tensor, average, own, op, prescale_factor, postscale_factor, process_set
        ),
    )


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
    wires = [wire_for(tensor, compression) for tensor in tensors]
    pairs = [
        (tensor, None) if wire is not None else compression.compress(tensor)
        for tensor, wire in zip(tensors, wires, strict=True)
    ]
    handles = []
    for i, ((tensor, _), wire) in enumerate(zip(pairs, wires, strict=True)):
        own = name and f"{name}.{i}"
        if wire is None:
            handles.append(ops.allreduce_async(tensor, average, own, *options))
        else:
            handles.append(ops.operations.allreduce_through_async(wire, tensor, average, own, *options))
    results = GroupHandle(handles).wait()
    return [compression.decompress(r, context) for r, (_, context) in zip(results, pairs, strict=True)]


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
    return grouped_allreduce_async_(
        tensors, average, name, op, prescale_factor, postscale_factor, process_set
    ).wait()


def grouped_allgather_async(
    tensors: Sequence[torch.Tensor], name: str | None = None, process_set: ProcessSet = global_process_set
) -> GroupHandle:
    """`allgather_async` of each tensor."""
    return _group(tensors, name, lambda tensor, own: ops.allgather_async(tensor, own, process_set))


def grouped_allgather(
    tensors: Sequence[torch.Tensor], name: str | None = None, process_set: ProcessSet = global_process_set
) -> list[torch.Tensor]:
    """`allgather` of each tensor; gradients flow back."""
    if any(wanted(tensor) for tensor in tensors):
        return [
            ops.allgather(tensor, name and f"{name}.{i}", process_set) for i, tensor in enumerate(tensors)
        ]
    return grouped_allgather_async(tensors, name, process_set).wait()


def grouped_reducescatter_async(
    tensors: Sequence[torch.Tensor],
    name: str | None = None,
    op: ReduceOp = Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> GroupHandle:
    """`reducescatter_async` of each tensor."""
    return _group(
        tensors,
        name,
        lambda tensor, own: ops.reducescatter_async(
            tensor, own, op, process_set, prescale_factor, postscale_factor
        ),
    )


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
    results = grouped_reducescatter_async(narrow, name, op, process_set, *scale).wait()
    return [compression.decompress(r, context) for r, context in zip(results, contexts, strict=True)]
