"""The collective operations on tensors of Keras's backend, and on NumPy values."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from ringdp.constants import Average, ReduceOp
from ringdp.keras.compression import Compression
from ringdp.keras.exchange import backend
from ringdp.numpy.ops import operations
from ringdp.process_sets import ProcessSet, global_process_set


def allreduce(
    value: Any,
    name: str | None = None,
    average: bool | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    op: ReduceOp | None = None,
    compression: Any = Compression.none,
    process_set: ProcessSet = global_process_set,
) -> Any:
    """Combine the values of all ranks element by element; every rank gets the same bits. Not inside compiled code.

    Args:
        value: a tensor or variable of the backend, a NumPy array, or numbers; the same shape and dtype on all ranks.
        name: operations of the same name meet; default: by the order of unnamed calls.
        average: older form of `op`: True is Average, False is Sum.
        prescale_factor, postscale_factor: multiply before and after.
        op: Average (default), Sum, Min, Max, Product or Adasum.
        compression: `Compression.none`, `.fp16` or `.bf16`, or an object with their two methods.
        process_set: the ranks that take part.

    Returns:
        A tensor of the backend for a tensor, a NumPy array for anything else.

    Raises:
        MismatchError: shape, dtype, op or factors differ between ranks.
        UsageError, DuplicateNameError, DeadlineError, PeerError, TransportError, NotInitializedError.
    """
    if compression is not Compression.none:
        narrow, context = compression.compress(keras.ops.convert_to_tensor(value))
        how = average, prescale_factor, postscale_factor, op, Compression.none, process_set
        result = compression.decompress(allreduce(narrow, name, *how), context)
        return result if _is_tensor(value) else keras.ops.convert_to_numpy(result)
    reduced = operations.allreduce(
        _array(value), average, name, op, prescale_factor, postscale_factor, process_set
    )
    return _like(reduced, value)


def allgather(value: Any, name: str | None = None, process_set: ProcessSet = global_process_set) -> Any:
    """Concatenate the values of all ranks along the first dimension, in rank order.

    Args:
        value: at least one dimension; the first may differ between ranks. Further: see `allreduce`.
        name, process_set: see `allreduce`.
    """
    return _like(operations.allgather(_array(value), name, process_set), value)


def broadcast(
    value: Any, root_rank: int, name: str | None = None, process_set: ProcessSet = global_process_set
) -> Any:
    """Give every rank the value of `root_rank`, as a new one; shapes and dtypes must agree. See `allreduce`."""
    return _like(operations.broadcast(_array(value), root_rank, name, process_set), value)


def reducescatter(
    value: Any,
    name: str | None = None,
    op: ReduceOp = Average,
    process_set: ProcessSet = global_process_set,
) -> Any:
    """Combine the values of all ranks, and give rank i the i-th part of the result along the first dimension.

    The first dimension need not divide evenly: the first ranks get one row more. See `allreduce`.
    """
    return _like(operations.reducescatter(_array(value), name, op, process_set), value)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, keras.Variable) or keras.ops.is_tensor(value)


def _array(value: Any) -> Any:
    if not _is_tensor(value):
        return np.asarray(value)
    tensor = value.value if isinstance(value, keras.Variable) else value
    return backend().to_numpy(tensor)


def _like(array: Any, value: Any) -> Any:
    if not _is_tensor(value):
        return array
    return keras.ops.convert_to_tensor(array, dtype=keras.backend.standardize_dtype(value.dtype))
