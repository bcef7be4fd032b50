"""Collective operations inside `tf.function`: nodes that call Python, in one order.

A node blocks a thread of TensorFlow's until all ranks have come to it. TensorFlow runs nodes that do not depend on one
another in any order, and at once: two ranks could each wait in an operation that the other would only begin after its
own. So all of ours touch one variable, the *turn*, before and after: TensorFlow keeps what writes the same variable in
the order in which it was traced, through conditionals, loops and functions that call functions. (Its order of nodes
with side effects is not enough: a conditional that reads a variable is not among them.)

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

Body = Callable[[list[NDArray[Any]], str | None], Sequence[NDArray[Any]]]

_turn: tf.Variable | None = None
_CALLS = {
    "PartitionedCall",
    "StatefulPartitionedCall",
    "If",
    "StatelessIf",
    "While",
    "StatelessWhile",
    "Case",
    "StatelessCase",
}
_COUNT, _TURN, _LAST = "_ringdp_operations", "_ringdp_turn", "_ringdp_last"  # attributes of graphs
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

    turn = current_turn() if turn is None else turn
    # TensorFlow keeps no order at all in the gradient of a function: there each node of ours waits for the one before.
    here = tf.compat.v1.get_default_graph()
    before = getattr(here, _LAST, [])
    with tf.control_dependencies(before), tf.control_dependencies([_take(turn)]):
        results = tf.numpy_function(
            call,
            list(tensors),
            [spec.dtype for spec in outputs],
            name=f"ringdp_{what}",
        )
    with tf.control_dependencies(results):
        setattr(here, _LAST, [_take(turn)])
    return [tf.ensure_shape(r, spec.shape) for r, spec in zip(results, outputs, strict=True)]


def _take(turn: tf.Tensor) -> tf.Operation:
    return tf.raw_ops.AssignAddVariableOp(resource=turn, value=tf.constant(1, tf.int64))


def current_turn() -> tf.Tensor | None:
    """The variable's handle, for nodes that are made now; None where there is no graph.

    The gradient of an operation must have the operation's own: it may be in another graph, into which TensorFlow brings
    what it finds in the first, and cannot bring a variable of its own.
    """
    global _turn
    graph = tf.compat.v1.get_default_graph()
    if tf.executing_eagerly() or not _is_of_a_function(graph):  # the latter `run` will refuse
        return None
    if _turn is None:
        with tf.init_scope(), tf.device("CPU:0"):
            _turn = tf.Variable(0, dtype=tf.int64, trainable=False, name="ringdp_turn")
            _look_through_calls()
    return _handle_in(graph, _turn.handle)


def _handle_in(graph: Any, handle: tf.Tensor) -> tf.Tensor:
    """Each branch or loop gets it from the graph around it: where gradients look for it."""
    return graph.capture(_handle_in(graph.outer_graph, handle) if _is_part_of_a_function(graph) else handle)


def _look_through_calls() -> None:
    """Let TensorFlow see the variable in what calls of functions give.

    The gradient of a function, or of a loop, gets the variable from what the call gave beside its results. To
    TensorFlow, which keeps the writes of one tensor in order, each call then gives a variable of its own: two gradients
    could run at once. Calls hardly ever give other variables; where they do, order among them does no harm.
    """
    try:
        from tensorflow.python.framework.auto_control_deps import register_acd_resource_resolver
    except ImportError:  # it is not TensorFlow's public interface; only such gradients need it
        return

    @register_acd_resource_resolver
    def ringdp_turn(op: Any, reads: Any, writes: Any) -> bool:
        found = [tensor for tensor in writes if _is_turn(tensor)]
        if not found:
            return False
        if not hasattr(op.graph, _TURN):
            setattr(op.graph, _TURN, found[0].ref())  # the one that all others stand for
        turn = getattr(op.graph, _TURN).deref()
        if turn in writes:
            return False
        writes.add(turn)
        return True


def _is_turn(handle: Any) -> bool:
    """Whether this is the variable's handle, or may be: what a call gave."""
    if _turn is not None and handle is _turn.handle:
        return True
    op = getattr(handle, "op", None)  # an eager tensor has none
    if op is None or op.type != "Placeholder":
        return op is not None and op.type in _CALLS
    outer = next((of_outer for of_outer, inner in op.graph.captures if inner is handle), None)
    return outer is not None and _is_turn(outer)


def _is_of_a_function(graph: Any) -> bool:
    return bool(getattr(graph, "building_function", False))


def _is_part_of_a_function(graph: Any) -> bool:
    """A branch, or what a loop repeats: such have graphs of classes derived from that of functions."""
    return type(graph).__name__ != "FuncGraph" and getattr(graph, "outer_graph", None) is not None


def _function_that_is_traced(what: str) -> Any:
    """Its graph: that of the innermost function, not of a branch or a loop in it."""
    graph = tf.compat.v1.get_default_graph()
    if not _is_of_a_function(graph):
        raise _refusal(
            f"{what}: ringdp.tensorflow works eagerly and in tf.function, not in graphs of tf.compat.v1: call "
            "tf.compat.v1.enable_v2_behavior(), or wrap the step in tf.function"
        )
    if _xla_compiles(graph):
        raise _refusal(
            f"{what}: XLA cannot compile what exchanges with other ranks: leave jit_compile=False for this function "
            "(functions that it calls may have it)"
        )
    while _is_part_of_a_function(graph):
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
