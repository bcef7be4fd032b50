"""Collective operations inside `tf.function`: nodes that call Python, in one order.

A node blocks a thread of TensorFlow's until all ranks have come to it. TensorFlow runs nodes that do not depend on one
another in any order, and at once: two ranks could each wait in an operation that the other would only begin after its
own. So all of ours take their turn (`turn.py`).

Names are made while a function is traced, from its own name and a count that begins in each trace anew: a rank that
traces again, or has traced other functions before, gives the same ones. So operations of functions that run side by
side, as one that maps a data set beside the training step, meet by name, whichever comes first.
"""

from __future__ import annotations

import collections
import copy
import re
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from numpy.typing import NDArray

from ringdp.errors import RingdpError, UsageError
from ringdp.tensorflow import turn as turns

Body = Callable[[list[NDArray[Any]], str | None], Sequence[NDArray[Any]]]

_COUNT = "_ringdp_operations"  # an attribute of graphs
# Of operations in graphs: TensorFlow makes errors of its own of them, which hold no more than their text.
_failures: collections.deque[RingdpError] = collections.deque(maxlen=16)


def run(
    what: str,
    body: Body,
    tensors: Sequence[tf.Tensor],
    outputs: Sequence[tf.TensorSpec],
    name: str | None,
    turn: tf.Tensor | None,
) -> list[tf.Tensor]:
    """See `ringdp.tensorflow.adapter.run`."""
    graph = _function_that_is_traced(what)
    known = name or _next_name(graph, what)

    def call(*arrays: NDArray[Any]) -> list[NDArray[Any]]:
        try:
            return list(body(list(arrays), known))
        except RingdpError as failure:
            # Without its traceback, which holds the memory of the exchange.
            _failures.append(copy.copy(failure))
            raise

    if turn is not None and not turns.keeps_order(turn):
        raise _refusal(
            f"{what}: ringdp cannot keep the order of gradients through branches, loops and calls of functions in "
            f"TensorFlow {tf.__version__}: take them eagerly, or in the tf.function that has the operation itself"
        )

    def make() -> list[tf.Tensor]:
        kinds = [spec.dtype for spec in outputs]
        return list(tf.numpy_function(call, list(tensors), kinds, name=f"ringdp_{what}"))

    results = turns.in_turn(turn, make)
    return [tf.ensure_shape(r, spec.shape) for r, spec in zip(results, outputs, strict=True)]


def _function_that_is_traced(what: str) -> Any:
    """Its graph: that of the innermost function, not of a branch or a loop in it."""
    graph = tf.compat.v1.get_default_graph()
    if not turns.is_of_a_function(graph):
        raise _refusal(
            f"{what}: ringdp.tensorflow works eagerly and in tf.function, not in graphs of tf.compat.v1: call "
            "tf.compat.v1.enable_v2_behavior(), or wrap the step in tf.function"
        )
    if _xla_compiles(graph):
        raise _refusal(
            f"{what}: XLA cannot compile what exchanges with other ranks: leave jit_compile=False for this function "
            "(functions that it calls may have it), and in the compile() of a Keras model"
        )
    while turns.is_part_of_a_function(graph):
        graph = graph.outer_graph
    return graph


def _xla_compiles(graph: Any) -> bool:
    """If this cannot be told, TensorFlow raises an error of its own when the function runs, which shows our nodes."""
    try:
        from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext
    except ImportError:  # it is not TensorFlow's public interface
        return False
    return bool(GraphOrParentsInXlaContext(graph))


def _next_name(graph: Any, what: str) -> str:
    number = getattr(graph, _COUNT, 0)
    setattr(graph, _COUNT, number + 1)
    # Gradients' functions end with a number that counts all that this process has traced.
    function = re.sub(r"_\d+$", "", graph.name or "function")
    return f"{function}.{what}.{number}"


def _refusal(text: str) -> UsageError:
    """While a function is traced AutoGraph makes an error of its own of it."""
    refusal = UsageError(text)
    _failures.append(copy.copy(refusal))
    return refusal


def original_error(error: BaseException) -> RingdpError | None:
    """The error of ringdp's that TensorFlow reports by one of its own.

    An operation inside `tf.function` that fails raises a `tf.errors.OpError` there (InvalidArgumentError or
    UnknownError), with the text of ours:

        try:
            step(batch)
        except tf.errors.OpError as error:
            raise hvd.original_error(error) or error

    Args:
        error: what the function has raised.

    Returns:
        Ours, for example a `MismatchError`; None if none of the last ones is told of in it.
    """
    if isinstance(error, RingdpError):
        return error
    text = str(error)
    for failure in reversed(_failures):
        if f"{type(failure).__name__}: {failure}" in text:
            return failure
    return None
