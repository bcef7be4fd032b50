"""The collective operations on TensorFlow's tensors, eagerly and in `tf.function`, one tensor at a time.

`ringdp.numpy` does the work; what is TensorFlow's own is in `adapter.py` and `graphs.py`, the gradients in
`autograd.py`. Arguments that Horovod has for its own ways, `device_dense`, `device_sparse` and `ignore_name_scope`, are
taken and change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ringdp import world
from ringdp.constants import Average, ReduceOp
from ringdp.numpy.ops import operations
from ringdp.process_sets import ProcessSet, global_process_set, numbered
from ringdp.requests import reduce_op
from ringdp.tensorflow import autograd
from ringdp.tensorflow.adapter import run, tensor_of
from ringdp.tensorflow.compression import Compression, check
from ringdp.tensorflow.sparse import allreduce_slices


@tf.autograph.experimental.do_not_convert
def allreduce(
    tensor: Any,
    average: bool | None = None,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = Compression.none,
    op: ReduceOp | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
    ignore_name_scope: bool = False,
) -> Any:
    """Combine the tensors of all ranks element by element; every rank gets the same bits.

    Args:
        tensor: any shape, the same on all ranks; a tensor, a variable, an array, or a tf.IndexedSlices: of such the
            ranks gather all slices (Average and Sum only), whose numbers may differ between ranks. Gradients flow back
            through dense ones (Average and Sum only): they are reduced in the same way.
        average: older form of `op`: True is Average, False is Sum.
        device_dense, device_sparse, ignore_name_scope: not used.
        compression: `Compression.none`, `.fp16` or `.bf16` (float32 and float64 travel as 16 bits and come back in
            their own dtype), or an object with the same two methods.
        op: Average (default), Sum, Min, Max, Product or Adasum.
        prescale_factor: multiplies the input first.
        postscale_factor: multiplies the result.
        name: operations of the same name meet; default: eagerly by the order of unnamed calls, in tf.function a name
            that is made of the function's and the operation's place in it.
        process_set: the ranks that take part.

    Returns:
        A new tensor of the same shape and dtype; of slices a tf.IndexedSlices.

    Raises (in tf.function as a tf.errors.OpError with this text; `original_error` gives the error itself):
        MismatchError: shape, dtype, op or factors differ between ranks. On every rank.
        TypeError: a dtype that ringdp does not know (also while a function is traced).
        UsageError, DuplicateNameError, DeadlineError, PeerError, TransportError, NotInitializedError.
    """
    how = reduce_op(op, average), (prescale_factor, postscale_factor), process_set
    if isinstance(tensor, tf.IndexedSlices):
        return allreduce_slices(tensor, name, *how)
    narrow, context = check(compression).compress(tensor_of(tensor))
    return compression.decompress(autograd.allreduce([narrow], name, *how)[0], context)


@tf.autograph.experimental.do_not_convert
def allgather(
    tensor: Any,
    name: str | None = None,
    ignore_name_scope: bool = False,
    process_set: ProcessSet = global_process_set,
) -> tf.Tensor:
    """Concatenate the tensors of all ranks along the first dimension, in rank order. Gradients flow back.

    Args:
        tensor: at least one dimension; the first may differ between ranks, the others not.
        name, ignore_name_scope, process_set: see `allreduce`.

    Returns:
        A new tensor, shape (sum of the first dimensions, …), the same on all ranks.
    """
    return autograd.allgather([tensor_of(tensor)], name, process_set)[0]


@tf.autograph.experimental.do_not_convert
def broadcast(
    tensor: Any,
    root_rank: int,
    name: str | None = None,
    ignore_name_scope: bool = False,
    process_set: ProcessSet = global_process_set,
) -> tf.Tensor:
    """Give every rank the tensor of `root_rank`, as a new tensor; shapes and dtypes must agree. Gradients flow back."""
    return autograd.broadcast([tensor_of(tensor)], root_rank, name, process_set)[0]


@tf.autograph.experimental.do_not_convert
def alltoall(
    tensor: Any,
    splits: Any = None,
    name: str | None = None,
    ignore_name_scope: bool = False,
    process_set: ProcessSet = global_process_set,
) -> Any:
    """Send part i of `tensor` (along the first dimension) to rank i, and get one part from every rank.

    Args:
        tensor: at least one dimension; the first may differ between ranks. Gradients flow back.
        splits: rows for each rank (list or integer tensor), adding up to the first dimension; default: equal parts.
        name, ignore_name_scope, process_set: see `allreduce`.

    Returns:
        The parts in rank order, concatenated; with `splits` a pair of that and the rows received from each
        rank (int32).
    """
    parts = None if splits is None else tf.cast(tf.convert_to_tensor(splits), tf.int32)
    output, rows = autograd.alltoall(tensor_of(tensor), parts, name, process_set)
    return output if splits is None else (output, rows)


@tf.autograph.experimental.do_not_convert
def reducescatter(
    tensor: Any,
    device_dense: str = "",
    compression: Any = Compression.none,
    op: ReduceOp = Average,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
    ignore_name_scope: bool = False,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> tf.Tensor:
    """Combine the tensors of all ranks, and give rank i the i-th part of the result (along the first dimension).

    The first dimension need not divide evenly: the first ranks get one row more. Gradients flow back (Average, Sum).
    Arguments: see `allreduce`.
    """
    narrow, context = check(compression).compress(tensor_of(tensor))
    how = reduce_op(op, None), (prescale_factor, postscale_factor), process_set
    return compression.decompress(autograd.reducescatter([narrow], name, *how)[0], context)


@tf.autograph.experimental.do_not_convert
def barrier(process_set: ProcessSet = global_process_set) -> None:
    """Wait until all ranks have come here. In tf.function: each time the function comes here."""

    def body(_: list[NDArray[Any]], __: str | None) -> Sequence[NDArray[Any]]:
        operations.barrier(process_set)
        return [np.zeros((), np.int32)]

    run("barrier", body, [], [tf.TensorSpec([], tf.int32)], None)


# --- who and where, when a graph runs -------------------------------------------------------------


def _number(what: str, ask: Callable[[], int]) -> tf.Tensor:
    if tf.executing_eagerly():
        return tf.constant(ask(), tf.int32)
    # With side effects, so that nobody asks once for all and keeps the answer: an elastic job changes it.
    return tf.ensure_shape(
        tf.numpy_function(lambda: np.int32(ask()), [], tf.int32, name=f"ringdp_{what}"), []
    )


@tf.autograph.experimental.do_not_convert
def size_op(process_set_id: int = 0, name: str | None = None) -> tf.Tensor:
    """The number of ranks of the job or of a process set, as it is when the graph runs: int32, shape ()."""
    return _number("size", lambda: numbered(process_set_id).size())


@tf.autograph.experimental.do_not_convert
def local_size_op(name: str | None = None) -> tf.Tensor:
    """The number of ranks on this host, as it is when the graph runs: int32, shape ()."""
    return _number("local_size", world.local_size)


@tf.autograph.experimental.do_not_convert
def rank_op(name: str | None = None) -> tf.Tensor:
    """This rank's number, as it is when the graph runs: int32, shape ()."""
    return _number("rank", world.rank)


@tf.autograph.experimental.do_not_convert
def local_rank_op(name: str | None = None) -> tf.Tensor:
    """This rank's number among those of its host, as it is when the graph runs: int32, shape ()."""
    return _number("local_rank", world.local_rank)


@tf.autograph.experimental.do_not_convert
def process_set_included_op(process_set_id: int = 0, name: str | None = None) -> tf.Tensor:
    """1 if this rank is one of the process set when the graph runs, else 0: int32, shape ().

    Raises:
        UsageError: there is no such set. (Horovod gives -1 before `init()` and -2 for a set that is not there.)
    """
    return _number("process_set_included", lambda: int(numbered(process_set_id).included()))
