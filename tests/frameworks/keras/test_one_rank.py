"""One rank alone: refusals, what has no effect, and training that is Keras's own."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from driver.environ import environment
from frameworks.keras.helpers import compile, data, fit, network, values, weights

import ringdp
import ringdp.keras as hvd
from ringdp import built

SGD = keras.optimizers.SGD


class Halves:
    """A compression of the user's own."""

    @staticmethod
    def compress(tensor):
        return tensor / 2, 4

    @staticmethod
    def decompress(tensor, context):
        return tensor * context


def test_training_is_keras_s_own():
    both = []
    for wrap in (lambda optimizer: optimizer, hvd.DistributedOptimizer):
        model = compile(network(), wrap(keras.optimizers.Adam(0.02)))
        history = fit(model, *data(3, 1), epochs=2)
        both.append((weights(model), values(model.optimizer.variables), history.history["loss"]))
    for plain, wrapped in zip(*both, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(plain, wrapped, strict=True))


def test_the_optimizer_stays_what_it_was():
    optimizer = keras.optimizers.Adam(0.02)
    optimizer.build([keras.Variable(np.zeros(3, np.float32))])
    kind, before, config = type(optimizer), optimizer.variables, optimizer.get_config()
    assert hvd.DistributedOptimizer(optimizer) is optimizer
    assert isinstance(optimizer, keras.optimizers.Adam) and optimizer.__class__ is kind
    assert optimizer.variables == before and optimizer.get_config() == config
    assert keras.optimizers.serialize(optimizer) == keras.optimizers.serialize(kind.from_config(config))
    again = optimizer.from_config(config)  # of the class that exchanges, with the same options
    assert type(again) is type(optimizer) and again.get_config() == config
    again.build([keras.Variable(np.zeros(3, np.float32))])
    again.apply([keras.ops.ones((3,))])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"op": "sum"}, "op must be one of Average, Sum"),
        ({"gradient_predivide_factor": 0}, "must be positive"),
        ({"gradient_predivide_factor": 2, "op": hvd.Sum}, "needs op=Average"),
        ({"compression": "fp16"}, "must have the methods compress and decompress"),
        ({"device_dense": "GPU:0"}, "device_dense and device_sparse must be empty"),
        ({"device_sparse": "GPU:0"}, "device_dense and device_sparse must be empty"),
        ({"groups": -1}, "groups must be a number from 0"),
        ({"backward_passes_per_step": 0}, "must be a positive integer"),
        ({"backward_passes_per_step": 1.5}, "must be a positive integer"),
    ],
)
def test_refusals(options, text):
    with pytest.raises(ringdp.UsageError, match=text):
        hvd.DistributedOptimizer(SGD(0.1), **options)


def test_refusals_of_optimizers():
    with pytest.raises(ringdp.UsageError, match="needs a keras.optimizers.Optimizer, not builtins.str"):
        hvd.DistributedOptimizer("adam")
    optimizer = hvd.DistributedOptimizer(SGD(0.1))
    with pytest.raises(ringdp.UsageError, match="wrap an optimizer once"):
        hvd.DistributedOptimizer(optimizer)
    with pytest.raises(ringdp.UsageError, match="two names for the same number"):
        hvd.DistributedOptimizer(SGD(0.1, gradient_accumulation_steps=2), backward_passes_per_step=3)
    with pytest.raises(ringdp.UsageError, match="a MultiOptimizer does not add up"):
        hvd.DistributedOptimizer(
            keras.optimizers.MultiOptimizer(lambda v: optimizer), backward_passes_per_step=2
        )
    built = SGD(0.1)
    built.build([keras.Variable(np.zeros(3, np.float32))])
    with pytest.raises(ringdp.UsageError, match="is built, without room"):
        hvd.DistributedOptimizer(built, backward_passes_per_step=2)
    with pytest.raises(ringdp.UsageError, match="give the variables with the gradients"):
        optimizer.apply([keras.ops.ones((3,))])


def test_options_of_no_effect():
    assert isinstance(hvd.DistributedOptimizer(SGD(0.1), num_groups=2, sparse_as_dense=True), SGD)
    assert isinstance(hvd.DistributedOptimizer(SGD(0.1), groups=[[keras.Variable(1.0)]]), SGD)


def test_a_variable_that_its_gradient_overwrites_is_refused():
    variable = keras.Variable(np.zeros(3, np.float32))
    variable.overwrite_with_gradient = True
    optimizer = hvd.DistributedOptimizer(SGD(0.1))
    with pytest.raises(ringdp.UsageError, match="float8"):
        optimizer.apply([keras.ops.ones((3,))], [variable])


def test_callbacks_refuse_devices():
    with pytest.raises(ringdp.UsageError, match="device must be empty"):
        hvd.callbacks.BroadcastGlobalVariablesCallback(0, device="GPU:0")
    with pytest.raises(ringdp.UsageError, match="device must be empty"):
        hvd.callbacks.MetricAverageCallback(device="GPU:0")
    with pytest.raises(ringdp.UsageError, match="needs initial_lr"):
        hvd.callbacks.LearningRateScheduleCallback(None, 0.5)


def test_what_is_imported():
    """No framework that Keras has not; and an optimizer before init() is refused."""
    script = """
import sys, keras
loaded = lambda: {"tensorflow", "jax", "torch"} & set(sys.modules)
before = loaded()
import ringdp.keras as hvd
try:
    hvd.DistributedOptimizer(keras.optimizers.SGD(0.1))
except hvd.NotInitializedError:
    print(loaded() == before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=200
    )
    assert done.stdout == "True\n", done.stderr


def test_other_names():
    """Those that Horovod's users know."""
    import ringdp.tensorflow.keras as other
    import ringdp.tensorflow.keras.callbacks as others
    from ringdp.tensorflow.keras.callbacks import MetricAverageCallback

    assert other is hvd and others is hvd.callbacks
    assert MetricAverageCallback is hvd.callbacks.MetricAverageCallback
    assert set(hvd.__all__) <= set(dir(hvd))


def test_what_it_was_built_with():
    assert hvd.mpi_built() and hvd.mpi_enabled() and hvd.mpi_threads_supported()
    assert not any((hvd.gloo_built(), hvd.gloo_enabled(), hvd.rocm_built(), hvd.ccl_built(), hvd.ddl_built()))
    assert hvd.nccl_built() == built.nccl_built() and hvd.cuda_built() == built.cuda_built()


def test_everything_that_is_exported_exists():
    assert all(hasattr(hvd, name) for name in hvd.__all__)
    assert {name for name in vars(built) if name.endswith(("_built", "_enabled"))} <= set(hvd.__all__)
