"""CuPy arrays for the operations of `ringdp.ops`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import cupy
import numpy as np

from ringdp import dtypes


class Place:
    """`ringdp.requests.OnGpu` for CuPy."""

    def __init__(self, gpu: int) -> None:
        self.gpu = gpu
        self.stream = self.current_stream()

    def current_stream(self) -> int:
        with cupy.cuda.Device(self.gpu):
            return int(cupy.cuda.get_current_stream().ptr)

    def empty(self, shape: Sequence[int], like: Any) -> Any:
        with contextlib.ExitStack() as inside:
            inside.enter_context(cupy.cuda.Device(self.gpu))
            if self.stream:
                inside.enter_context(cupy.cuda.ExternalStream(self.stream))
            return cupy.empty(tuple(shape), like.dtype)


class CupyAdapter:
    """`ringdp.ops.Adapter` for `cupy.ndarray`, and for other arrays on a GPU that have `__cuda_array_interface__`
    (inputs only)."""

    direct: tuple[type, ...] = ()
    note_write: Callable[[Any], None] | None = None

    def source(self, tensor: Any) -> Any:
        if not hasattr(tensor, "__cuda_array_interface__"):
            kind = f"{type(tensor).__module__}.{type(tensor).__name__}"
            raise TypeError(f"a {kind} is no array on a GPU: NumPy arrays have the same functions in ringdp")
        array = cupy.asarray(tensor)
        self._check(array)
        return array if array.flags.c_contiguous else cupy.ascontiguousarray(array)

    def target(self, tensor: Any) -> Any:
        if not isinstance(tensor, cupy.ndarray):
            kind = f"{type(tensor).__module__}.{type(tensor).__name__}"
            raise TypeError(f"an in-place operation needs a cupy.ndarray, not a {kind}")
        self._check(tensor)
        return tensor if tensor.flags.c_contiguous else cupy.ascontiguousarray(tensor)

    def written(self, tensor: Any, target: Any) -> None:
        if target is not tensor:
            tensor[...] = target

    def empty(self, shape: Sequence[int], like: Any) -> Any:
        with like.device:
            return cupy.empty(tuple(shape), like.dtype)

    def empty_like(self, like: Any) -> Any:
        return self.empty(like.shape, like)

    def from_bytes(self, data: Any, shape: Sequence[int], like: Any) -> Any:
        with like.device:
            return cupy.asarray(np.asarray(data).view(like.dtype).reshape(shape))

    def describe(self, tensor: Any) -> tuple[int, int, Sequence[int]]:
        return tensor.data.ptr, dtypes.BY_NAME[tensor.dtype.name], tensor.shape

    def integers(self, values: Sequence[int]) -> Any:
        return np.array(values, np.int64)

    def on_gpu(self, tensor: Any) -> Place:
        return Place(tensor.device.id)

    @staticmethod
    def _check(array: Any) -> None:
        if dtypes.of_array(array) is None:
            raise dtypes.unsupported(array.dtype, "this array")
