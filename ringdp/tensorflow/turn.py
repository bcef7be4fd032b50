"""The *turn*: a variable that each node of ours writes, before and after, so that all run in the order of the program.

TensorFlow keeps what writes the same variable in the order in which it was traced, through conditionals, loops and
functions that call functions. (Its order of nodes with side effects is not enough: a conditional that reads a variable
is not among them.) In two places it must be helped:

* To the gradient of a function, or of a loop, the variable comes from what the call gave beside its results, and two
  such look like two variables.
* The gradient of a function that is asked for by a tape outside of any `tf.function` is a function in which TensorFlow
  keeps no order at all.

Both need more than TensorFlow's public interface. In a release that lacks it, gradients through calls, branches and
loops raise `UsageError`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

try:
    from tensorflow.python.framework.auto_control_deps import (
        AutomaticControlDependencies,
        register_acd_resource_resolver,
    )
    from tensorflow.python.framework.ops import get_gradient_function

    _orders_gradients = True
except ImportError:
    _orders_gradients = False

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
_CUSTOM = "IdentityN"  # what tf.custom_gradient makes
_TURN, _LAST = "_ringdp_turn", "_ringdp_last"  # attributes of graphs
_WRAPPED = "_ringdp_wrapped"  # of operations


def current_turn() -> tf.Tensor | None:
    """The variable's handle, for nodes that are made now; None where there is no graph.

    The gradient of an operation must have the operation's own: it may be in another graph, into which TensorFlow brings
    what it finds in the first, and cannot bring a variable of its own.
    """
    global _turn
    graph = tf.compat.v1.get_default_graph()
    if tf.executing_eagerly() or not is_of_a_function(graph):  # the latter `graphs.run` will refuse
        return None
    if _turn is None:
        with tf.init_scope(), tf.device("CPU:0"):
            _turn = tf.Variable(0, dtype=tf.int64, trainable=False, name="ringdp_turn")
    # As TensorFlow itself brings it into a branch or a loop: if it came in two ways, gradients would not find it.
    return graph.capture(_turn.handle)


def in_turn(turn: tf.Tensor | None, make: Callable[[], list[tf.Tensor]]) -> list[tf.Tensor]:
    """The tensors that `make` gives, of a node that runs when its turn has come. `turn`: of a gradient, where its
    operation was made."""
    turn = current_turn() if turn is None else turn
    here = tf.compat.v1.get_default_graph()
    # Where TensorFlow keeps no order each node waits for the one before.
    with tf.control_dependencies(getattr(here, _LAST, [])), tf.control_dependencies([_write(turn)]):
        results = make()
    with tf.control_dependencies(results):
        setattr(here, _LAST, [_write(turn)])
    return results


def keeps_order(turn: tf.Tensor) -> bool:
    """Of a gradient that is made now, and whose operation has this turn."""
    return _orders_gradients or tf.compat.v1.get_default_graph() is turn.graph


def is_of_a_function(graph: Any) -> bool:
    """Whether it is traced for `tf.function`."""
    return bool(getattr(graph, "building_function", False))


def is_part_of_a_function(graph: Any) -> bool:
    """A branch, or what a loop repeats: such have graphs of classes derived from that of functions."""
    return type(graph).__name__ != "FuncGraph" and getattr(graph, "outer_graph", None) is not None


def _write(turn: tf.Tensor) -> tf.Operation:
    return tf.raw_ops.AssignAddVariableOp(resource=turn, value=tf.constant(1, tf.int64))


def _is_turn(handle: Any) -> bool:
    """Whether this is the variable's handle, or may be: what a call gave."""
    if _turn is not None and handle is _turn.handle:
        return True
    op = getattr(handle, "op", None)  # an eager tensor has none
    if op is None or op.type != "Placeholder":
        return op is not None and op.type in _CALLS
    outer = next((of_outer for of_outer, inner in op.graph.captures if inner is handle), None)
    return outer is not None and _is_turn(outer)


def _resolve(op: Any, reads: Any, writes: Any) -> bool:
    """For each operation of a function that has been traced: what TensorFlow is to know of the variables it writes.

    Each call of a function seems to give a variable of its own; here all that may be the turn are one. Calls hardly
    ever give other variables; where they do, order among them does no harm.
    """
    if op.type == _CUSTOM or op.type in _CALLS:
        _keep_order_of_gradient(op)
    found = [tensor for tensor in writes if _is_turn(tensor)] if _turn is not None else []
    if not found:
        return False
    if not hasattr(op.graph, _TURN):
        setattr(op.graph, _TURN, found[0].ref())  # the one that all others stand for
    turn = getattr(op.graph, _TURN).deref()
    if turn in writes:
        return False
    writes.add(turn)
    return True


def _keep_order_of_gradient(op: Any) -> None:
    """Where TensorFlow keeps no order, the gradient of `op` waits for those made before it, and those after it wait."""
    global _orders_gradients
    if hasattr(op, _WRAPPED):
        return
    if not hasattr(op, "_gradient_function"):  # it would not be asked
        _orders_gradients = False
        return
    try:
        gradient = get_gradient_function(op)
    except LookupError:
        return

    def in_order(op: Any, *grads: Any) -> Any:
        graph: Any = tf.compat.v1.get_default_graph()
        if getattr(graph, "experimental_acd_manager", None) is not None:  # TensorFlow keeps order here
            return gradient(op, *grads)
        made_before = len(graph.get_operations())
        with tf.control_dependencies(getattr(graph, _LAST, [])), AutomaticControlDependencies():
            result = gradient(op, *grads)
        made = [new for new in graph.get_operations()[made_before:] if _writes_turn(new)]
        if made:
            setattr(graph, _LAST, made)
        return result

    if gradient is not None:
        op._gradient_function = in_order
    setattr(op, _WRAPPED, True)


def _writes_turn(op: Any) -> bool:
    return any(tensor.dtype == tf.resource and _is_turn(tensor) for tensor in op.inputs)


if _orders_gradients:
    register_acd_resource_resolver(_resolve)
