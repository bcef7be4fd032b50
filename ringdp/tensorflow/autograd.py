"""The collective operations on tensors of TensorFlow's, and their gradients: each is an exchange the other way.

As in Horovod, gradients that meet are averaged: an all-gather gives each rank the average of all ranks' gradients
for its own rows, a broadcast gives the root their average. An all-reduce reduces the gradients as it did the tensors.
Second derivatives are an error: these conventions have none.

All take a list of tensors: of one, by its name, or of a group (`grouped`), whose names are `name.0`, `name.1`, …
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ringdp import world
from ringdp.constants import Average, ReduceOp, Sum
from ringdp.errors import UsageError
from ringdp.numpy.ops import operations
from ringdp.process_sets import ProcessSet
from ringdp.requests import Request, splits_of
from ringdp.tensorflow.adapter import like, rows_like, run
from ringdp.tensorflow.turn import current_turn

Arrays = list[NDArray[Any]]
Scale = tuple[float, float]  # before and after
Tensors = list[tf.Tensor]


def _exchange(
    requests: Sequence[Request[NDArray[Any]]], name: str | None, process_set: ProcessSet, grouped: bool
) -> list[Any]:
    if grouped:
        return operations.submit_group(requests, name, process_set).wait()
    return [operations.submit(request, name, process_set).wait() for request in requests]


def _backward(
    what: str, body: Any, grads: Sequence[Any], outputs: Sequence[tf.TensorSpec], turn: tf.Tensor | None
) -> Tensors:
    """The gradients that `body` makes of `grads`. `turn`: where the operation itself was made."""

    @tf.custom_gradient
    def once(*tensors: tf.Tensor) -> tuple[Tensors, Callable[..., Any]]:
        def again(*_: Any) -> Any:
            raise UsageError(f"there are no second derivatives of {what}")

        return run(f"{what}.gradient", body, tensors, outputs, None, turn), again

    return list(once(*[tf.convert_to_tensor(grad) for grad in grads]))


# --- all-reduce -----------------------------------------------------------------------------------


def _reduced(
    arrays: Arrays, name: str | None, op: ReduceOp, scale: Scale, process_set: ProcessSet, grouped: bool
) -> Arrays:
    if not grouped:
        return [operations.allreduce(arrays[0], None, name, op, *scale, process_set)]
    return _exchange(
        [operations.requests.allreduce(a, op, scale) for a in arrays], name, process_set, grouped
    )


def allreduce(
    tensors: Tensors,
    name: str | None,
    op: ReduceOp,
    scale: Scale,
    process_set: ProcessSet,
    grouped: bool = False,
) -> Tensors:
    """The gradient is reduced as the tensor was."""

    def body(arrays: Arrays, called: str | None) -> Arrays:
        return _reduced(arrays, called, op, scale, process_set, grouped)

    @tf.custom_gradient
    def forward(*given: tf.Tensor) -> tuple[Tensors, Callable[..., Any]]:
        turn = current_turn()
        outputs = [like(tensor) for tensor in given]

        def backward(*grads: Any) -> Tensors:
            if op not in (Average, Sum):
                raise UsageError(
                    f"no gradient flows through {op.name}: use Average or Sum, or tf.stop_gradient"
                )
            return _backward("allreduce", body, grads, outputs, turn)

        return run("allreduce", body, given, outputs, name), backward

    return list(forward(*tensors))


def _averages(arrays: Arrays, name: str | None, process_set: ProcessSet, grouped: bool) -> Arrays:
    return _reduced(arrays, name, Average, (1.0, 1.0), process_set, grouped)


# --- all-gather -----------------------------------------------------------------------------------


def _gathering(array: NDArray[Any], process_set: ProcessSet) -> Request[NDArray[Any]]:
    """The result is a pair: all rows, and which of them is this rank's first."""
    request = operations.requests.allgather(array)
    finish = request.finish

    def with_place(core: Any) -> Any:
        before = sum(core.rows()[: process_set.rank() or 0])
        return finish(core), np.array(before, np.int64)

    request.finish = with_place
    return request


def allgather(tensors: Tensors, name: str | None, process_set: ProcessSet, grouped: bool = False) -> Tensors:
    """The gradients of all ranks are averaged; each rank takes its own rows."""
    count = len(tensors)

    def body(arrays: Arrays, called: str | None) -> Arrays:
        pairs = _exchange([_gathering(a, process_set) for a in arrays], called, process_set, grouped)
        return [rows for rows, _ in pairs] + [place for _, place in pairs]

    def body_back(arrays: Arrays, called: str | None) -> Arrays:
        means = _averages(arrays[:count], called, process_set, grouped)
        places = zip(arrays[count : 2 * count], arrays[2 * count :], strict=True)
        return [
            np.ascontiguousarray(mean[int(start) : int(start) + int(rows)])
            for mean, (start, rows) in zip(means, places, strict=True)
        ]

    @tf.custom_gradient
    def forward(*given: tf.Tensor) -> tuple[Tensors, Callable[..., Any]]:
        turn = current_turn()
        outputs = [rows_like(tensor) for tensor in given] + [tf.TensorSpec([], tf.int64)] * count
        results = run("allgather", body, given, outputs, name)
        starts = results[count:]

        def backward(*grads: Any) -> Tensors:
            own = [tf.shape(tensor, tf.int64)[0] for tensor in given]
            return _backward("allgather", body_back, [*grads, *starts, *own], [like(t) for t in given], turn)

        return results[:count], backward

    return list(forward(*tensors))


# --- broadcast ------------------------------------------------------------------------------------


def broadcast(
    tensors: Tensors, root_rank: int, name: str | None, process_set: ProcessSet, grouped: bool = False
) -> Tensors:
    """The root gets the average of all gradients, the others nothing."""

    def body(arrays: Arrays, called: str | None) -> Arrays:
        requests = [operations.requests.broadcast(a, root_rank, process_set) for a in arrays]
        return _exchange(requests, called, process_set, grouped)

    def body_back(arrays: Arrays, called: str | None) -> Arrays:
        means = _averages(arrays, called, process_set, grouped)
        return means if world.rank() == root_rank else [np.zeros_like(mean) for mean in means]

    @tf.custom_gradient
    def forward(*given: tf.Tensor) -> tuple[Tensors, Callable[..., Any]]:
        turn = current_turn()
        outputs = [like(tensor) for tensor in given]

        def backward(*grads: Any) -> Tensors:
            return _backward("broadcast", body_back, grads, outputs, turn)

        return run("broadcast", body, given, outputs, name), backward

    return list(forward(*tensors))


# --- all-to-all -----------------------------------------------------------------------------------


def alltoall(
    tensor: tf.Tensor, splits: tf.Tensor | None, name: str | None, process_set: ProcessSet
) -> tuple[tf.Tensor, tf.Tensor]:
    """(the rows that came, how many from each rank). The gradient goes back the way the rows came."""

    def exchange(array: NDArray[Any], parts: Any, called: str | None) -> Arrays:
        if parts is None:
            parts = splits_of(None, array.shape[0] if array.ndim else 0, process_set.size())
        output, rows = operations.alltoall(array, parts, called, process_set)
        return [output, np.asarray(rows, np.int32)]

    def body(arrays: Arrays, called: str | None) -> Arrays:
        return exchange(arrays[0], arrays[1] if len(arrays) > 1 else None, called)

    def body_back(arrays: Arrays, called: str | None) -> Arrays:
        grad, rows, shape = arrays
        return [exchange(grad, rows, called)[0].reshape([int(n) for n in shape])]

    @tf.custom_gradient
    def forward(given: tf.Tensor) -> tuple[Tensors, Callable[..., Any]]:
        turn = current_turn()
        outputs = [rows_like(given), tf.TensorSpec([None], tf.int32)]
        results = run("alltoall", body, [given] if splits is None else [given, splits], outputs, name)

        def backward(grad: Any, _: Any = None) -> tf.Tensor:
            return _backward("alltoall", body_back, [grad, results[1], tf.shape(given)], [like(given)], turn)[
                0
            ]

        return results, backward

    output, rows = forward(tensor)
    return output, rows


# --- reduce-scatter -------------------------------------------------------------------------------


def reducescatter(
    tensors: Tensors,
    name: str | None,
    op: ReduceOp,
    scale: Scale,
    process_set: ProcessSet,
    grouped: bool = False,
) -> Tensors:
    """Each rank's rows of the gradient go to all; Average divides them by the number of ranks."""
    count = len(tensors)

    def body(arrays: Arrays, called: str | None) -> Arrays:
        requests = [operations.requests.reducescatter(a, op, scale, process_set) for a in arrays]
        return _exchange(requests, called, process_set, grouped)

    def body_back(arrays: Arrays, called: str | None) -> Arrays:
        requests = [operations.requests.allgather(a) for a in arrays[:count]]
        whole = _exchange(requests, called, process_set, grouped)
        factor = scale[0] * scale[1] / (process_set.size() if op is Average else 1)
        return [
            w.reshape([int(n) for n in shape]) * np.asarray(factor, w.dtype)
            for w, shape in zip(whole, arrays[count:], strict=True)
        ]

    @tf.custom_gradient
    def forward(*given: tf.Tensor) -> tuple[Tensors, Callable[..., Any]]:
        turn = current_turn()
        outputs = [rows_like(tensor) for tensor in given]

        def backward(*grads: Any) -> Tensors:
            if op not in (Average, Sum):
                raise UsageError(
                    f"no gradient flows through {op.name}: use Average or Sum, or tf.stop_gradient"
                )
            shapes = [tf.shape(tensor) for tensor in given]
            return _backward("reducescatter", body_back, [*grads, *shapes], [like(t) for t in given], turn)

        return run("reducescatter", body, given, outputs, name), backward

    return list(forward(*tensors))
