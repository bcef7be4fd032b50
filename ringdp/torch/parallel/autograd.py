"""The four ways between what all ranks of a group have alike and what each has a part of, with gradients.

                forward                      backward
    copy_to     as it is                     sum over the ranks        alike → into each rank's part of the work
    reduce_from sum over the ranks           as it is                  partial sums → alike
    scatter_to  this rank's part             parts put together        alike → parts
    gather_from parts put together           this rank's part          parts → alike

copy_to and reduce_from are f and g of Megatron-LM (Shoeybi et al. 2019, "Megatron-LM: Training Multi-Billion Parameter
Language Models Using Model Parallelism", section 3). "Alike" is a promise of the caller's: the ranks compute the same
from it, so its gradients are alike as well, and are not summed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from ringdp.constants import Sum
from ringdp.errors import UsageError
from ringdp.process_sets import ProcessSet
from ringdp.torch.ops import now
from ringdp.torch.tracing import is_compiling


def part_sizes(length: int, process_set: ProcessSet) -> list[int]:
    """How a dimension of this length is split over the ranks of a set: the first ranks have one more where it does
    not divide evenly.

    Raises:
        UsageError: there is less than one for each rank.
        NotInitializedError: the set cannot be used.
    """
    ranks = process_set.size()
    if length < ranks:
        raise UsageError(f"a dimension of {length} cannot be split over the {ranks} ranks of {process_set!r}")
    return [(length + ranks - 1 - rank) // ranks for rank in range(ranks)]


def own_part(length: int, process_set: ProcessSet) -> tuple[int, int]:
    """Where this rank's part of such a dimension begins, and how long it is.

    Raises:
        UsageError: as `part_sizes`, and on a rank that is not in the set.
    """
    sizes, rank = part_sizes(length, process_set), process_set.rank()
    if rank is None:
        raise UsageError(f"this rank is not in {process_set!r}")
    return sum(sizes[:rank]), sizes[rank]


def copy_to(x: torch.Tensor, process_set: ProcessSet) -> torch.Tensor:
    """`x`, which all ranks have alike, on its way into work that they share out: its gradient is the sum of theirs.

    Args:
        x: of any shape and any dtype with gradients, the same on all ranks of the set.
        process_set: the ranks that share the work out.
    """
    return x if process_set.size() == 1 else _CopyTo.apply(x, now(), process_set)


def reduce_from(x: torch.Tensor, process_set: ProcessSet) -> torch.Tensor:
    """The sum of the ranks' tensors, the same bits on all; the gradient goes to each as it is.

    Args:
        x: each rank's part of a sum, of the same shape and dtype on all ranks of the set.
        process_set: the ranks that share the work out.

    Raises:
        MismatchError: shapes or dtypes differ; on every rank of the set.
    """
    return x if process_set.size() == 1 else _ReduceFrom.apply(x, now(), process_set)


def scatter_to(x: torch.Tensor, process_set: ProcessSet, dim: int = -1) -> torch.Tensor:
    """This rank's part of `x`, which all ranks have alike; the gradient is put together of theirs.

    Args:
        x: of one dimension at least, the same on all ranks of the set.
        process_set: the ranks, each of which takes a part, as `part_sizes` says.
        dim: along which it is split.

    Raises:
        UsageError: there is less than one for each rank, or this rank is not in the set.
    """
    return x if process_set.size() == 1 else _ScatterTo.apply(x, now(), process_set, dim)


def gather_from(
    x: torch.Tensor, process_set: ProcessSet, dim: int = -1, whole: int | None = None
) -> torch.Tensor:
    """The ranks' parts put together, alike on all; each gets its own part of the gradient.

    Args:
        x: this rank's part, as `scatter_to` makes it.
        process_set: the ranks, each of which has a part.
        dim: along which they are put together.
        whole: the length of that dimension then. Default: as if all parts were as long as this one.

    Raises:
        UsageError: this rank's part is not that of a dimension of that length.
        MismatchError: other dimensions, or dtypes, differ; on every rank of the set.
    """
    if process_set.size() == 1:
        return x
    length = process_set.size() * x.shape[dim] if whole is None else whole
    if own_part(length, process_set)[1] != x.shape[dim]:
        raise UsageError(
            f"gather_from: this rank has {x.shape[dim]} along dimension {dim}, which is not its part of {length} over "
            f"{process_set!r}: say `whole=`, the length of all parts together"
        )
    return _GatherFrom.apply(x, now(), process_set, dim, length)


class _CopyTo(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, operations: Any, process_set: ProcessSet) -> torch.Tensor:
        ctx.how = operations, process_set
        return x.view_as(x)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        return _sum(grad, *ctx.how), None, None


class _ReduceFrom(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, operations: Any, process_set: ProcessSet) -> torch.Tensor:
        return _sum(x, operations, process_set)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        return grad, None, None


class _ScatterTo(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, operations: Any, process_set: ProcessSet, dim: int
    ) -> torch.Tensor:
        ctx.how = operations, process_set, dim, x.shape[dim]
        return x.narrow(dim, *own_part(x.shape[dim], process_set)).contiguous()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        return gathered(grad, *ctx.how), None, None, None


class _GatherFrom(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, operations: Any, process_set: ProcessSet, dim: int, whole: int
    ) -> torch.Tensor:
        ctx.dim, ctx.own = dim, own_part(whole, process_set)
        return gathered(x, operations, process_set, dim, whole)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        return grad.narrow(ctx.dim, *ctx.own).contiguous(), None, None, None, None


def _sum(x: torch.Tensor, operations: Any, process_set: ProcessSet) -> torch.Tensor:
    return operations.allreduce(x, None, None, Sum, process_set=process_set)  # type: ignore[no-any-return]


def gathered(x: torch.Tensor, operations: Any, process_set: ProcessSet, dim: int, whole: int) -> torch.Tensor:
    """The parts of all ranks put together along `dim`, which then has the length `whole`; no gradient flows."""
    own = x.movedim(dim, 0).contiguous()
    if is_compiling():  # a graph must know how many rows come back
        rows = operations.allgather_of(own, whole, process_set)
    else:
        rows = operations.allgather(own, None, process_set)
    return rows.movedim(0, dim).contiguous()  # type: ignore[no-any-return]
