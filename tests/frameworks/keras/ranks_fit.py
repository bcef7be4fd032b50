"""`fit` with a DistributedOptimizer is `fit` of one process on the joined batch."""

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

# Adam's epsilon is so large that it does not turn the rounding of a gradient near 0 into a step of another size.
OPTIMIZERS = {
    "sgd": lambda **k: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True, **k),
    "adam": lambda **k: keras.optimizers.Adam(0.02, epsilon=1e-3, **k),
    "adamw, clipped": lambda **k: keras.optimizers.AdamW(
        0.02, epsilon=1e-3, weight_decay=0.1, global_clipnorm=0.3, **k
    ),
    "rmsprop": lambda **k: keras.optimizers.RMSprop(0.01, momentum=0.5, **k),
    "schedule": lambda **k: keras.optimizers.SGD(
        keras.optimizers.schedules.ExponentialDecay(0.2, 2, 0.5), **k
    ),
    "ema": lambda **k: keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5, **k),
}


def joined(optimizer, batches, **options):
    """One process on the batches of all ranks together."""
    size = ringdp.size()
    # TensorFlow's eager step takes less time than tracing one.
    model = compile(network(), optimizer, run_eagerly=BACKEND == "tensorflow", **options)
    fit(model, *data(batches, size), rows=ROWS * size)
    return model


def ours(optimizer, batches, rows=ROWS, callbacks=(), **options):
    model = compile(network(), optimizer, **options)
    x, y = data(batches, ringdp.size())
    fit(model, mine(x), mine(y), rows, callbacks=callbacks)
    return model


@pytest.mark.shows(
    ["DistributedOptimizer", "equals one process on the joined batch"], "keras", "tensorflow", "jax", "torch"
)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_equal_to_one_process(kind):
    single = joined(OPTIMIZERS[kind](), 3)
    optimizer = OPTIMIZERS[kind]()
    assert hvd.DistributedOptimizer(optimizer) is optimizer
    model = ours(optimizer, 3)
    assert_near(weights(model), weights(single))
    assert_near(values(model.optimizer.variables), values(single.optimizer.variables))
    assert same_bits(weights(model) + values(model.optimizer.variables))
    assert int(optimizer.iterations) == 3


@pytest.mark.parametrize("how", ["eager", "compiled"])
def test_ways_to_compile(how):
    options = {"run_eagerly": True} if how == "eager" else {"jit_compile": True}
    if how == "compiled" and BACKEND == "tensorflow":
        model = compile(network(), hvd.DistributedOptimizer(OPTIMIZERS["adam"]()), **options)
        with pytest.raises(ringdp.UsageError, match="jit_compile=False"):
            fit(model, *data(1, 1))
        return
    if how == "compiled" and BACKEND == "torch":
        pytest.skip("TorchInductor compiles for a minute")
    model = ours(hvd.DistributedOptimizer(OPTIMIZERS["adam"]()), 2, **options)
    assert_near(weights(model), weights(joined(OPTIMIZERS["adam"](), 2)))
    assert same_bits(weights(model))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="is about XLA in TensorFlow")
def test_the_broadcast_callback_turns_xla_off():
    model = network()
    callback = hvd.callbacks.BroadcastGlobalVariablesCallback(0)
    compile(model, hvd.DistributedOptimizer(OPTIMIZERS["adam"]()), jit_compile=True)
    x, y = data(2, ringdp.size())
    with pytest.warns(UserWarning, match="XLA cannot compile the exchange"):
        fit(model, mine(x), mine(y), callbacks=[callback])
    assert_near(weights(model), weights(joined(OPTIMIZERS["adam"](), 2)))


@pytest.mark.skipif(BACKEND == "torch", reason="Keras has no steps_per_execution on torch")
def test_several_steps_in_one_execution():
    model = ours(hvd.DistributedOptimizer(OPTIMIZERS["sgd"]()), 4, steps_per_execution=2)
    assert_near(weights(model), weights(joined(OPTIMIZERS["sgd"](), 4)))
    assert same_bits(weights(model))


@pytest.mark.shows("backward_passes_per_step", "keras", "tensorflow", "jax", "torch")
@pytest.mark.parametrize("how", ["averaged", "summed", "keras's own"])
def test_several_passes_in_a_step(how):
    """Two batches of four rows are one batch of eight; Keras's gradient_accumulation_steps says the same."""
    single = joined(keras.optimizers.SGD(0.2 if how == "summed" else 0.1, momentum=0.9), 3)
    if how == "keras's own":
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=2)
        hvd.DistributedOptimizer(optimizer)
    else:
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        hvd.DistributedOptimizer(
            optimizer, backward_passes_per_step=2, average_aggregated_gradients=how == "averaged"
        )
    model = ours(optimizer, 3, rows=ROWS // 2)
    assert_near(weights(model), weights(single))
    assert same_bits(weights(model))
    assert int(optimizer.iterations) == 3
    assert optimizer.gradient_accumulation_steps == 2


def test_adam_counts_steps_and_not_passes():
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.Adam(0.02, epsilon=1e-3),
        backward_passes_per_step=2,
        average_aggregated_gradients=True,
    )
    model = ours(optimizer, 3, rows=ROWS // 2)
    assert_near(weights(model), weights(joined(keras.optimizers.Adam(0.02, epsilon=1e-3), 3)))


def test_a_window_that_an_epoch_leaves_open_goes_on():
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(0.1), backward_passes_per_step=3)
    model = compile(network(), optimizer)
    before = weights(model)
    x, y = data(2, ringdp.size())
    fit(model, mine(x), mine(y))
    assert all((a == b).all() for a, b in zip(before, weights(model), strict=True))
    fit(model, mine(x)[:ROWS], mine(y)[:ROWS])
    assert not (before[0] == weights(model)[0]).all()
    assert int(optimizer.iterations) == 1


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_sum_and_predivide(factor):
    """A sum is the average times the number of ranks; a predivision by a power of two changes no bit."""
    size = ringdp.size()
    options = {"gradient_predivide_factor": factor} if factor != 1 else {"op": hvd.Sum}
    rate = 0.1 if factor != 1 else 0.1 / size
    model = ours(hvd.DistributedOptimizer(keras.optimizers.SGD(rate), **options), 2)
    assert_near(weights(model), weights(joined(keras.optimizers.SGD(0.1), 2)))


@pytest.mark.shows("compression", "keras", "tensorflow", "jax", "torch")
@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_compression_rounds_what_travels(kind):
    """Gradients are integers that both have: exact. One that they have not is rounded to its 16 bits."""
    variable = keras.Variable(np.zeros(3, np.float32))
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(1.0), compression=getattr(hvd.Compression, kind), op=hvd.Sum
    )
    grad = np.array([1 + ringdp.rank(), 2, 1 + 2**-9], np.float32)
    apply(optimizer, [grad], [variable])
    ranks = ringdp.size()
    kept = 1 + 2**-9 if kind == "fp16" else 1
    expected = [-ranks * (ranks + 1) / 2, -2 * ranks, -ranks * kept]
    assert values([variable])[0].tolist() == expected


def apply(optimizer, grads, variables):
    optimizer.build(variables)
    optimizer.apply([keras.ops.convert_to_tensor(g) for g in grads])


@pytest.mark.shows("bfloat16", "keras", "tensorflow", "jax", "torch")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", *["float64"] * (BACKEND != "jax")])
def test_variables_of_every_dtype(dtype):
    shapes = [(2, 3), (), (0, 4), (5,)]
    variables = [keras.Variable(np.zeros(shape), dtype=dtype) for shape in shapes]
    grads = [
        keras.ops.cast(np.full(shape, 2.0 * (ringdp.rank() + 1) + i), dtype) for i, shape in enumerate(shapes)
    ]
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(1.0), op=hvd.Sum)
    optimizer.build(variables)
    optimizer.apply(grads)
    ranks = ringdp.size()
    for i, (variable, shape) in enumerate(zip(variables, shapes, strict=True)):
        found = np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(variable.value, "float32")))
        assert found.shape == shape and (found == -(ranks * (ranks + 1) + i * ranks)).all()


def test_a_variable_without_gradient_stays():
    variables = [keras.Variable(np.ones(2, np.float32)), keras.Variable(np.ones(2, np.float32))]
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(1.0), op=hvd.Sum)
    optimizer.build(variables)
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([None, keras.ops.ones((2,))])
    assert values(variables)[0].tolist() == [1, 1]
    assert values(variables)[1].tolist() == [1 - ringdp.size()] * 2


def test_a_local_variable():
    """Its gradient stays on its rank, divided by the number of ranks."""
    both = [keras.Variable(np.zeros(1, np.float32)), keras.Variable(np.zeros(1, np.float32))]
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(1.0))
    optimizer.register_local_var(both[1])
    optimizer.build(both)
    optimizer.apply([keras.ops.full((1,), float(ringdp.rank())) for _ in both])
    assert values(both)[0][0] == -(ringdp.size() - 1) / 2
    assert values(both)[1][0] == pytest.approx(-ringdp.rank() / ringdp.size())


def test_layers_that_stay_local():
    model = network()
    optimizer = hvd.PartialDistributedOptimizer(
        keras.optimizers.SGD(0.1), local_layers=model.layers[0], scale_local_gradients=False
    )
    compile(model, optimizer)
    x, y = data(1, ringdp.size())
    fit(model, mine(x), mine(y))
    kernels = ringdp.allgather_object(weights(model)[0])
    assert not (kernels[0] == kernels[1]).all()
    assert same_bits(weights(model)[-1:])
    with pytest.raises(ringdp.UsageError, match="built keras.layers.Layer"):
        hvd.PartialDistributedOptimizer(keras.optimizers.SGD(0.1), local_layers=[keras.layers.Dense(3)])


def test_an_optimizer_over_a_process_set():
    """Rank 0 alone, the others among themselves."""
    alone = hvd.add_process_set([0])
    others = hvd.add_process_set(list(range(1, ringdp.size())))
    try:
        mine = alone if ringdp.rank() == 0 else others
        with pytest.raises(ringdp.UsageError, match="not in the process set"):
            hvd.DistributedOptimizer(
                keras.optimizers.SGD(1.0), process_set=others if mine is alone else alone
            )
        variable = keras.Variable(np.zeros(2, np.float32))
        optimizer = hvd.DistributedOptimizer(
            keras.optimizers.SGD(1.0), process_set=mine, op=hvd.Sum, name="by sets"
        )
        apply(optimizer, [np.full(2, 1.0 + ringdp.rank(), np.float32)], [variable])
        expected = sum(1.0 + rank for rank in ([0] if mine is alone else range(1, ringdp.size())))
        assert values([variable])[0].tolist() == [-expected] * 2
    finally:
        hvd.remove_process_set(alone)
        hvd.remove_process_set(others)


def test_ranks_with_different_gradients_raise_and_go_on():
    variable = keras.Variable(np.zeros(2 + ringdp.rank(), np.float32))
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(1.0))
    optimizer.build([variable])
    with pytest.raises(Exception, match="MismatchError|differ"):
        optimizer.apply([keras.ops.ones(variable.shape)])
        values([variable])  # JAX runs when it likes
    assert ringdp.allreduce(np.ones(1), op=ringdp.Sum)[0] == ringdp.size()


def test_several_optimizers_in_one():
    def both():
        chosen = [keras.optimizers.SGD(0.1), keras.optimizers.Adam(0.02, epsilon=1e-3)]
        return keras.optimizers.MultiOptimizer(lambda v: chosen[v.shape[-1] == 3])

    single = joined(both(), 2)
    model = ours(hvd.DistributedOptimizer(both()), 2)
    assert_near(weights(model), weights(single))
    assert same_bits(weights(model))


@pytest.mark.skipif(BACKEND == "jax", reason="JAX has no sparse gradients")
@pytest.mark.shows("sparse gradients", "keras", "tensorflow", "torch")
def test_an_embedding():
    """TensorFlow's gradient of an embedding is sparse."""

    def embedding():
        keras.utils.set_random_seed(3)
        return keras.Sequential(
            [
                keras.layers.Input((4,), dtype="int32"),
                keras.layers.Embedding(9, 5),
                keras.layers.Flatten(),
                keras.layers.Dense(3),
            ]
        )

    size = ringdp.size()
    x = np.random.default_rng(1).integers(0, 9, (2 * size * ROWS, 4)).astype(np.int32)
    y = x[:, 0] % 3
    single = compile(embedding(), keras.optimizers.SGD(0.1), run_eagerly=BACKEND == "tensorflow")
    fit(single, x, y, rows=ROWS * size)
    model = compile(embedding(), hvd.DistributedOptimizer(keras.optimizers.SGD(0.1)))
    fit(model, mine(x), mine(y))
    assert_near(weights(model), weights(single))
    assert same_bits(weights(model))
