"""Arrays in memory that the ranks of a host share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ringdp import world


def shared_bytes(count: int) -> NDArray[np.uint8]:
    """So many bytes with anything in them, in shared memory if there is any."""
    block: NDArray[np.uint8] | None = world.current().lender.bytes(count)
    return np.empty(count, np.uint8) if block is None else block


def empty(shape: int | Sequence[int], dtype: Any = float) -> NDArray[Any]:
    """A NumPy array in memory that the ranks of this host share: an in-place all-reduce of it copies nothing.

    It is used like any other array, on its own or with other ranks' arrays wherever those lie: the result has the same
    bits. Not collective. It stays valid as long as the last array on it, also after `ringdp.shutdown()`. Where no
    shared memory is left, one line on stderr says so and the array lies in ordinary memory; so it does on a rank that
    shares memory with no other. A forked child has no such memory: it must not touch the array.

    Args:
        shape: an integer or a sequence of them, as for `numpy.empty`.
        dtype: of the elements, as for `numpy.empty`; bfloat16 is that of ml_dtypes.

    Returns:
        A writable array in row-major order, with anything in it.

    Raises:
        NotInitializedError: before `ringdp.init()`.
        TypeError: a dtype of Python objects.
        ValueError: a negative dimension.
    """
    element = np.dtype(dtype)
    if element.hasobject:
        raise TypeError(f"shared memory holds plain elements, not {element}")
    wanted = (int(shape),) if isinstance(shape, (int, np.integer)) else tuple(int(n) for n in shape)
    if any(n < 0 for n in wanted):
        raise ValueError(f"negative dimensions are not allowed: {wanted}")
    array: NDArray[Any] = np.ndarray(
        wanted, element, buffer=shared_bytes(math.prod(wanted) * element.itemsize)
    )
    return array
