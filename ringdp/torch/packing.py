"""Gradients into their bucket, and back: on a GPU all of a bucket by one launch (csrc/kernels/gpu/pack.cu)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ringdp import _core
from ringdp.torch import device
from ringdp.torch.adapter import DTYPES

Copy = tuple[torch.Tensor, torch.Tensor]  # to, from
HALVES, WIDE = (torch.float16, torch.bfloat16), (torch.float32, torch.float64)


class Packing:
    """The copies between one bucket and its gradients."""

    def __init__(self, flat: torch.Tensor) -> None:
        self._flat = flat
        self._launches = device.is_on_gpu(flat) and _core.gpu.kernels.built()
        self._in: dict[torch.dtype, Table] = {}
        self._out: dict[torch.dtype, Table] = {}

    def pack(self, copies: Sequence[Copy]) -> None:
        """Each first tensor, a place in the bucket, becomes a copy of the second, cast to its dtype."""
        ours, others = self._divide([(place, grad) for place, grad in copies])
        _by_torch(others)
        for dtype in dict.fromkeys(grad.dtype for _, grad in ours):
            chosen = [(place, grad) for place, grad in ours if grad.dtype == dtype]
            gpu, stream, table = self._in.setdefault(dtype, Table(self._flat)).of(chosen)
            to, bucket = self._flat.data_ptr(), int(DTYPES[self._flat.dtype])
            _core.gpu.kernels.pack(gpu, stream, int(DTYPES[dtype]), bucket, table, to, 1.0)
        if ours:
            torch.autograd.graph.increment_version(self._flat)  # the places are views of it

    def unpack(self, copies: Sequence[Copy]) -> None:
        """Each first tensor becomes a copy of the second, a place in the bucket, cast to its dtype."""
        ours, others = self._divide([(place, grad) for grad, place in copies])
        _by_torch([(grad, place) for place, grad in others])
        for dtype in dict.fromkeys(grad.dtype for _, grad in ours):
            chosen = [(place, grad) for place, grad in ours if grad.dtype == dtype]
            gpu, stream, table = self._out.setdefault(dtype, Table(self._flat)).of(chosen)
            source, bucket = self._flat.data_ptr(), int(DTYPES[self._flat.dtype])
            _core.gpu.kernels.unpack(gpu, stream, bucket, int(DTYPES[dtype]), table, source, 1.0)
        if ours:
            torch.autograd.graph.increment_version([grad for _, grad in ours])

    def _divide(self, copies: Sequence[Copy]) -> tuple[list[Copy], list[Copy]]:
        """What one launch does, and what PyTorch has to: other layouts than the bucket's, casts that are not ours."""
        ours: list[Copy] = []
        others: list[Copy] = []
        for place, grad in copies:
            (ours if self._launches and _alike(place, grad) else others).append((place, grad))
        return ours, others


class Table:
    """What a launch is told of many tensors, in the GPU's memory; kept while they stay where they are."""

    def __init__(self, flat: torch.Tensor) -> None:
        self._flat = flat
        self._of: object = None
        self._memory: torch.Tensor | None = None
        self._described = (0, 0, 0)

    def of(self, copies: Sequence[Copy]) -> tuple[int, int, tuple[int, int, int]]:
        """(GPU, current stream there, (address, entries, tiles)) for the tensors and their places."""
        gpu = device.gpu_of(self._flat)
        stream = device.current_stream(gpu)
        start = self._flat.storage_offset()
        tensors = [(grad.data_ptr(), grad.numel(), place.storage_offset() - start) for place, grad in copies]
        wanted = stream, tensors
        is_captured = device.is_captured(gpu)
        if is_captured or wanted != self._of:
            data, entries, tiles = _core.gpu.kernels.table(int(DTYPES[copies[0][1].dtype]), tensors)
            if is_captured:  # replays need it when all others have long been given up
                address = _core.gpu.constant_in_graph(gpu, stream, data) if data else 0
                return gpu, stream, (address, entries, tiles)
            # New memory: a launch that is under way still reads the other, which PyTorch gives out again behind it.
            self._memory = self._flat.new_empty(max(len(data), 1), dtype=torch.uint8)
            if data:
                _core.gpu.upload(gpu, stream, self._memory.data_ptr(), data)
            self._of, self._described = wanted, (self._memory.data_ptr(), entries, tiles)
        return gpu, stream, self._described


def _alike(place: torch.Tensor, grad: torch.Tensor) -> bool:
    """One after the other, their elements stand in the same order, and the kernels know the cast."""
    if (
        grad.stride() != place.stride()
        or grad.dtype not in DTYPES
        or grad.is_neg()
        or not device.is_on_gpu(grad)
    ):
        return False
    is_cast = {place.dtype, grad.dtype}
    return len(is_cast) == 1 or (place.dtype in HALVES and grad.dtype in WIDE)


def _by_torch(copies: Sequence[Copy]) -> None:
    if len(copies) > 1:
        torch._foreach_copy_([to for to, _ in copies], [source for _, source in copies])
    else:
        for to, source in copies:
            to.copy_(source)
