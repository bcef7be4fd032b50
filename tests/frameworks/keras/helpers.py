"""A small model, its data, and how ranks are compared."""

import keras
import numpy as np

import ringdp

BACKEND = keras.backend.backend()
ROWS = 8  # of a rank's batch


def network(seed=1, dropout=0.0):
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Input((6,)), keras.layers.Dense(8, activation="tanh")]
    layers += [keras.layers.Dropout(dropout, seed=seed)] if dropout else []
    return keras.Sequential([*layers, keras.layers.Dense(3)])


def data(batches, ranks, seed=0):
    """Rows and labels of so many batches of all ranks."""
    random = np.random.default_rng(seed)
    rows = batches * ranks * ROWS
    x = random.normal(size=(rows, 6)).astype(np.float32)
    return x, np.argmax(x[:, :3] + 0.1 * random.normal(size=(rows, 3)), 1).astype(np.int32)


def mine(array, rank=None, ranks=None, rows=ROWS):
    """Of each joined batch, this rank's rows."""
    rank = ringdp.rank() if rank is None else rank
    ranks = ringdp.size() if ranks is None else ranks
    parts = array.reshape(-1, ranks, rows, *array.shape[1:])[:, rank]
    return parts.reshape(-1, *array.shape[1:])


def compile(model, optimizer, **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, **options)
    return model


def fit(model, x, y, rows=ROWS, epochs=1, callbacks=(), **options):
    return model.fit(
        x, y, batch_size=rows, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks), **options
    )


def weights(model):
    return [np.asarray(w) for w in model.get_weights()]


def values(variables):
    return [np.asarray(keras.ops.convert_to_numpy(v)) for v in variables]


def same_bits(arrays):
    """Whether all ranks have the same bits in these arrays."""
    mine = b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)
    return len(set(ringdp.allgather_object(mine))) == 1


def assert_near(ours, theirs, relative=2e-5):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=relative, atol=2e-6)
