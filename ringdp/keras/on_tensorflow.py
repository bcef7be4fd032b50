"""What TensorFlow needs: the exchange inside and outside `tf.function`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from ringdp.errors import UsageError
from ringdp.keras.exchange import Options
from ringdp.tensorflow import exchange as tensorflow
from ringdp.tensorflow.compression import Compression


def dense(grad: Any, options: Options) -> Any:
    """IndexedSlices as a tensor."""
    return tf.convert_to_tensor(grad)


def exchange(grads: Sequence[Any], options: Options, compression: str) -> list[Any]:
    """See `ringdp.keras.exchange.exchange`; no None among them. `compression`: none, fp16 or bf16."""
    how = tensorflow.Options(
        options.op,
        getattr(Compression, compression),
        sparse_as_dense=True,
        predivide=options.predivide,
        process_set=options.process_set,
    )
    return tensorflow.exchanged(grads, how, options.name)


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
