"""The collectives as operators of PyTorch (`torch.ops.ringdp`), which is how they stand in a compiled graph.

An operator has a kernel, which makes the call when the graph runs, and a *fake* kernel, which gives the compiler the
shapes of the results.

All are kept in order (`in_order.py`), for which an operator must not write into its arguments: so none works in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ringdp.constants import ReduceOp
from ringdp.process_sets import numbered
from ringdp.requests import splits_of
from ringdp.torch.in_order import MISSING, keep_in_order
from ringdp.torch.ops import operations

_library = torch.library.Library("ringdp", "FRAGMENT")


def _define(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    if MISSING:
        return torch.compiler.disable(kernel, reason=MISSING)
    name = schema.partition("(")[0]
    _library.define(schema)
    _library.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"ringdp::{name}", fake, lib=_library)
    operator = getattr(torch.ops.ringdp, name).default
    keep_in_order(operator)
    return operator


def _rows_unknown(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty((torch.library.get_ctx().new_dynamic_size(), *x.shape[1:]))


def _like(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x.contiguous())  # as TorchAdapter.source and .empty_like do


# --- one tensor -----------------------------------------------------------------------------------


def _allreduce(
    x: torch.Tensor, name: str | None, op: int, before: float, after: float, members: int
) -> torch.Tensor:
    return operations.allreduce(x, None, name, ReduceOp(op), before, after, numbered(members))


def _allgather(x: torch.Tensor, name: str | None, members: int) -> torch.Tensor:
    return operations.allgather(x, name, numbered(members))


def _allgather_of(x: torch.Tensor, rows: int, name: str | None, members: int) -> torch.Tensor:
    return operations.allgather(x, name, numbered(members))


def _broadcast(x: torch.Tensor, root: int, name: str | None, members: int) -> torch.Tensor:
    return operations.broadcast(x, root, name, numbered(members))


def _alltoall(
    x: torch.Tensor, splits: torch.Tensor | None, ranks: int, name: str | None, members: int
) -> tuple[torch.Tensor, torch.Tensor]:
    to_each = splits_of(splits, x.shape[0] if x.dim() else 0, ranks)
    output, rows = operations.alltoall(x, to_each, name, numbered(members))
    return output, rows


def _reducescatter(
    x: torch.Tensor, rows: int, name: str | None, op: int, before: float, after: float, members: int
) -> torch.Tensor:
    return operations.reducescatter(x, name, ReduceOp(op), numbered(members), before, after)


HOW = "int op, float before, float after, int members"  # members: the number of a process set

allreduce = _define(f"allreduce(Tensor x, str? name, {HOW}) -> Tensor", _allreduce, lambda x, *_: _like(x))
allgather = _define(
    "allgather(Tensor x, str? name, int members) -> Tensor", _allgather, lambda x, *_: _rows_unknown(x)
)
allgather_of = _define(  # rows: of all ranks together, which the caller knows
    "allgather_of(Tensor x, SymInt rows, str? name, int members) -> Tensor",
    _allgather_of,
    lambda x, rows, *_: x.new_empty((rows, *x.shape[1:])),
)
broadcast = _define(
    "broadcast(Tensor x, int root, str? name, int members) -> Tensor",
    _broadcast,
    lambda x, *_: x.new_empty(x.shape),
)
alltoall = _define(
    "alltoall(Tensor x, Tensor? splits, int ranks, str? name, int members) -> (Tensor, Tensor)",
    _alltoall,
    # The rows are in host memory, wherever x is.
    lambda x, _, ranks, *__: (_rows_unknown(x), torch.empty((ranks,), dtype=torch.int32, device="cpu")),
)
reducescatter = _define(  # rows: of this rank's result
    f"reducescatter(Tensor x, SymInt rows, str? name, {HOW}) -> Tensor",
    _reducescatter,
    lambda x, rows, *_: x.new_empty((rows, *x.shape[1:])),
)


# --- groups ---------------------------------------------------------------------------------------


def _grouped_allreduce(
    xs: Sequence[torch.Tensor], name: str | None, op: int, before: float, after: float, members: int
) -> list[torch.Tensor]:
    requests = [operations.requests.allreduce(x, ReduceOp(op), (before, after)) for x in xs]
    return operations.submit_group(requests, name, numbered(members)).wait()


def _grouped_allgather(xs: Sequence[torch.Tensor], name: str | None, members: int) -> list[torch.Tensor]:
    requests = [operations.requests.allgather(x) for x in xs]
    return operations.submit_group(requests, name, numbered(members)).wait()


def _grouped_reducescatter(
    xs: Sequence[torch.Tensor],
    rows: Sequence[int],
    name: str | None,
    op: int,
    before: float,
    after: float,
    members: int,
) -> list[torch.Tensor]:
    how = ReduceOp(op), (before, after), numbered(members)
    requests = [operations.requests.reducescatter(x, *how) for x in xs]
    return operations.submit_group(requests, name, numbered(members)).wait()


grouped_allreduce = _define(
    f"grouped_allreduce(Tensor[] xs, str? name, {HOW}) -> Tensor[]",
    _grouped_allreduce,
    lambda xs, *_: [_like(x) for x in xs],
)
grouped_allgather = _define(
    "grouped_allgather(Tensor[] xs, str? name, int members) -> Tensor[]",
    _grouped_allgather,
    lambda xs, *_: [_rows_unknown(x) for x in xs],
)
grouped_reducescatter = _define(
    f"grouped_reducescatter(Tensor[] xs, SymInt[] rows, str? name, {HOW}) -> Tensor[]",
    _grouped_reducescatter,
    lambda xs, rows, *_: [x.new_empty((n, *x.shape[1:])) for x, n in zip(xs, rows, strict=True)],
)
