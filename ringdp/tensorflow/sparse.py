"""All-reduce of tf.IndexedSlices: every rank gets the slices of all, one behind the other in the order of ranks.

What they mean is their sum, so slices of the same row stay apart, as TensorFlow's own do. Only rows that some rank has
travel: this pays where ranks touch few rows of a large table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ringdp.constants import Average, ReduceOp, Sum
from ringdp.errors import UsageError
from ringdp.numpy.ops import operations
from ringdp.process_sets import ProcessSet
from ringdp.tensorflow.adapter import check_dtype, rows_like, run

Scale = tuple[float, float]  # before and after


def parts_of(slices: tf.IndexedSlices, op: ReduceOp) -> list[tf.Tensor]:
    """The tensors that travel: values and indices.

    Raises:
        UsageError: another op than Average and Sum.
        TypeError: a dtype that ringdp does not know.
    """
    if op not in (Average, Sum):
        raise UsageError(
            f"tf.IndexedSlices can be averaged and summed; op={op.name} needs dense tensors: use "
            "tf.convert_to_tensor, or sparse_as_dense=True"
        )
    check_dtype(slices.values.dtype, "the values of these slices")
    return [slices.values, slices.indices]


def gathered(
    parts: Sequence[NDArray[Any]], name: str | None, op: ReduceOp, scale: Scale, process_set: ProcessSet
) -> list[NDArray[Any]]:
    """Values and indices by turns, of any number of slices: those of all ranks. One group."""
    requests = [operations.requests.allgather(part) for part in parts]
    results = operations.submit_group(requests, name, process_set).wait()
    for values in results[::2]:
        factor = scale[0] * scale[1]
        if factor != 1:
            np.multiply(values, np.asarray(factor, values.dtype), out=values)
        if op is Average:
            is_whole = values.dtype.kind in "iu"
            divide = np.floor_divide if is_whole else np.true_divide
            divide(values, np.asarray(process_set.size(), values.dtype), out=values)
    return results


def allreduce_slices(
    slices: tf.IndexedSlices, name: str | None, op: ReduceOp, scale: Scale, process_set: ProcessSet
) -> tf.IndexedSlices:
    """The sum or average of all ranks' slices. No gradient flows."""

    def body(arrays: list[NDArray[Any]], called: str | None) -> Sequence[NDArray[Any]]:
        return gathered(arrays, called, op, scale, process_set)

    parts = parts_of(slices, op)
    values, indices = run("allreduce", body, parts, [rows_like(part) for part in parts], name)
    return tf.IndexedSlices(values, indices, slices.dense_shape)
