"""`SyncBatchNormalization` equals BatchNormalization on the joined batch: outputs, statistics, gradients."""

import numpy as np
import pytest
import tensorflow as tf
from frameworks.tensorflow.inputs import same_on_all_ranks

import ringdp
import ringdp.tensorflow as hvd


def joined(shape, shift=0.0):
    """All ranks' batches: rank r has `2 + r` rows, or none where the shape says so."""
    rows = [2 + rank for rank in range(hvd.size())]
    random = np.random.default_rng(5)
    x = random.standard_normal((sum(rows), *shape)).astype(np.float32) * 3 + shift
    weights = random.standard_normal(x.shape).astype(np.float32)
    first = sum(rows[: hvd.rank()])
    return x, weights, slice(first, first + rows[hvd.rank()])


def run(layer, x, weights, way, mask=None):
    layer.build(x.shape)
    layer.gamma.assign(tf.linspace(0.5, 2.0, layer.gamma.shape[0]))
    layer.beta.assign(tf.linspace(-1.0, 1.0, layer.beta.shape[0]))

    def step(x, weights):
        with tf.GradientTape() as tape:
            tape.watch(x)
            output = layer(x, training=True) if mask is None else layer(x, training=True, mask=mask)
            loss = tf.reduce_sum(output * weights)
        return output, *tape.gradient(loss, [x, layer.gamma.value, layer.beta.value])

    return [t.numpy() for t in way(step, tf.constant(x), tf.constant(weights))]


@pytest.mark.shows("SyncBatchNormalization", "tensorflow", "eager", "compiled")
@pytest.mark.parametrize(
    "shape, axis, shift",
    [((5,), -1, 0.0), ((4, 3, 2), -1, 0.0), ((2, 3, 4), 1, 0.0), ((5,), -1, 1000.0)],
    ids=str,
)
def test_equal_to_the_joined_batch(shape, axis, shift, way):
    import keras

    x, weights, mine = joined(shape, shift)
    sync = hvd.SyncBatchNormalization(axis=axis, momentum=0.5)
    output, into_x, into_gamma, into_beta = run(sync, x[mine], weights[mine], way)
    plain = keras.layers.BatchNormalization(axis=axis, momentum=0.5)
    wanted = run(plain, x.astype(np.float64).astype(np.float32), weights, way)
    close = {"rtol": 1e-4, "atol": 2e-2 if shift else 2e-5}
    assert np.allclose(output, wanted[0][mine], **close)
    assert np.allclose(into_x, wanted[1][mine], **close)
    sums = hvd.allreduce(tf.constant(np.stack([into_gamma, into_beta])), op=hvd.Sum)
    assert np.allclose(sums, np.stack(wanted[2:]), rtol=1e-4, atol=5e-2 if shift else 1e-4)
    for got, want in zip(sync.non_trainable_variables, plain.non_trainable_variables, strict=True):
        assert np.allclose(got, want, rtol=1e-4, atol=1e-4)
    moving = [v.numpy() for v in sync.non_trainable_variables]
    assert same_on_all_ranks(moving)
    # The statistics themselves, against float64.
    wide = np.moveaxis(x.astype(np.float64), axis, -1).reshape(-1, sync.gamma.shape[0])
    assert np.allclose(moving[0], 0.5 * wide.mean(0), rtol=1e-6)
    assert np.allclose(moving[1], 0.5 + 0.5 * wide.var(0), rtol=1e-5)
    exchanged = ringdp.world.current().engine.counters()["named"] if hasattr(ringdp, "world") else None
    sync(x[mine], training=False)  # inference exchanges nothing
    if exchanged is not None:
        assert ringdp.world.current().engine.counters()["named"] == exchanged


def test_a_mask_and_an_empty_batch(way):
    rank = hvd.rank()
    x, weights, mine = joined((3, 2))
    mask = np.arange(len(x) * 3).reshape(-1, 3) % 3 != 1
    if rank == 0:
        mask[mine] = False  # nothing of rank 0 counts
    everybody = np.concatenate([hvd.broadcast_object(mask[mine], r) for r in range(hvd.size())])
    layer = hvd.SyncBatchNormalization(momentum=0.0)
    run(layer, x[mine], weights[mine], way, tf.constant(mask[mine]))
    wide = x.astype(np.float64)[everybody]
    assert np.allclose(layer.moving_mean, wide.mean(0), rtol=1e-5)
    assert np.allclose(layer.moving_variance, wide.var(0), rtol=1e-5)
    layer = hvd.SyncBatchNormalization(momentum=0.0)
    mine = slice(0, 0) if rank == 0 else slice(0, 3)
    output, into_x, *_ = run(layer, x[mine], weights[mine], way)
    assert output.shape == into_x.shape == x[mine].shape
    assert np.allclose(layer.moving_mean, x[:3].astype(np.float64).mean((0, 1)), rtol=1e-5)


def test_options():
    import keras

    with pytest.raises(ValueError, match="fused"):
        hvd.SyncBatchNormalization(fused=True)
    with pytest.raises(ringdp.UsageError, match="at least one value per channel"):
        hvd.SyncBatchNormalization()(tf.zeros([0, 3]), training=True)
    layer = hvd.SyncBatchNormalization(momentum=0.7, name="sync")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert isinstance(again, hvd.SyncBatchNormalization) and again.momentum == 0.7 and not again.supports_jit
