"""JAX arrays for the operations of `ringdp.ops`: the core reads them where they lie, and its results become new arrays.

An array of JAX is never written: who else looks at its memory cannot be known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from ringdp import dtypes
from ringdp.numpy.adapter import NumpyAdapter
from ringdp.ops import Operations

ALIGNED = 64  # bytes: what JAX wants of memory that it takes over without a copy


def array_of(tensor: Any) -> Any:
    """A JAX array, or what stands for one while a function is traced, of what the caller gives.

    Raises:
        TypeError: a tensor of another framework, or a dtype that ringdp cannot exchange.
    """
    if not isinstance(tensor, jax.Array):
        framework = type(tensor).__module__.split(".")[0]
        if framework in ("torch", "tensorflow"):
            raise TypeError(
                f"this is a {framework} tensor: use the same function of ringdp.{framework}, or jax.numpy.asarray()"
            )
        tensor = jnp.asarray(tensor)
    if tensor.dtype.name not in dtypes.BY_NAME:
        raise dtypes.unsupported(tensor.dtype.name, "this array")
    return tensor


def refuse_elsewhere(array: Any) -> None:
    """Raise TypeError for an array that does not lie in host memory, as one piece."""
    devices = array.sharding.device_set
    if len(devices) > 1:
        raise TypeError(
            f"this array is spread over {len(devices)} devices; ringdp exchanges arrays of JAX that lie on one CPU "
            "device: start a rank for each device, or exchange the pieces (array.addressable_shards)"
        )
    (device,) = devices
    if device.platform != "cpu":
        raise TypeError(
            f"this array lies on {device}; ringdp exchanges arrays of JAX on the CPU only: "
            "jax.device_put(array, jax.devices('cpu')[0])"
        )


def in_place(name: str) -> Callable[..., NoReturn]:
    """What stands for an operation in place."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise TypeError(
            f"arrays of JAX cannot be written: {name}() has no in-place form here; use {name.rstrip('_')}(), which "
            "returns a new array"
        )

    refuse.__name__ = refuse.__qualname__ = name
    refuse.__doc__ = f"Refused, with TypeError: `{name.rstrip('_')}` returns a new array."
    return refuse


def host_memory(shape: Sequence[int], dtype: Any) -> NDArray[Any]:
    """A NumPy array that JAX takes over as it is."""
    element = np.dtype(dtype)
    count = math.prod(shape) * element.itemsize
    block = np.empty(count + ALIGNED, np.uint8)
    begin = -block.ctypes.data % ALIGNED
    return block[begin : begin + count].view(element).reshape(tuple(shape))


def to_jax(result: NDArray[Any], like: Any) -> jax.Array:
    """As an array of JAX where `like` lies. Nobody else must have the memory."""
    return jax.device_put(result, like.sharding if like.committed else None)


class JaxAdapter(NumpyAdapter):
    """`ringdp.ops.Adapter` for arrays of JAX that have values; results are NumPy arrays, for `to_jax`."""

    direct: tuple[type, ...] = ()

    def source(self, tensor: Any) -> NDArray[Any]:
        refuse_elsewhere(tensor)
        return super().source(np.asarray(tensor))

    def empty(self, shape: Sequence[int], like: NDArray[Any]) -> NDArray[Any]:
        return host_memory(shape, like.dtype)

    def empty_like(self, like: NDArray[Any]) -> NDArray[Any]:
        return host_memory(like.shape, like.dtype)


adapter = JaxAdapter()
operations: Operations[NDArray[Any]] = Operations(adapter)
