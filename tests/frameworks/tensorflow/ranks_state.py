"""Variables and objects from one rank to all, and elastic state."""

import numpy as np
import pytest
import tensorflow as tf
from frameworks.tensorflow.inputs import NUMBERS, same, values

import ringdp
import ringdp.tensorflow as hvd


@pytest.mark.shows(["broadcast of the initial state", "in place"], "tensorflow", "eager", "compiled")
def test_broadcast_variables(way):
    root = hvd.size() - 1
    for inplace in (False, True):
        variables = [tf.Variable(values((3, 2), dtype)) for dtype in NUMBERS]
        variables += [tf.Variable(hvd.rank() == root), tf.Variable(values((0, 4)))]
        # As Keras's random seeds are.
        variables += [
            tf.Variable(tf.cast(values((2,)), dtype)) for dtype in (tf.uint16, tf.uint32, tf.uint64)
        ]
        way(lambda v=variables, i=inplace: hvd.broadcast_variables(v, root, inplace=i))
        for variable, dtype in zip(variables, NUMBERS, strict=False):
            assert same(variable, values((3, 2), dtype, root))
        assert bool(variables[len(NUMBERS)])
        assert all((v.numpy() == values((2,), rank=root).numpy()).all() for v in variables[-3:])


def test_variables_of_keras_and_names(way):
    import keras

    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2), keras.layers.Dropout(0.5)])
    optimizer = keras.optimizers.Adam(0.1 * (hvd.rank() + 1))
    optimizer.build(model.trainable_variables)
    hvd.broadcast_variables([*model.variables, *optimizer.variables], 0)
    all_values = hvd.allgather_object([v.numpy().tolist() for v in [*model.variables, *optimizer.variables]])
    assert all(of_rank == all_values[0] for of_rank in all_values)
    assert np.isclose(float(optimizer.learning_rate), 0.1)
    targets = [tf.Variable(values((2,))), tf.Variable(values((), tf.int64))]
    got = way(lambda: [tf.convert_to_tensor(v) for v in hvd.broadcast_(targets, 1, name="both")])
    assert same(got[0], values((2,), rank=1)) and same(targets[1], values((), tf.int64, 1))


def test_variables_that_differ_between_ranks(way):
    for make in (
        lambda: [tf.Variable(tf.ones([hvd.rank() + 1]))],
        lambda: [tf.Variable(1.0)] * (hvd.rank() + 1),
        lambda: [tf.Variable(1.0 if hvd.rank() else 1)],
    ):
        variables = make()
        before = [v.numpy().copy() for v in variables]
        with pytest.raises((ringdp.MismatchError, tf.errors.OpError)) as caught:
            way(lambda v=variables: hvd.broadcast_variables(v, 0))
        error = hvd.original_error(caught.value)
        assert isinstance(error, ringdp.MismatchError) and "the ranks differ; nothing was done" in str(error)
        assert all((v.numpy() == b).all() for v, b in zip(variables, before, strict=True))
    with pytest.raises(TypeError, match="variable 0 is a .*Tensor, which cannot be assigned"):
        hvd.broadcast_variables([tf.ones([2])], 0)
    with pytest.raises(TypeError, match="variable 0 has dtype string"):
        hvd.broadcast_variables([tf.Variable("text")], 0)
    with pytest.raises(ringdp.UsageError, match="must be a list"):
        hvd.broadcast_variables(tf.Variable(1.0), 0)


@pytest.mark.shows(["broadcast_object", "allgather_object"], "tensorflow", "eager")
def test_objects():
    mine = {"rank": hvd.rank(), "array": np.arange(3) * hvd.rank()}
    assert hvd.broadcast_object(mine, 1, name="object")["rank"] == 1
    assert hvd.broadcast_object_fn(root_rank=1)(mine)["array"].tolist() == [0, 1, 2]
    assert [o["rank"] for o in hvd.allgather_object(mine)] == list(range(hvd.size()))
    with pytest.raises(ringdp.UsageError, match="no sessions"):
        hvd.broadcast_object(mine, 0, session=object())

    @tf.function
    def step():
        return hvd.broadcast_object(1)

    with pytest.raises(Exception, match="called while tf.function traces"):
        step()


@pytest.mark.shows("elastic", "tensorflow", "eager", "compiled")
@pytest.mark.parametrize("kind", ["keras", "variables"])
def test_ranks_go_back_to_the_last_commit(kind, way):
    """An exchange fails on all ranks in the middle: they restore, initialise again, and end as if nothing had been."""
    import keras

    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
    optimizer = keras.optimizers.SGD(0.5, momentum=0.5)
    optimizer.build(model.trainable_variables)
    variables = [*model.variables, *optimizer.variables]
    state = (
        hvd.elastic.TensorFlowKerasState(model, optimizer, step=0)
        if kind == "keras"
        else hvd.elastic.TensorFlowState(variables, step=0)
    )
    failures = []
    if hvd.rank():
        variables[0].assign(variables[0] * 7)  # state.sync() gives what rank 0 has

    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(x))
        gradients = hvd.DistributedGradientTape(tape).gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    @hvd.elastic.run
    def run(state):
        while state.step < 6:
            way(step, tf.ones([1, 2]) * float(hvd.rank()))
            state.step += 1
            if state.step == 4 and not failures:
                failures.append(state.step)
                way(lambda: hvd.allreduce(tf.ones([hvd.rank() + 1])))
            if state.step % 3 == 0:
                state.commit()
        return state.step

    assert run(state) == 6 and failures == [4]
    slope = sum(range(hvd.size())) / hvd.size()
    weight, bias, momentum = 1.0, 0.0, [0.0, 0.0]
    for _ in range(6):
        momentum = [0.5 * momentum[0] - 0.5 * slope, 0.5 * momentum[1] - 0.5]
        weight, bias = weight + momentum[0], bias + momentum[1]
    assert np.allclose(model.variables[0].numpy(), weight) and np.allclose(model.variables[1].numpy(), bias)


def test_elastic_states_in_a_folder(tmp_path):
    folder = hvd.broadcast_object(str(tmp_path))
    variables = [tf.Variable(values((2,), rank=0)), tf.Variable(3)]
    state = hvd.elastic.TensorFlowState(variables, folder=folder, epoch=1)
    variables[0].assign_add([1.0, 1.0])
    state.epoch = 5
    state.commit()
    assert state.flush()
    hvd.barrier()
    others = [tf.Variable(tf.zeros([2])), tf.Variable(0)]
    from ringdp.commits import kept

    kept._folders.clear()  # as after a restart
    again = hvd.elastic.TensorFlowState(others, folder=folder, epoch=0)
    assert again.resume() is not None
    assert same(others[0], values((2,), rank=0) + 1) and int(others[1]) == 3 and again.epoch == 5
    with pytest.raises(ringdp.UsageError, match="needs the list of variables"):
        hvd.elastic.TensorFlowState()
