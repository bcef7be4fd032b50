"""mixed_float16: all ranks skip a step, or none."""

import keras
import numpy as np
import pytest
from frameworks.keras.helpers import (
    ROWS,
    assert_near,
    compile,
    data,
    fit,
    mine,
    network,
    same_bits,
    values,
    weights,
)

import ringdp
import ringdp.keras as hvd


def scale_of(optimizer):
    return float(keras.ops.convert_to_numpy(optimizer.dynamic_scale))


def half_network():
    keras.config.set_dtype_policy("mixed_float16")
    return network()


def overflowing(x, batch, rank=1):
    """This rank's rows, those of one batch of one rank so large that its gradients are not finite there."""
    x = mine(x).copy()
    if ringdp.rank() == rank:
        x[batch * ROWS : (batch + 1) * ROWS] = 1e6  # beyond float16
    return x


def wrapped_by_keras(optimizer):
    return hvd.DistributedOptimizer(optimizer)


def wrapped_around(optimizer):
    return keras.optimizers.LossScaleOptimizer(hvd.DistributedOptimizer(optimizer), initial_scale=2.0**15)


def wrapped_inside(optimizer):
    return hvd.DistributedOptimizer(keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0**15))


def wrapped_later(optimizer):
    """The scaler is there before the inner optimizer exchanges anything."""
    scaler = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0**15)
    hvd.DistributedOptimizer(optimizer)
    return scaler


@pytest.mark.shows("overflow on one rank: all skip", "keras", "tensorflow", "jax", "torch")
@pytest.mark.parametrize("wrap", [wrapped_by_keras, wrapped_around, wrapped_inside, wrapped_later])
def test_an_overflow_on_one_rank(wrap):
    inner = keras.optimizers.SGD(0.1, momentum=0.9)
    model = compile(half_network(), wrap(inner))
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert model.optimizer.inner_optimizer is inner
    x, y = data(3, ringdp.size())
    fit(model, mine(x)[:ROWS], mine(y)[:ROWS])
    before, momenta = weights(model), values(inner.variables)
    assert scale_of(model.optimizer) == 2.0**15 and int(inner.iterations) == 1
    fit(model, overflowing(x, 1)[ROWS : 2 * ROWS], mine(y)[ROWS : 2 * ROWS])
    assert scale_of(model.optimizer) == 2.0**14 and int(inner.iterations) == 1
    assert all((a == b).all() for a, b in zip(before, weights(model), strict=True))
    assert all((a == b).all() for a, b in zip(momenta, values(inner.variables), strict=True))
    fit(model, mine(x)[2 * ROWS :], mine(y)[2 * ROWS :])
    assert scale_of(model.optimizer) == 2.0**14 and int(inner.iterations) == 2
    assert not (before[0] == weights(model)[0]).all()
    assert same_bits(weights(model) + values(model.optimizer.variables))


def test_an_overflow_in_the_middle_of_an_epoch():
    model = compile(half_network(), hvd.DistributedOptimizer(keras.optimizers.Adam(0.02)))
    x, y = data(4, ringdp.size())
    fit(model, overflowing(x, 2), mine(y))
    assert int(model.optimizer.iterations) == 3
    assert scale_of(model.optimizer) == 2.0**14
    assert all(np.isfinite(w).all() for w in weights(model))
    assert same_bits(weights(model) + values(model.optimizer.variables))


def test_an_overflow_in_a_window_of_several_passes():
    """The window is skipped as a whole, and the next one begins with the next batch."""
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(0.1), backward_passes_per_step=2, average_aggregated_gradients=True
    )
    model = compile(half_network(), optimizer)
    x, y = data(4, ringdp.size())
    fit(model, overflowing(x, 0), mine(y))
    assert int(optimizer.iterations) == 1 and int(keras.ops.convert_to_numpy(optimizer._iterations)) == 2
    assert scale_of(model.optimizer) == 2.0**14
    assert all(np.isfinite(w).all() for w in weights(model) + values(model.optimizer.variables))
    assert same_bits(weights(model) + values(model.optimizer.variables))
    # As if the first two batches had not been.
    other = compile(network(), hvd.DistributedOptimizer(keras.optimizers.SGD(0.1), name="another"))
    other.optimizer.build(other.trainable_variables)
    other.optimizer.dynamic_scale.assign(2.0**14)
    keras.config.set_dtype_policy("float32")
    fit(other, mine(x)[2 * ROWS :], mine(y)[2 * ROWS :], rows=2 * ROWS)
    assert_near(weights(model), weights(other), 1e-2)


@pytest.mark.parametrize("compression", ["none", "fp16"])
def test_near_to_one_process(compression):
    size = ringdp.size()
    x, y = data(3, size)
    single = compile(half_network(), keras.optimizers.SGD(0.1))
    fit(single, x, y, rows=ROWS * size)
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(0.1), compression=getattr(hvd.Compression, compression)
    )
    model = compile(half_network(), optimizer)
    fit(model, mine(x), mine(y))
    for ours, theirs in zip(weights(model), weights(single), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-2, atol=2e-3)
    assert int(model.optimizer.iterations) == 3 - (scale_of(model.optimizer) < 2.0**15)
    assert same_bits(weights(model))


def test_a_scaler_around_another_optimizer_exchanges_nothing():
    hvd.DistributedOptimizer(keras.optimizers.SGD(0.1))
    model = compile(half_network(), keras.optimizers.SGD(0.1))
    x, y = data(1, ringdp.size())
    if ringdp.rank() == 0:
        fit(model, x, y)
        assert int(model.optimizer.iterations) == ringdp.size()
