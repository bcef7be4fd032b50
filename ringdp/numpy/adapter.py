"""NumPy arrays for the operations of `ringdp.ops`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ringdp import dtypes


class NumpyAdapter:
    """`ringdp.ops.Adapter` for `numpy.ndarray`, and for whatever `numpy.asarray` reads (inputs only)."""

    direct: tuple[type, ...] = (np.ndarray,)
    note_write: Callable[[Any], None] | None = None

    def source(self, tensor: Any) -> NDArray[Any]:
        if type(tensor).__module__.split(".")[0] == "torch":
            raise TypeError("this is a torch tensor: use the same function of ringdp.torch")
        array = np.ascontiguousarray(tensor) if np.ndim(tensor) else np.asarray(tensor)
        self._check(array)
        return array

    def target(self, tensor: Any) -> NDArray[Any]:
        if not isinstance(tensor, np.ndarray):
            raise TypeError(
                f"an in-place operation needs a numpy.ndarray, not {type(tensor).__module__}.{type(tensor).__name__} "
                "(JAX arrays and TensorFlow tensors cannot be written; torch tensors: use ringdp.torch)"
            )
        if not tensor.flags.writeable:
            raise TypeError("an in-place operation needs an array that may be written; this one is read-only")
        self._check(tensor)
        return tensor if tensor.flags.c_contiguous else np.ascontiguousarray(tensor)

    def written(self, tensor: Any, target: NDArray[Any]) -> None:
        if target is not tensor:
            tensor[...] = target

    def empty(self, shape: Sequence[int], like: NDArray[Any]) -> NDArray[Any]:
        return np.empty(shape, like.dtype)

    def empty_like(self, like: NDArray[Any]) -> NDArray[Any]:
        return np.empty(like.shape, like.dtype)  # half as long as np.empty_like

    def from_bytes(self, data: Any, shape: Sequence[int], like: NDArray[Any]) -> NDArray[Any]:
        array: NDArray[Any] = np.asarray(data).view(like.dtype).reshape(shape)
        return array

    def describe(self, tensor: NDArray[Any]) -> tuple[int, int, Sequence[int]]:
        return tensor.ctypes.data, dtypes.BY_NAME[tensor.dtype.name], tensor.shape

    def integers(self, values: Sequence[int]) -> NDArray[Any]:
        return np.array(values, np.int64)

    def on_gpu(self, tensor: NDArray[Any]) -> None:
        return None

    @staticmethod
    def _check(array: NDArray[Any]) -> None:
        if dtypes.of_array(array) is None:
            raise dtypes.unsupported(array.dtype, "this array")
