"""The callbacks, by what they leave in models, optimizers and logs."""

import keras
import numpy as np
import pytest
from frameworks.keras.helpers import (
    BACKEND,
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
from ringdp.keras import callbacks

ALL = "keras", "tensorflow", "jax", "torch"


class Recorder(keras.callbacks.Callback):
    """The learning rate of each batch, and the logs of each epoch."""

    def __init__(self):
        super().__init__()
        self.rates, self.logs = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.rates.append(float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)))

    def on_epoch_end(self, epoch, logs=None):
        self.logs.append(dict(logs))


@pytest.mark.shows("broadcast of the initial state", *ALL)
def test_all_begin_with_the_root_s_state():
    root = ringdp.size() - 1
    alone = compile(
        network(root), keras.optimizers.Adam(0.02, epsilon=1e-3), run_eagerly=BACKEND == "tensorflow"
    )
    size = ringdp.size()
    x, y = data(3, size)
    fit(alone, x, y, rows=ROWS * size)
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.Adam(0.02 * (1 + root - ringdp.rank()), epsilon=1e-3)
    )
    model = compile(network(ringdp.rank()), optimizer)
    fit(model, mine(x), mine(y), callbacks=[callbacks.BroadcastGlobalVariablesCallback(root)])
    assert_near(weights(model), weights(alone))
    assert same_bits(weights(model) + values(optimizer.variables))


def test_seeds_and_what_comes_later():
    """The states of random seeds are the root's; a variable made in the first batch is broadcast after it."""
    model = compile(
        network(5 + ringdp.rank(), dropout=0.5), hvd.DistributedOptimizer(keras.optimizers.SGD(0.1))
    )
    late = keras.Variable(np.full(3, float(ringdp.rank())), trainable=False, name="late")

    class MakeLate(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if not any(v is late for v in self.model.optimizer.variables):
                self.model.optimizer._track_variable(late)

    x, y = data(2, ringdp.size())
    seeds = [v for v in model.variables if "seed" in v.name]
    assert len(seeds) == 1
    if BACKEND == "jax":  # its trainer does not know variables that were not there before
        fit(model, mine(x), mine(y), callbacks=[callbacks.BroadcastGlobalVariablesCallback(0)])
    else:
        fit(model, mine(x), mine(y), callbacks=[MakeLate(), callbacks.BroadcastGlobalVariablesCallback(0)])
        assert values([late])[0].tolist() == [0, 0, 0]
    assert same_bits(values(seeds) + weights(model))


def test_a_local_variable_stays():
    model = compile(network(ringdp.rank()), keras.optimizers.SGD(0.0))
    kernel = model.layers[0].kernel
    before = values([kernel])[0]
    x, y = data(1, ringdp.size())
    fit(
        model,
        mine(x),
        mine(y),
        callbacks=[callbacks.BroadcastGlobalVariablesCallback(0, local_variables=[kernel])],
    )
    assert (values([kernel])[0] == before).all()
    assert same_bits(values([model.layers[-1].kernel]))


def test_different_numbers_of_batches_are_refused():
    model = compile(network(), hvd.DistributedOptimizer(keras.optimizers.SGD(0.1)))
    x, y = data(3, ringdp.size())
    rows = ROWS * (2 + (ringdp.rank() == 1))
    with pytest.raises(ringdp.MismatchError, match="2 on rank 0, 3 on rank 1"):
        fit(model, mine(x)[:rows], mine(y)[:rows], callbacks=[callbacks.BroadcastGlobalVariablesCallback(0)])


@pytest.mark.shows("callbacks", *ALL)
def test_metrics_are_averages_of_the_ranks():
    model = compile(network(), hvd.DistributedOptimizer(keras.optimizers.SGD(0.1)), metrics=["accuracy"])
    before, after = Recorder(), Recorder()
    x, y = data(2, ringdp.size())
    history = fit(
        model, mine(x), mine(y), epochs=2, validation_data=(mine(x)[:ROWS], mine(y)[:ROWS]),
        callbacks=[before, callbacks.MetricAverageCallback(), after],
    )  # fmt: skip
    assert set(before.logs[0]) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    for epoch in range(2):
        of_ranks = ringdp.allgather_object(before.logs[epoch])
        for key, average in after.logs[epoch].items():
            assert average == pytest.approx(np.mean([logs[key] for logs in of_ranks]), rel=1e-12)
            assert history.history[key][epoch] == average
    assert len({logs["loss"] for logs in of_ranks}) == ringdp.size()


def test_warm_up():
    size, steps = ringdp.size(), 4
    model = compile(network(), hvd.DistributedOptimizer(keras.optimizers.SGD(0.3)))
    recorder = Recorder()
    x, y = data(steps, size)
    warm = callbacks.LearningRateWarmupCallback(0.3, warmup_epochs=2, verbose=1)
    fit(model, mine(x), mine(y), epochs=3, callbacks=[warm, recorder])
    expected = [0.3 / size * ((b + 1) / steps * (size - 1) / 2 + 1) for b in range(2 * steps)] + [0.3] * steps
    assert recorder.rates == pytest.approx(expected, rel=1e-6)
    assert recorder.logs[1]["lr"] == pytest.approx(0.3, rel=1e-6)


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("scaled", [False, True], ids=["", "in a LossScaleOptimizer"])
def test_a_schedule_with_momentum(corrected, scaled):
    """SGD computed by hand: velocity = momentum * velocity * new rate / old rate - rate * gradient."""
    variable = 0.0
    velocity, rate, momentum = 0.0, 0.4, 0.5
    inner = keras.optimizers.SGD(rate, momentum=momentum)
    hvd.DistributedOptimizer(inner)
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=4.0) if scaled else inner
    model = keras.Sequential(
        [keras.layers.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")]
    )
    # The loss is the output: the gradient is the mean of the rows, 1 + rank; averaged over the ranks.
    model.compile(optimizer=optimizer, loss=lambda y, p: keras.ops.mean(p, axis=-1))
    rows = np.full((4, 1), 1.0 + ringdp.rank(), np.float32)
    schedule = callbacks.LearningRateScheduleCallback(
        0.4, 0.5, start_epoch=1, end_epoch=3, momentum_correction=corrected
    )
    recorder = Recorder()
    fit(model, rows, rows[:, 0], rows=2, epochs=4, callbacks=[schedule, recorder])
    gradient = (1 + ringdp.size()) / 2
    for epoch, new in enumerate([0.4, 0.4, 0.2, 0.2]):
        if corrected:
            velocity *= new / rate
        rate = new
        for _ in range(2):
            velocity = momentum * velocity - rate * gradient
            variable += velocity
        assert recorder.logs[epoch]["lr"] == pytest.approx(rate)
    assert values(model.weights)[0].item() == pytest.approx(variable, rel=1e-6)
    assert recorder.rates == pytest.approx([0.4] * 4 + [0.2] * 4)


def test_a_schedule_inside_epochs():
    model = compile(network(), hvd.DistributedOptimizer(keras.optimizers.Adam(0.1)))
    recorder = Recorder()
    x, y = data(2, ringdp.size())
    schedule = callbacks.LearningRateScheduleCallback(
        0.1, lambda epoch: 1 + epoch, staircase=False, start_epoch=1
    )
    fit(model, mine(x), mine(y), epochs=2, callbacks=[schedule, recorder])
    assert recorder.rates == pytest.approx([0.1, 0.1, 0.2, 0.25])


def test_rank_0_alone_writes_checkpoints(tmp_path):
    model = compile(network(), hvd.DistributedOptimizer(keras.optimizers.Adam(0.02)))
    x, y = data(2, ringdp.size())
    saving = callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    fit(model, mine(x), mine(y), epochs=2, callbacks=[callbacks.MetricAverageCallback(), saving])
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == (["1.keras", "2.keras"] if ringdp.rank() == 0 else [])
