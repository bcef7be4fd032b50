"""State from one rank to all: variables, objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf
from numpy.typing import NDArray

from ringdp import state as objects
from ringdp.errors import UsageError
from ringdp.numpy.ops import operations
from ringdp.process_sets import ProcessSet, global_process_set
from ringdp.tensorflow.adapter import check_dtype, like, run

Arrays = list[NDArray[Any]]
# What only moves needs no arithmetic: unsigned integers go as the signed ones of their size, as Keras's seeds do.
_AS = {"uint16": tf.int16, "uint32": tf.int32, "uint64": tf.int64}


@tf.autograph.experimental.do_not_convert
def broadcast_variables(
    variables: Iterable[Any],
    root_rank: int,
    process_set: ProcessSet = global_process_set,
    inplace: bool = False,
) -> None:
    """Give every rank the variables of `root_rank`: they are assigned.

    All go in one exchange, eagerly and in tf.function.

    Args:
        variables: tf.Variable or Keras's, `model.variables` and `optimizer.variables` for example; of the same shapes
            and dtypes in the same order on all ranks. Their names may differ.
        root_rank: whose values.
        process_set: the ranks that take part.
        inplace: not needed, and changes nothing.

    Raises:
        MismatchError: number, shapes or dtypes differ between ranks; on every rank, and nothing is assigned.
        TypeError: a variable that ringdp cannot exchange; UsageError: not such a collection.
    """
    _broadcast(variables, root_rank, None, process_set)


@tf.autograph.experimental.do_not_convert
def broadcast_(
    variables: Iterable[Any],
    root_rank: int,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> list[Any]:
    """As `broadcast_variables`, under a name; the variables, as a list."""
    return _broadcast(variables, root_rank, name, process_set)


def _broadcast(
    variables: Iterable[Any], root_rank: int, name: str | None, process_set: ProcessSet
) -> list[Any]:
    if isinstance(variables, (tf.Tensor, tf.Variable, str)) or not isinstance(variables, Iterable):
        raise UsageError(
            f"variables must be a list or another collection of variables, not a {type(variables).__name__}"
        )
    targets = list(variables)
    for i, variable in enumerate(targets):
        if not hasattr(variable, "assign"):
            raise TypeError(f"variable {i} is a {type(variable).__name__}, which cannot be assigned")
    tensors = [_movable(tf.convert_to_tensor(v), f"variable {i}") for i, v in enumerate(targets)]

    def body(arrays: Arrays, called: str | None) -> Sequence[NDArray[Any]]:
        lines = [f"variable {i}: {a.dtype.name}{list(a.shape)}" for i, a in enumerate(arrays)]
        objects.agree(lines, called or "broadcast_variables", process_set)
        requests = [operations.requests.broadcast(array, root_rank, process_set) for array in arrays]
        return operations.submit_group(requests, called, process_set).wait()

    results = run("broadcast_variables", body, tensors, [like(t) for t in tensors], name)
    for variable, result in zip(targets, results, strict=True):
        dtype = tf.as_dtype(variable.dtype)
        variable.assign(tf.bitcast(result, dtype) if dtype.name in _AS else result)
    return targets


def _movable(tensor: tf.Tensor, what: str) -> tf.Tensor:
    if tensor.dtype.name in _AS:
        return tf.bitcast(tensor, _AS[tensor.dtype.name])
    check_dtype(tensor.dtype, what)
    return tensor


# --- objects --------------------------------------------------------------------------------------


def _refuse(what: str, session: Any) -> None:
    if session is not None:
        raise UsageError(f"{what}: there are no sessions in TensorFlow 2: leave session=None")
    if not tf.executing_eagerly():
        raise UsageError(
            f"{what}: called while tf.function traces, which happens once and not in each call: call it outside"
        )


def broadcast_object(
    obj: Any,
    root_rank: int = 0,
    session: None = None,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Any:
    """Give every rank the object of `root_rank`: see `ringdp.broadcast_object`. Not in tf.function.

    Raises:
        UsageError: in tf.function, with a session, or what cannot be pickled; PeerError: the root could not pickle it.
    """
    _refuse("broadcast_object", session)
    return objects.broadcast_object(obj, root_rank, name, process_set)


def broadcast_object_fn(
    root_rank: int = 0,
    session: None = None,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Callable[[Any], Any]:
    """A function that is `broadcast_object` with these arguments."""
    return lambda obj: broadcast_object(obj, root_rank, session, name, process_set)


def allgather_object(
    obj: Any,
    session: None = None,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> list[Any]:
    """The objects of all ranks, in rank order: see `ringdp.allgather_object`. Not in tf.function."""
    _refuse("allgather_object", session)
    return objects.allgather_object(obj, name, process_set)
