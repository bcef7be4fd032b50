"""Batch normalisation over the batches of all ranks.

One exchange forward: each rank's count, means and sums of squared deviations per channel, combined in rank order by the
pairwise formula of Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances"
(1979), so that no large squares cancel. One exchange backward: the gradients of mean and variance, added up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ringdp.constants import Sum
from ringdp.errors import UsageError
from ringdp.numpy.ops import operations
from ringdp.process_sets import ProcessSet, global_process_set
from ringdp.tensorflow.adapter import run
from ringdp.tensorflow.turn import current_turn

Arrays = list[NDArray[Any]]


@keras.saving.register_keras_serializable(package="ringdp")
class SyncBatchNormalization(keras.layers.BatchNormalization):  # type: ignore[misc]
    """As Keras's BatchNormalization, with the statistics of all ranks' batches together while training.

    Batches may be of different sizes, empty ones included; every rank of the set calls the layer equally often.
    Inference exchanges nothing. The gradients of gamma and beta are this rank's part: their sum over the ranks is that
    of the joined batch.

    Args:
        fused: as in Horovod, must be False.
        process_set: the ranks whose batches are taken together. It is not part of the saved layer.
        kwargs: those of BatchNormalization. (axis, momentum, epsilon, …)

    Raises:
        ValueError: fused.
        UsageError: Keras has another backend than TensorFlow; in training, fewer than one value per channel on all
            ranks together (on every rank).
    """

    def __init__(
        self, fused: bool | None = False, *, process_set: ProcessSet = global_process_set, **kwargs: Any
    ) -> None:
        if fused in (True, None):
            raise ValueError("SyncBatchNormalization does not support fused=True")
        if keras.backend.backend() != "tensorflow":
            raise UsageError(
                f"SyncBatchNormalization of ringdp.tensorflow needs Keras's backend tensorflow, not "
                f"{keras.backend.backend()}"
            )
        super().__init__(**kwargs)
        self.process_set = process_set
        self.supports_jit = False  # so that jit_compile="auto" leaves models with it alone

    def _moments(self, inputs: Any, mask: Any) -> tuple[tf.Tensor, tf.Tensor]:
        rank = len(inputs.shape)
        axes = [axis for axis in range(rank) if axis != self.axis % rank]
        weights = None
        if mask is not None:
            weights = tf.broadcast_to(tf.cast(tf.expand_dims(mask, -1), inputs.dtype), tf.shape(inputs))
        return moments(inputs, axes, weights, self.process_set)


@tf.autograph.experimental.do_not_convert
def moments(
    inputs: tf.Tensor, axes: Sequence[int], weights: tf.Tensor | None, process_set: ProcessSet
) -> tuple[tf.Tensor, tf.Tensor]:
    """(means, biased variances) per channel, of all ranks' inputs together; gradients flow back.

    Args:
        inputs: float32 or float64.
        axes: all but that of the channels.
        weights: 1 for what counts and 0 for what does not, shape of `inputs`; None: all counts.
    """

    @tf.custom_gradient
    def forward(x: tf.Tensor) -> tuple[list[tf.Tensor], Callable[..., Any]]:
        turn = current_turn()
        row = _row(x, axes, weights)
        channels = x.shape[next(axis for axis in range(len(x.shape)) if axis not in axes)]
        outputs = [tf.TensorSpec([channels], tf.float64)] * 2 + [tf.TensorSpec([], tf.float64)]

        def body(arrays: Arrays, name: str | None) -> Arrays:
            return list(combine(operations.allgather(arrays[0][None], name, process_set)))

        mean, variance, count = run("moments", body, [row], outputs, None)

        def backward(into_mean: tf.Tensor, into_variance: tf.Tensor) -> tf.Tensor:
            def add(arrays: Arrays, name: str | None) -> Arrays:
                return [operations.allreduce(arrays[0], name=name, op=Sum, process_set=process_set)]

            own = tf.cast(tf.stack([into_mean, into_variance]), tf.float64)
            (sums,) = run(
                "moments.gradient", add, [own], [tf.TensorSpec([2, channels], tf.float64)], None, turn
            )
            per_value = sums / count
            # A value moves the mean by 1/count of itself, and the variance by 2/count of its deviation.
            gradient = _along(per_value[0], x, axes) + _along(2 * per_value[1], x, axes) * _centred(
                x, mean, axes
            )
            return gradient if weights is None else gradient * weights

        return [tf.cast(mean, x.dtype), tf.cast(variance, x.dtype)], backward

    mean, variance = forward(inputs)
    return mean, variance


def combine(rows: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """(means, biased variances, number of values) of several batches together, added in the order of the rows.

    Args:
        rows: float64, (batches, 3, channels): counts, means, sums of squared deviations from them.

    Raises:
        UsageError: there are no values at all.
    """
    channels = rows.shape[2]
    total, mean, squares = 0.0, np.zeros(channels), np.zeros(channels)
    for counts, own_mean, own_squares in rows:
        count = float(counts[0]) if channels else 0.0
        if count == 0:
            continue
        apart = own_mean - mean
        mean = mean + apart * (count / (total + count))
        squares = squares + own_squares + apart * apart * (total * count / (total + count))
        total += count
    if total == 0:
        raise UsageError(
            "SyncBatchNormalization needs at least one value per channel on all ranks together to train"
        )
    return mean, squares / total, np.array(total)


def _row(x: tf.Tensor, axes: Sequence[int], weights: tf.Tensor | None) -> tf.Tensor:
    """This rank's counts, means and sums of squared deviations, shape (3, channels), float64."""
    ones = tf.ones_like(x) if weights is None else weights
    count = tf.reduce_sum(tf.cast(ones, tf.float64), axes)
    near = tf.cast(tf.math.divide_no_nan(tf.reduce_sum(x * ones, axes), tf.cast(count, x.dtype)), tf.float64)
    apart = _centred(x, near, axes) * ones
    # The mean was rounded to the dtype of x; what is left of it is the mean of the deviations.
    rest = tf.math.divide_no_nan(tf.cast(tf.reduce_sum(apart, axes), tf.float64), count)
    squares = tf.cast(tf.reduce_sum(apart * apart, axes), tf.float64) - rest * rest * count
    return tf.stack([count, near + rest, squares])


def _along(channels: tf.Tensor, x: tf.Tensor, axes: Sequence[int]) -> tf.Tensor:
    """One number for each channel, to be broadcast over `x`."""
    shape = [1 if axis in axes else -1 for axis in range(len(x.shape))]
    return tf.reshape(tf.cast(channels, x.dtype), shape)


def _centred(x: tf.Tensor, mean: tf.Tensor, axes: Sequence[int]) -> tf.Tensor:
    """`x` minus its mean, float64, of which all digits count: what is far from zero beside its deviation would lose
    them with those of a float32 mean."""
    near = tf.cast(mean, x.dtype)
    rest = mean - tf.cast(near, tf.float64)
    return (x - _along(near, x, axes)) - _along(rest, x, axes)
