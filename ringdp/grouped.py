"""Several tensors in one call, once for all frameworks.

All are exchanged or none is: a name that is in flight already leaves nothing started, and where ranks differ in one
tensor, no tensor is touched. Their names are `name.0`, `name.1`, …; without a name the group counts as one unnamed
call, however many tensors it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from ringdp.constants import Average, ReduceOp
from ringdp.ops import GroupHandle, Operations
from ringdp.process_sets import ProcessSet, global_process_set
from ringdp.requests import reduce_op

T = TypeVar("T")


class GroupedOperations(Generic[T]):
    """The operations on several tensors of one framework, with the arguments of those on one.

    Each comes blocking and `_async`, which returns a `GroupHandle`.
    """

    def __init__(self, operations: Operations[T]) -> None:
        self._operations = operations
        self._requests = operations.requests

    # --- all-reduce ---

    def grouped_allreduce_async(
        self,
        tensors: Sequence[Any],
        average: bool | None = None,
        name: str | None = None,
        op: ReduceOp | None = None,
        prescale_factor: float = 1.0,
        postscale_factor: float = 1.0,
        process_set: ProcessSet = global_process_set,
    ) -> GroupHandle:
        """`allreduce_async` of each tensor."""
        how = reduce_op(op, average), (prescale_factor, postscale_factor)
        requests = [self._requests.allreduce(tensor, *how) for tensor in tensors]
        return self._operations.submit_group(requests, name, process_set)

    def grouped_allreduce(
        self,
        tensors: Sequence[Any],
        average: bool | None = None,
        name: str | None = None,
        op: ReduceOp | None = None,
        prescale_factor: float = 1.0,
        postscale_factor: float = 1.0,
        process_set: ProcessSet = global_process_set,
    ) -> list[T]:
        """`allreduce` of each tensor."""
        scale = prescale_factor, postscale_factor
        return self.grouped_allreduce_async(tensors, average, name, op, *scale, process_set).wait()

    def grouped_allreduce_async_(
        self,
        tensors: Sequence[Any],
        average: bool | None = None,
        name: str | None = None,
        op: ReduceOp | None = None,
        prescale_factor: float = 1.0,
        postscale_factor: float = 1.0,
        process_set: ProcessSet = global_process_set,
    ) -> GroupHandle:
        """`allreduce_async_` of each tensor."""
        how = reduce_op(op, average), (prescale_factor, postscale_factor)
        requests = [self._requests.allreduce_(tensor, *how) for tensor in tensors]
        return self._operations.submit_group(requests, name, process_set)

    def grouped_allreduce_(
        self,
        tensors: Sequence[Any],
        average: bool | None = None,
        name: str | None = None,
        op: ReduceOp | None = None,
        prescale_factor: float = 1.0,
        postscale_factor: float = 1.0,
        process_set: ProcessSet = global_process_set,
    ) -> list[Any]:
        """`allreduce_` of each tensor."""
        scale = prescale_factor, postscale_factor
        return self.grouped_allreduce_async_(tensors, average, name, op, *scale, process_set).wait()

    # --- all-gather ---

    def grouped_allgather_async(
        self, tensors: Sequence[Any], name: str | None = None, process_set: ProcessSet = global_process_set
    ) -> GroupHandle:
        """`allgather_async` of each tensor."""
        requests = [self._requests.allgather(tensor) for tensor in tensors]
        return self._operations.submit_group(requests, name, process_set)

    def grouped_allgather(
        self, tensors: Sequence[Any], name: str | None = None, process_set: ProcessSet = global_process_set
    ) -> list[T]:
        """`allgather` of each tensor."""
        return self.grouped_allgather_async(tensors, name, process_set).wait()

    # --- reduce-scatter ---

    def grouped_reducescatter_async(
        self,
        tensors: Sequence[Any],
        name: str | None = None,
        op: ReduceOp = Average,
        process_set: ProcessSet = global_process_set,
        prescale_factor: float = 1.0,
        postscale_factor: float = 1.0,
    ) -> GroupHandle:
        """`reducescatter_async` of each tensor."""
        how = reduce_op(op, None), (prescale_factor, postscale_factor), process_set
        requests = [self._requests.reducescatter(tensor, *how) for tensor in tensors]
        return self._operations.submit_group(requests, name, process_set)

    def grouped_reducescatter(
        self,
        tensors: Sequence[Any],
        name: str | None = None,
        op: ReduceOp = Average,
        process_set: ProcessSet = global_process_set,
        prescale_factor: float = 1.0,
        postscale_factor: float = 1.0,
    ) -> list[T]:
        """`reducescatter` of each tensor."""
        scale = prescale_factor, postscale_factor
        return self.grouped_reducescatter_async(tensors, name, op, process_set, *scale).wait()
