"""TensorFlow's tensors as NumPy arrays, and back: all that is TensorFlow's about a collective operation.

An operation is a *body*: a function from arrays and a name to arrays, which calls `ringdp.numpy`. Outside of
`tf.function` it is called at once, on the memory of the tensors, which it only reads. Inside it becomes a node of the
graph (`graphs.py`). Nothing here is compiled, so no release of TensorFlow's breaks it.

All functions that a user calls are `do_not_convert`: AutoGraph would rewrite them, and the bodies with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ringdp import dtypes
from ringdp.tensorflow import graphs

Body = Callable[[list[NDArray[Any]], str | None], Sequence[NDArray[Any]]]

_REMEDIES = {
    "string": "broadcast_object and allgather_object carry strings",
    "uint16": "tf.bitcast to tf.int16 gives its bits, for all that does not add",
    "uint32": "tf.bitcast to tf.int32 gives its bits, for all that does not add",
    "uint64": "tf.bitcast to tf.int64 gives its bits, for all that does not add",
}


def tensor_of(value: Any, what: str = "this tensor") -> tf.Tensor:
    """A dense tensor of anything that TensorFlow makes one of: a tensor, a variable (Keras's too), an array, a number.

    Raises:
        TypeError: a sparse or ragged one, or a dtype that ringdp does not know.
    """
    if isinstance(value, tf.IndexedSlices):
        raise TypeError(f"{what} is a tf.IndexedSlices, which only allreduce takes: use tf.convert_to_tensor")
    if isinstance(value, (tf.SparseTensor, tf.RaggedTensor)):
        raise TypeError(
            f"{what} is a tf.{type(value).__name__}, which ringdp cannot exchange: exchange the tensors in it"
        )
    tensor = tf.convert_to_tensor(value)
    check_dtype(tensor.dtype, what)
    return tensor


def check_dtype(dtype: tf.DType, what: str = "this tensor") -> None:
    """Raise TypeError for one that the core does not know."""
    if dtype.name not in dtypes.BY_NAME:
        remedy = "exchange tf.math.real and tf.math.imag of it" if dtype.is_complex else ""
        raise dtypes.unsupported(dtype.name, what, remedy or _REMEDIES.get(dtype.name, ""))


def run(
    what: str,
    body: Body,
    tensors: Sequence[tf.Tensor],
    outputs: Sequence[tf.TensorSpec],
    name: str | None,
    turn: tf.Tensor | None = None,
) -> list[tf.Tensor]:
    """The tensors that `body` makes of `tensors`.

    Args:
        what: the operation, in a word.
        body: it must not write what it is given, and what it returns must be nobody else's: TensorFlow may keep it.
        outputs: dtypes and shapes of what it returns.
        name: of the operation, for the body; None in a graph: one that is made when it is traced.
        turn: of a gradient: `turn.current_turn()` of where the operation itself was made.
    """
    if not tf.executing_eagerly():
        return graphs.run(what, body, tensors, outputs, name, turn)
    results = body([array_of(tensor) for tensor in tensors], name)
    return [tf.convert_to_tensor(result) for result in results]  # in eager mode a copy, always


def array_of(tensor: tf.Tensor) -> NDArray[Any]:
    """An eager tensor's memory, read-only; a copy of what lies on a GPU."""
    array = np.asarray(tensor if tensor.shape.rank else tensor.numpy())  # of one number a copy is as good
    array.flags.writeable = False
    return array


def like(tensor: tf.Tensor) -> tf.TensorSpec:
    """The shape and dtype of `tensor`."""
    return tf.TensorSpec(tensor.shape, tensor.dtype)


def rows_like(tensor: tf.Tensor) -> tf.TensorSpec:
    """The shape and dtype of `tensor`, with any number of rows."""
    rank = tensor.shape.rank
    shape = [None, *tensor.shape[1:]] if rank else None
    return tf.TensorSpec(shape, tensor.dtype)
