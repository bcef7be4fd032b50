"""All-reduce of sparse tensors: every rank gathers the indices and values of all, and adds up what meets.

Only rows that some rank has travel, so this pays where ranks touch few rows of a large table. The sum is made in the
order of the ranks, 16-bit values in float32: the same bits on every rank, and in every run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from ringdp.constants import Average, ReduceOp, Sum
from ringdp.errors import UsageError
from ringdp.ops import Handle
from ringdp.process_sets import ProcessSet, global_process_set
from ringdp.torch import device
from ringdp.torch.ops import operations
from ringdp.torch.tracing import outside

NARROW = (torch.float16, torch.bfloat16)


class SparseHandle:
    """A sparse all-reduce in flight: `poll()`; `wait()`, `hvd.synchronize(handle)` or, as in Horovod, a call of it."""

    def __init__(
        self, indices: Handle[torch.Tensor], values: Handle[torch.Tensor], shape: torch.Size, divisor: int
    ) -> None:
        self._indices, self._values, self._shape, self._divisor = indices, values, shape, divisor
        self.handles = indices, values
        self._result: torch.Tensor | None = None

    def poll(self) -> bool:
        """True once it has completed or failed. Does not block."""
        return self._indices.poll() and self._values.poll()

    def wait(self) -> torch.Tensor:
        """Sleep until it is done; the sum or average, a coalesced sparse COO tensor. May be called again."""
        if self._result is None:
            indices, values = self._indices.wait(), self._values.wait()
            merged, summed = _coalesced(indices, values, self._shape)
            if self._divisor > 1:
                summed = (
                    summed / self._divisor
                    if summed.is_floating_point()
                    else summed.div(self._divisor, rounding_mode="floor")
                )
            self._result = _sparse(merged, summed, self._shape)
        return self._result

    __call__ = wait


@outside
def sparse_allreduce_async(
    tensor: torch.Tensor,
    name: str | None = None,
    op: ReduceOp | None = None,
    process_set: ProcessSet = global_process_set,
) -> SparseHandle:
    """Start to add up the sparse tensors of all ranks.

    Args:
        tensor: sparse (COO), coalesced or not, with any number of entries on each rank; the shape, the dtype and the
            number of sparse dimensions are the same on all ranks.
        name: operations of the same name meet; default: by the order of unnamed calls.
        op: Average (default) or Sum. Averages are over all ranks, also those that lack an entry.
        process_set: the ranks that take part.

    Returns:
        A handle; `synchronize(handle)` gives a coalesced sparse tensor.

    Raises:
        TypeError, UsageError: no sparse COO tensor, or another `op`.
        MismatchError: in `wait`, where ranks differ in dtype, in the shape of a row, or in the sparse dimensions.
    """
    op = Average if op is None else op
    if op not in (Average, Sum):
        raise UsageError(f"sparse_allreduce_async: op must be Average or Sum, not {getattr(op, 'name', op)}")
    if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.sparse_coo:
        raise TypeError("sparse_allreduce_async needs a sparse COO tensor (for dense ones: allreduce_async)")
    tensor = tensor.detach()
    entries = tensor._indices().t().contiguous(), tensor._values()
    indices, values = entries if tensor.is_coalesced() else _coalesced(*entries, tensor.shape)
    gathered = [
        operations.allgather_async(part, name and f"{name}.{what}", process_set)
        for part, what in ((indices, "indices"), (values.contiguous(), "values"))
    ]
    divisor = process_set.size() if op is Average else 1
    return SparseHandle(gathered[0], gathered[1], tensor.shape, divisor)


def _coalesced(
    indices: torch.Tensor, values: torch.Tensor, shape: torch.Size
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices, shape (entries, sparse dimensions), in order and each once; values of the same index are added up in the
    order in which they stand."""
    flat = indices.new_zeros(indices.shape[0])
    for dim in range(indices.shape[1]):
        flat = flat * shape[dim] + indices[:, dim]
    unique, place = torch.unique(flat, return_inverse=True)
    wide = values.float() if values.dtype in NARROW else values
    with _in_order(values):
        summed = wide.new_zeros((unique.numel(), *values.shape[1:])).index_add_(0, place, wide)
    merged = indices.new_empty((unique.numel(), indices.shape[1]))
    for dim in reversed(range(indices.shape[1])):
        merged[:, dim] = unique % shape[dim]
        unique = unique // shape[dim]
    return merged, summed.to(values.dtype)


@contextlib.contextmanager
def _in_order(values: torch.Tensor) -> Iterator[None]:
    """On a GPU, threads add in any order, unless PyTorch is told that all must be deterministic."""
    if not device.is_on_gpu(values):
        yield
        return
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode(before or "error")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


def _sparse(indices: torch.Tensor, values: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return torch.sparse_coo_tensor(indices.t(), values, shape, is_coalesced=True, check_invariants=False)
