"""The collective operations on PyTorch tensors, blocking, asynchronous and in place.

`ringdp.ops.Operations` does the work; what is torch's own here: gradients flow through the blocking operations that
return a new tensor (`autograd.py`), and the blocking ones take `compression`.
"""

from __future__ import annotations

from typing import Any

import torch

from ringdp.constants import Average, ReduceOp
from ringdp.ops import Operations
from ringdp.process_sets import ProcessSet, global_process_set
from ringdp.torch import autograd
from ringdp.torch.adapter import TorchAdapter
from ringdp.torch.compression import NAMES, Compression, check, wire_for
from ringdp.torch.tracing import is_compiling, outside

operations: Operations[torch.Tensor] = Operations(TorchAdapter())


def now() -> Any:
    """Who takes a call: `operations`; while torch.compile traces, who puts it into the graph."""
    if not is_compiling():
        return operations
    from ringdp.torch import compiled

    return compiled.recorder


allreduce_async = outside(operations.allreduce_async)
allreduce_async_ = outside(operations.allreduce_async_)
allgather_async = outside(operations.allgather_async)
broadcast_async = outside(operations.broadcast_async)
broadcast_async_ = outside(operations.broadcast_async_)
alltoall_async = outside(operations.alltoall_async)
barrier = outside(operations.barrier)
poll = outside(operations.poll)
synchronize = outside(operations.synchronize)


def allreduce(
    tensor: torch.Tensor,
    average: bool | None = None,
    name: str | None = None,
    compression: Any = Compression.none,
    op: ReduceOp | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> torch.Tensor:
    """Combine the tensors of all ranks element by element; every rank gets the same bits.

    Args:
        tensor: any shape and layout, the same shape on all ranks. If it requires grad, gradients flow back
            through this call (Average and Sum only): they are reduced in the same way.
        average: older form of `op`: True is Average, False is Sum.
        name: operations of the same name meet; default: by the order of unnamed calls.
        compression: `Compression.none`, `.fp16` or `.bf16` (float32 and float64 travel as 16 bits and come back in
            their own dtype), or an object with the same two methods.
        op: Average (default), Sum, Min, Max or Product.
        prescale_factor: multiplies the input first.
        postscale_factor: multiplies the result.
        process_set: the ranks that take part.

    Returns:
        A new tensor of the same shape and dtype.

    Raises:
        MismatchError: shape, dtype, op or factors differ between ranks.
        TypeError: not a dense tensor on the CPU or a GPU of NVIDIA's, or a dtype that ringdp does not know.
        UsageError, DuplicateNameError, DeadlineError, PeerError, TransportError, NotInitializedError.
    """
    if compression is not Compression.none:
        how = (op, prescale_factor, postscale_factor, process_set)
        wire = wire_for(tensor, compression, process_set)
        if wire is not None:
            return operations.allreduce_through_async(wire, tensor, average, name, *how).wait()
        narrow, context = check(compression).compress(tensor)
        if narrow is tensor or compression not in NAMES or autograd.wanted(narrow) or is_compiling():
            reduced = allreduce(narrow, average, name, Compression.none, *how)
        else:  # nobody else has it
            reduced = allreduce_(narrow, average, name, *how)
        return compression.decompress(reduced, context)  # type: ignore[no-any-return]
    if autograd.wanted(tensor):
        options = {
            "average": average,
            "op": op,
            "prescale_factor": prescale_factor,
            "postscale_factor": postscale_factor,
            "process_set": process_set,
        }
        return autograd.Allreduce.apply(tensor, now(), name, options)
    return (now() if is_compiling() else operations).allreduce(
        tensor, average, name, op, prescale_factor, postscale_factor, process_set
    )


def allreduce_(
    tensor: torch.Tensor,
    average: bool | None = None,
    name: str | None = None,
    op: ReduceOp | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> torch.Tensor:
    """As `allreduce`, in place: writes the result into `tensor` and returns it. No gradient flows."""
    # Asked here as well, as a call less is noticed where a small tensor takes two microseconds.
    return (now() if is_compiling() else operations).allreduce_(
        tensor, average, name, op, prescale_factor, postscale_factor, process_set
    )  # type: ignore[no-any-return]


def allgather(
    tensor: torch.Tensor, name: str | None = None, process_set: ProcessSet = global_process_set
) -> torch.Tensor:
    """Concatenate the tensors of all ranks along the first dimension, in rank order. Gradients flow back.

    Args:
        tensor: at least one dimension; the first may differ between ranks, the others not.
        name, process_set: see `allreduce`.
    """
    if autograd.wanted(tensor):
        return autograd.Allgather.apply(tensor, now(), name, process_set)
    return now().allgather(tensor, name, process_set)


def broadcast(
    tensor: torch.Tensor,
    root_rank: int,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> torch.Tensor:
    """Give every rank the tensor of `root_rank`, as a new tensor; shapes and dtypes must agree. Gradients flow back."""
    if autograd.wanted(tensor):
        return autograd.Broadcast.apply(tensor, now(), root_rank, name, process_set)
    return now().broadcast(tensor, root_rank, name, process_set)


def broadcast_(
    tensor: torch.Tensor,
    root_rank: int,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> torch.Tensor:
    """As `broadcast`, in place: writes the tensor of `root_rank` into `tensor` and returns it. No gradient flows."""
    return now().broadcast_(tensor, root_rank, name, process_set)  # type: ignore[no-any-return]


def alltoall(
    tensor: torch.Tensor,
    splits: Any = None,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Any:
    """Send part i of `tensor` (along the first dimension) to rank i, and get one part from every rank.

    Args:
        tensor: at least one dimension; the first may differ between ranks. Gradients flow back.
        splits: rows for each rank (list or integer tensor), adding up to the first dimension; default: equal parts.
        name, process_set: see `allreduce`.

    Returns:
        The parts in rank order, concatenated; with `splits` a pair of that and the rows received from each
        rank (int32).
    """
    if autograd.wanted(tensor):
        output, rows = autograd.Alltoall.apply(tensor, now(), splits, name, process_set)
        return output if splits is None else (output, rows)
    return now().alltoall(tensor, splits, name, process_set)


def reducescatter(
    tensor: torch.Tensor,
    name: str | None = None,
    compression: Any = Compression.none,
    op: ReduceOp = Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> torch.Tensor:
    """Combine the tensors of all ranks, and give rank i the i-th part of the result (along the first dimension).

    The first dimension need not divide evenly: the first ranks get one row more. Gradients flow back (Average, Sum).
    """
    scale = (prescale_factor, postscale_factor)
    if compression is not Compression.none:
        narrow, context = check(compression).compress(tensor)
        part = reducescatter(narrow, name, Compression.none, op, process_set, *scale)
        return compression.decompress(part, context)  # type: ignore[no-any-return]
    if autograd.wanted(tensor):
        return autograd.Reducescatter.apply(tensor, now(), name, op, process_set, *scale)
    return now().reducescatter(tensor, name, op, process_set, *scale)


reducescatter_async = outside(operations.reducescatter_async)
