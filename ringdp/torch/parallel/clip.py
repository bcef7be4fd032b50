"""Clipping by the norm of the whole model's gradients, of which each rank has parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ringdp.constants import Max, Sum
from ringdp.errors import UsageError
from ringdp.process_sets import ProcessSet
from ringdp.torch.ops import operations
from ringdp.torch.parallel.state import split_parameters
from ringdp.torch.sharded.optimizer import Sharded
from ringdp.torch.wire import ELEMENTS


def clip_grad_norm_(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    max_norm: float,
    process_set: ProcessSet,
    norm_type: float = 2.0,
) -> torch.Tensor:
    """As `torch.nn.utils.clip_grad_norm_` of the whole model: parts count on each rank, what is replicated once.

    (torch's own, and a sharded optimizer's, take this rank's parts for all there is: the ranks of the model axis would
    clip by different norms, and what is replicated would part.) Collective over the model axis, and over the ranks of
    the optimizer; its exchange is finished first.

    Args:
        module: with the optimizer's parameters.
        optimizer: over them, distributed or not, sharded or not.
        max_norm: what the norm is to be at the most.
        process_set: over which the layers are split, `mesh.model`.
        norm_type: of which p-norm, above 0; `inf` for the greatest absolute value.

    Returns:
        The norm before, the same on all ranks: a scalar of float64.

    Raises:
        UsageError: another `norm_type`.
    """
    if not norm_type > 0:
        raise UsageError(f"norm_type must be above 0, not {norm_type!r}")
    if hasattr(optimizer, "synchronize"):
        optimizer.synchronize()
    parts = {id(param) for param in split_parameters(module).values()}
    first = process_set.rank() == 0
    norms, grads = [torch.zeros((), dtype=torch.float64)], []
    for param, grad, counts in _gradients(optimizer):
        grads.append(grad)
        if counts and (first or id(param) in parts):
            norms.append(torch.linalg.vector_norm(grad.detach(), norm_type, dtype=torch.float64).cpu())
    norm = _combined(torch.stack(norms), norm_type, optimizer, process_set)
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    with torch.no_grad():
        for grad in grads:
            grad.mul_(factor.to(grad.device, grad.dtype))
    return norm


def _shards(optimizer: Any) -> Any:
    """Of a sharded optimizer that has parts of gradients; else None."""
    exchange = optimizer._exchange if isinstance(optimizer, Sharded) else None
    return exchange if exchange is not None and exchange.options.shard == ELEMENTS else None


def _gradients(optimizer: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor, bool]]:
    """Each parameter with what this rank has of its reduced gradient, and whether that counts here."""
    exchange = _shards(optimizer)
    for group in optimizer.param_groups:
        for param in group["params"]:
            if exchange is None:
                if param.grad is not None:
                    yield param, param.grad, True
                continue
            for piece in optimizer._follow(exchange).pieces([param]):
                if piece.grad is not None:
                    yield param, piece.grad, optimizer._counts(piece, exchange)


def _combined(norms: torch.Tensor, order: float, optimizer: Any, process_set: ProcessSet) -> torch.Tensor:
    """The norm over all ranks. In float64; along the model axis in the order of ranks, so that all groups of it,
    wherever they are, get the same bits."""
    largest, exchange = order == float("inf"), _shards(optimizer)
    mine = norms.max() if largest else norms.pow(order).sum()
    if exchange is not None:
        op = Max if largest else Sum
        mine = operations.allreduce(
            mine, name=f"{exchange.name()}.norm", op=op, process_set=exchange.options.process_set
        )
    of_ranks = operations.allgather(mine.reshape(1), None, process_set)
    return of_ranks.max() if largest else of_ranks.sum().pow(1 / order)
