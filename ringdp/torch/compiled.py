"""What the collectives of `ops.py` and `grouped.py` become while torch.compile traces: operators in its graph.

Imported when a graph is traced first, as neither that nor the compiler should be paid for by who compiles nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ringdp.constants import Average, ReduceOp
from ringdp.ops import GroupHandle, Handle
from ringdp.process_sets import ProcessSet, global_process_set
from ringdp.requests import reduce_op, usable
from ringdp.torch import operators
from ringdp.torch.tracing import breaks, no_place_in_a_graph

__all__ = ["breaks", "recorder"]


class Recorder:
    """The blocking ones of `ringdp.ops.Operations`, with the same arguments: each puts an operator into the graph.

    What the shapes depend on besides the tensors (the number of ranks, this rank's place) is read here, where the
    compiler takes note of it, and not in the operators' fake kernels: after `init()` with other ranks it traces anew.
    """

    def allreduce(
        self,
        tensor: torch.Tensor,
        average: bool | None = None,
        name: str | None = None,
        op: ReduceOp | None = None,
        prescale_factor: float = 1.0,
        postscale_factor: float = 1.0,
        process_set: ProcessSet = global_process_set,
    ) -> torch.Tensor:
        how = _how(reduce_op(op, average), (prescale_factor, postscale_factor), process_set)
        return operators.allreduce(tensor, name, *how)  # type: ignore[no-any-return]

    def allreduce_(
        self,
        tensor: torch.Tensor,
        average: bool | None = None,
        name: str | None = None,
        op: ReduceOp | None = None,
        prescale_factor: float = 1.0,
        postscale_factor: float = 1.0,
        process_set: ProcessSet = global_process_set,
    ) -> torch.Tensor:
        with torch.no_grad():
            how = prescale_factor, postscale_factor, process_set
            tensor.copy_(self.allreduce(tensor, average, name, op, *how))
        return tensor

    def allgather(
        self, tensor: torch.Tensor, name: str | None = None, process_set: ProcessSet = global_process_set
    ) -> torch.Tensor:
        return operators.allgather(tensor, name, usable(process_set))  # type: ignore[no-any-return]

    def allgather_of(self, tensor: torch.Tensor, rows: int, process_set: ProcessSet) -> torch.Tensor:
        """Of parts that have so many rows together."""
        return operators.allgather_of(tensor, rows, None, usable(process_set))  # type: ignore[no-any-return]

    def broadcast(
        self,
        tensor: torch.Tensor,
        root_rank: int,
        name: str | None = None,
        process_set: ProcessSet = global_process_set,
    ) -> torch.Tensor:
        return operators.broadcast(tensor, root_rank, name, usable(process_set))  # type: ignore[no-any-return]

    def broadcast_(
        self,
        tensor: torch.Tensor,
        root_rank: int,
        name: str | None = None,
        process_set: ProcessSet = global_process_set,
    ) -> torch.Tensor:
        with torch.no_grad():
            tensor.copy_(self.broadcast(tensor, root_rank, name, process_set))
        return tensor

    def alltoall(
        self,
        tensor: torch.Tensor,
        splits: Any = None,
        name: str | None = None,
        process_set: ProcessSet = global_process_set,
    ) -> Any:
        to_each = splits if splits is None else torch.as_tensor(splits)
        output, rows = operators.alltoall(tensor, to_each, process_set.size(), name, usable(process_set))
        return output if splits is None else (output, rows)

    def reducescatter(
        self,
        tensor: torch.Tensor,
        name: str | None = None,
        op: ReduceOp = Average,
        process_set: ProcessSet = global_process_set,
        prescale_factor: float = 1.0,
        postscale_factor: float = 1.0,
    ) -> torch.Tensor:
        how = _how(reduce_op(op, None), (prescale_factor, postscale_factor), process_set)
        return operators.reducescatter(tensor, _rows(tensor, process_set), name, *how)  # type: ignore[no-any-return]

    # --- groups: as in ringdp/torch/grouped.py, without gradients ---

    def grouped_allreduce(
        self,
        tensors: Sequence[torch.Tensor],
        name: str | None,
        op: ReduceOp,
        scale: tuple[float, float],
        process_set: ProcessSet,
    ) -> list[torch.Tensor]:
        return operators.grouped_allreduce(list(tensors), name, *_how(op, scale, process_set))  # type: ignore[no-any-return]

    def grouped_allreduce_(
        self,
        tensors: Sequence[torch.Tensor],
        name: str | None,
        op: ReduceOp,
        scale: tuple[float, float],
        process_set: ProcessSet,
    ) -> list[torch.Tensor]:
        with torch.no_grad():
            reduced = self.grouped_allreduce(tensors, name, op, scale, process_set)
            for tensor, result in zip(tensors, reduced, strict=True):
                tensor.copy_(result)
        return list(tensors)

    def grouped_allgather(
        self, tensors: Sequence[torch.Tensor], name: str | None, process_set: ProcessSet
    ) -> list[torch.Tensor]:
        return operators.grouped_allgather(list(tensors), name, usable(process_set))  # type: ignore[no-any-return]

    def grouped_reducescatter(
        self,
        tensors: Sequence[torch.Tensor],
        name: str | None,
        op: ReduceOp,
        scale: tuple[float, float],
        process_set: ProcessSet,
    ) -> list[torch.Tensor]:
        rows = [_rows(tensor, process_set) for tensor in tensors]
        return operators.grouped_reducescatter(list(tensors), rows, name, *_how(op, scale, process_set))  # type: ignore[no-any-return]


recorder = Recorder()

REASON = (
    "no graph can hold it: use the blocking form of the operation, or call it outside the compiled function"
)
breaks += [torch.compiler.disable(f, reason=f"{f.__name__}: {REASON}") for f in no_place_in_a_graph]
# Of handles, too: the compiler would look into it, and calls methods of the core without their `self`.
for kind in (Handle, GroupHandle):
    kind.wait = torch.compiler.disable(kind.wait, reason=f"wait: {REASON}")  # type: ignore[method-assign]


def _how(op: ReduceOp, scale: tuple[float, float], process_set: ProcessSet) -> tuple[Any, ...]:
    return int(op), *scale, usable(process_set)


def _rows(tensor: torch.Tensor, process_set: ProcessSet) -> int:
    """This rank's of a reduce-scatter: the first ranks have one more where they do not divide evenly."""
    size = process_set.size()
    return (tensor.shape[0] + size - 1 - (process_set.rank() or 0)) // size
