"""Gradients through the blocking operations: each backward is an exchange in the other direction.

As in Horovod, gradients that meet are averaged: an all-gather gives each rank the average of all ranks' gradients
for its own rows, a broadcast gives the root their average. An all-reduce reduces the gradients as it did the tensors.
Second derivatives are an error: these conventions have none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from ringdp import world
from ringdp.constants import Average, ReduceOp, Sum
from ringdp.errors import UsageError
from ringdp.process_sets import ProcessSet
from ringdp.requests import reduce_op, splits_of


def wanted(tensor: Any) -> bool:
    """True if autograd records what is done to `tensor`."""
    return isinstance(tensor, torch.Tensor) and tensor.requires_grad and torch.is_grad_enabled()


def _refuse_selection(op: ReduceOp) -> None:
    if op not in (Average, Sum):
        raise UsageError(f"no gradient flows through {op.name}: use Average or Sum, or give tensor.detach()")


class Allreduce(torch.autograd.Function):
    """The gradient is reduced as the tensor was."""

    @staticmethod
    def forward(ctx: Any, tensor: Any, operations: Any, name: Any, options: Any) -> Any:
        _refuse_selection(reduce_op(options["op"], options["average"]))
        ctx.operations, ctx.options = operations, options
        return operations.allreduce(tensor, name=name, **options)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Any) -> Any:  # type: ignore[override]
        return ctx.operations.allreduce(grad, **ctx.options), None, None, None


class Allgather(torch.autograd.Function):
    """The gradients of all ranks are averaged; each rank takes its own rows."""

    @staticmethod
    def forward(ctx: Any, tensor: Any, operations: Any, name: Any, process_set: ProcessSet) -> Any:
        ctx.operations, ctx.process_set = operations, process_set
        output = operations.allgather(tensor, name, process_set)
        own = _own_rows(tensor, process_set)
        rows = operations.allreduce(own, None, name and f"{name}.rows", Sum, process_set=process_set)
        ctx.save_for_backward(_places(rows, tensor, process_set))
        return output

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Any) -> Any:  # type: ignore[override]
        mean = ctx.operations.allreduce(grad, op=Average, process_set=ctx.process_set)
        return mean.index_select(0, ctx.saved_tensors[0].to(mean.device)), None, None, None


def _own_rows(tensor: torch.Tensor, process_set: ProcessSet) -> torch.Tensor:
    """This rank's number of rows in its place, zeros in the others': the sum over ranks has all."""
    return (torch.arange(process_set.size()) == (process_set.rank() or 0)) * tensor.shape[0]


def _places(rows: torch.Tensor, tensor: torch.Tensor, process_set: ProcessSet) -> torch.Tensor:
    """Which rows of what was gathered are this rank's."""
    return rows[: process_set.rank() or 0].sum() + torch.arange(tensor.shape[0])


class Broadcast(torch.autograd.Function):
    """The root gets the average of all gradients, the others nothing."""

    @staticmethod
    def forward(ctx: Any, tensor: Any, operations: Any, root: int, name: Any, process_set: ProcessSet) -> Any:
        ctx.operations, ctx.root, ctx.process_set = operations, root, process_set
        return operations.broadcast(tensor, root, name, process_set)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Any) -> Any:  # type: ignore[override]
        mean = ctx.operations.allreduce(grad, op=Average, process_set=ctx.process_set)
        is_root = world.rank() == ctx.root
        return mean if is_root else torch.zeros_like(mean), None, None, None, None


class Alltoall(torch.autograd.Function):
    """The gradient goes back the way the rows came."""

    @staticmethod
    def forward(
        ctx: Any, tensor: Any, operations: Any, splits: Any, name: Any, process_set: ProcessSet
    ) -> Any:
        if splits is None:
            splits = splits_of(splits, tensor.shape[0] if tensor.dim() else 0, process_set.size())
        output, rows = operations.alltoall(tensor, splits, name, process_set)
        ctx.operations, ctx.process_set, ctx.shape = operations, process_set, tensor.shape
        ctx.save_for_backward(rows.clone())  # the caller may do anything with the other
        ctx.mark_non_differentiable(rows)
        return output, rows

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Any, _: Any) -> Any:  # type: ignore[override]
        back, _rows = ctx.operations.alltoall(grad, *ctx.saved_tensors, None, ctx.process_set)
        return back.reshape(ctx.shape), None, None, None, None


class Reducescatter(torch.autograd.Function):
    """Each rank's rows of the gradient go to all; Average divides them by the number of ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        tensor: Any,
        operations: Any,
        name: Any,
        op: Any,
        process_set: Any,
        before: float,
        after: float,
    ) -> Any:
        op = reduce_op(op, None)
        _refuse_selection(op)
        ctx.operations, ctx.process_set, ctx.shape = operations, process_set, tensor.shape
        ctx.factor = before * after / (process_set.size() if op is Average else 1)
        return operations.reducescatter(tensor, name, op, process_set, before, after)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Any) -> Any:  # type: ignore[override]
        whole = ctx.operations.allgather(grad, None, ctx.process_set)
        return whole.reshape(ctx.shape) * ctx.factor, None, None, None, None, None, None


# --- groups: each direction is one group. `groups` has the grouped operations without gradients ---


class GroupedAllreduce(torch.autograd.Function):
    """See `Allreduce`."""

    @staticmethod
    def forward(
        ctx: Any, groups: Any, name: Any, op: Any, scale: Any, process_set: Any, *tensors: Any
    ) -> tuple[Any, ...]:
        _refuse_selection(op)
        ctx.groups, ctx.how = groups, (op, scale, process_set)
        return tuple(groups.grouped_allreduce(tensors, name, *ctx.how))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Any) -> Any:
        return None, None, None, None, None, *ctx.groups.grouped_allreduce(grads, None, *ctx.how)


class GroupedAllgather(torch.autograd.Function):
    """See `Allgather`."""

    @staticmethod
    def forward(ctx: Any, groups: Any, name: Any, process_set: Any, *tensors: Any) -> tuple[Any, ...]:
        ctx.groups, ctx.process_set = groups, process_set
        outputs = groups.grouped_allgather(tensors, name, process_set)
        own = [_own_rows(tensor, process_set) for tensor in tensors]
        all_rows = groups.grouped_allreduce(own, name and f"{name}.rows", Sum, (1.0, 1.0), process_set)
        ctx.save_for_backward(*(_places(r, t, process_set) for r, t in zip(all_rows, tensors, strict=True)))
        return tuple(outputs)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Any) -> Any:
        means = ctx.groups.grouped_allreduce(grads, None, Average, (1.0, 1.0), ctx.process_set)
        own = [m.index_select(0, p.to(m.device)) for m, p in zip(means, ctx.saved_tensors, strict=True)]
        return None, None, None, *own


class GroupedReducescatter(torch.autograd.Function):
    """See `Reducescatter`."""

    @staticmethod
    def forward(
        ctx: Any, groups: Any, name: Any, op: Any, scale: Any, process_set: Any, *tensors: Any
    ) -> tuple[Any, ...]:
        _refuse_selection(op)
        ctx.groups, ctx.process_set, ctx.shapes = groups, process_set, [t.shape for t in tensors]
        ctx.factor = scale[0] * scale[1] / (process_set.size() if op is Average else 1)
        return tuple(groups.grouped_reducescatter(tensors, name, op, scale, process_set))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Any) -> Any:
        whole = ctx.groups.grouped_allgather(grads, None, ctx.process_set)
        back = [w.reshape(shape) * ctx.factor for w, shape in zip(whole, ctx.shapes, strict=True)]
        return None, None, None, None, None, *back
