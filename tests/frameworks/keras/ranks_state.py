"""State from one rank to all, files, values, and this rank's part of the data."""

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

ALL = "keras", "tensorflow", "jax", "torch"


def test_broadcast_model():
    model = compile(network(ringdp.rank()), keras.optimizers.Adam(0.01 * (1 + ringdp.rank())))
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(ringdp.rank() + 5)
    hvd.broadcast_model(model, root_rank=1)
    assert int(model.optimizer.iterations) == 6
    assert_near(weights(model), weights(network(1)), 0)
    assert same_bits(weights(model) + values(model.optimizer.variables))
    hvd.broadcast_global_variables(0, model)
    with pytest.raises(ringdp.UsageError, match="no global variables"):
        hvd.broadcast_global_variables(0)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "float16", "bfloat16", "float32", "uint32"])
def test_variables_of_every_dtype(dtype):
    if BACKEND == "torch" and dtype == "uint32":
        pytest.skip("Keras has no uint32 on torch")
    shapes = [(2, 3), (), (0, 2)]
    variables = [
        keras.Variable(np.full(shape, 1 + i if ringdp.rank() == 1 else 0), dtype=dtype, trainable=False)
        for i, shape in enumerate(shapes)
    ]
    hvd.broadcast_variables(variables, root_rank=1)
    for i, (variable, shape) in enumerate(zip(variables, shapes, strict=True)):
        found = np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(variable.value, "float32")))
        assert found.shape == shape and (found == (1 if dtype == "bool" else 1 + i)).all()


def test_other_variables_on_another_rank():
    variable = keras.Variable(np.full(2 + ringdp.rank(), 3, np.float32), name="mine")
    with pytest.raises(ringdp.MismatchError, match=r"rank 0: mine float32\[2\]\n  rank 1: mine float32\[3\]"):
        hvd.broadcast_variables([variable])
    assert (values([variable])[0] == 3).all()


@pytest.mark.shows(["broadcast_object", "allgather_object"], *ALL)
def test_objects():
    assert hvd.broadcast_object({"epoch": ringdp.rank()}, 1) == {"epoch": 1}
    assert hvd.allgather_object(ringdp.rank()) == list(range(ringdp.size()))


@pytest.mark.shows("load_model", *ALL)
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_saved_training_goes_on(policy, tmp_path):
    """A file holds nothing of ringdp's; load_model gives a model that goes on as if it had not been saved."""
    keras.config.set_dtype_policy(policy)
    x, y = data(4, ringdp.size())
    x, y = mine(x), mine(y)
    half = 2 * ROWS
    model = compile(network(), hvd.DistributedOptimizer(keras.optimizers.Adam(0.02), name="before"))
    fit(model, x[:half], y[:half])
    file = tmp_path / "model.keras"
    model.save(file)
    fit(model, x[half:], y[half:])
    loaded = hvd.load_model(file)
    fit(loaded, x[half:], y[half:])
    assert all((a == b).all() for a, b in zip(weights(model), weights(loaded), strict=True))
    assert int(loaded.optimizer.iterations) == 4
    assert same_bits(weights(loaded) + values(loaded.optimizer.variables))
    plain = keras.models.load_model(file)
    inner = getattr(plain.optimizer, "inner_optimizer", plain.optimizer)
    assert type(inner).__module__.startswith("keras.") and isinstance(inner, keras.optimizers.Adam)
    assert int(plain.optimizer.iterations) == 2


class Halving(keras.optimizers.SGD):
    """An optimizer of the user's own."""


def test_an_optimizer_of_one_s_own(tmp_path):
    model = compile(network(), hvd.DistributedOptimizer(Halving(0.1, gradient_accumulation_steps=2)))
    x, y = data(2, ringdp.size())
    fit(model, mine(x), mine(y))
    model.save(tmp_path / "model.keras")
    loaded = hvd.load_model(tmp_path / "model.keras", custom_optimizers=[Halving])
    assert isinstance(loaded.optimizer, Halving) and loaded.optimizer.gradient_accumulation_steps == 2
    for again in (model, loaded):
        fit(again, mine(x), mine(y))
        assert int(again.optimizer.iterations) == 2
    assert all((a == b).all() for a, b in zip(weights(model), weights(loaded), strict=True))


def tensor(array):
    return keras.ops.convert_to_tensor(array)


@pytest.mark.shows(["allreduce", "allgather", "broadcast", "reducescatter"], *ALL)
@pytest.mark.parametrize("kind", [tensor, np.asarray, keras.Variable], ids=["tensor", "array", "variable"])
def test_values(kind):
    size, rank = ringdp.size(), ringdp.rank()
    own = np.arange(4, dtype=np.float32) + 10 * rank
    sums = size * np.arange(4) + 10 * sum(range(size))

    def found(result):
        if kind is np.asarray:
            assert isinstance(result, np.ndarray)
        else:
            assert keras.ops.is_tensor(result)
        assert keras.backend.standardize_dtype(result.dtype) == "float32"
        return keras.ops.convert_to_numpy(result).tolist()

    assert found(hvd.allreduce(kind(own), average=False)) == sums.tolist()
    assert found(hvd.allreduce(kind(own), op=hvd.Max)) == (np.arange(4) + 10 * (size - 1)).tolist()
    assert found(hvd.allreduce(kind(own))) == pytest.approx((sums / size).tolist())
    assert found(hvd.allreduce(kind(own), op=hvd.Sum, compression=hvd.Compression.fp16)) == sums.tolist()
    assert found(hvd.broadcast(kind(own), 1)) == (np.arange(4) + 10).tolist()
    rows = np.full((rank + 1, 2), rank, np.float32)
    assert found(hvd.allgather(kind(rows))) == [[r, r] for r in range(size) for _ in range(r + 1)]
    table = np.full((size, 3), rank + 1, np.float32)
    assert found(hvd.reducescatter(kind(table), op=hvd.Sum)) == [[size * (size + 1) / 2] * 3]


def test_numbers():
    assert hvd.allreduce(float(ringdp.rank()), op=hvd.Sum) == sum(range(ringdp.size()))
    assert hvd.allreduce([1, 2], op=hvd.Sum).tolist() == [ringdp.size(), 2 * ringdp.size()]


def test_shard():
    rows = np.arange(2 * ringdp.size() + 1)
    part = hvd.shard_equally(rows)
    assert part.tolist() == [ringdp.rank(), ringdp.rank() + ringdp.size()]
    x, y = hvd.shard_equally(rows, rows * 10)
    assert (y == 10 * x).all()
    with pytest.raises(ringdp.UsageError, match="one length"):
        hvd.shard_equally(rows, rows[:-1])
    with pytest.raises(ringdp.UsageError, match="fewer rows"):
        hvd.shard_equally(rows[: ringdp.size() - 1])
