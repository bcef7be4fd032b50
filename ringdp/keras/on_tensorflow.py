"""What TensorFlow needs: the exchange inside and outside `tf.function`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.ops import control_flow_util

from ringdp.errors import UsageError
from ringdp.keras import on_numpy
from ringdp.keras.exchange import Options


def dense(grad: Any, options: Options) -> Any:
    """IndexedSlices as a tensor."""
    return tf.convert_to_tensor(grad)


def exchange(grads: Sequence[Any], options: Options, compression: str) -> list[Any]:
    """See `ringdp.keras.exchange.exchange`; no None among them. `compression`: none, fp16 or bf16."""
    if control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()):
        raise UsageError(
            "XLA cannot compile the exchange of gradients: compile the model with jit_compile=False"
        )
    kinds = [grad.dtype for grad in grads]
    wire = [tf.bitcast(g, tf.uint16) if g.dtype == tf.bfloat16 else g for g in grads]

    def run(*arrays: Any) -> list[Any]:
        import ml_dtypes

        given = [
            a.view(ml_dtypes.bfloat16) if kind == tf.bfloat16 else a
            for a, kind in zip(arrays, kinds, strict=True)
        ]
        return [
            a.view("uint16") if kind == tf.bfloat16 else a
            for a, kind in zip(on_numpy.exchange(given, options, compression), kinds, strict=True)
        ]

    results = tf.numpy_function(run, wire, [w.dtype for w in wire])
    results = (
        results if isinstance(results, (list, tuple)) else [results]
    )  # eagerly, a single one comes alone
    for result, grad in zip(results, grads, strict=True):
        result.set_shape(grad.shape)
    return [
        tf.bitcast(r, tf.bfloat16) if kind == tf.bfloat16 else r
        for r, kind in zip(results, kinds, strict=True)
    ]


def either(
    predicate: Any,
    true: Callable[[list[Any]], None],
    false: Callable[[list[Any]], None],
    grads: list[Any],
    written: Sequence[Any],
) -> None:
    """One of the two, which write variables; the other does not run."""
    keras.ops.cond(predicate, lambda: true(grads), lambda: false(grads))


def to_numpy(tensor: Any) -> Any:
    """The values of a tensor."""
    if not tf.executing_eagerly():
        raise UsageError(
            "in tf.function, use the operations of ringdp.tensorflow: those of ringdp.keras are eager"
        )
    return tensor.numpy()
