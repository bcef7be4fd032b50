"""Parameters from one rank to all, process sets, and ringdp begun anew under programs that are compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from frameworks.jax.helpers import WAYS, same, total, values

import ringdp.jax as hvd

ways = pytest.mark.parametrize("way", WAYS)


@ways
@pytest.mark.shows("broadcast of the initial state", "jax", "eager", "compiled")
def test_broadcast_parameters(way):
    def parameters(rank):
        return {
            "w": values((30, 40), rank=rank),
            "b": values((4,), "bfloat16", rank),
            "n": values((), "int32", rank),
            "flag": np.asarray(rank == 1),
        }

    mine = jax.tree.map(jnp.asarray, parameters(hvd.rank()))
    got = WAYS[way](lambda tree: hvd.broadcast_parameters(tree, root_rank=1))(mine)
    jax.tree.map(same, got, parameters(1))
    jax.tree.map(same, mine, parameters(hvd.rank()))


def test_state_of_an_optimizer():
    params = {"w": jnp.asarray(values((3,)))}
    optimizer = optax.adam(0.1)
    state = optimizer.init(params)
    _, state = optimizer.update(params, state, params)
    got = hvd.broadcast_parameters(state, 0)
    assert jax.tree.structure(got) == jax.tree.structure(state)
    same(got[0].count, np.int32(1))
    _, wanted = optimizer.update({"w": values((3,), rank=0)}, optimizer.init(params), params)
    same(got[0].mu["w"], wanted[0].mu["w"])
    mixed = hvd.broadcast_parameters({"f": len, "x": float(hvd.rank()), "none": None}, 1)
    assert mixed["f"] is len and mixed["none"] is None and mixed["x"] == 1.0


@pytest.mark.shows(["broadcast_object", "allgather_object"], "jax", "eager")
def test_objects():
    assert hvd.broadcast_object({"rank": hvd.rank()}, 1) == {"rank": 1}
    assert hvd.allgather_object(hvd.rank()) == list(range(hvd.size()))


def test_average_metrics():
    got = hvd.average_metrics({"loss": jnp.float32(hvd.rank())}, weight=hvd.rank() + 1)
    ranks = range(hvd.size())
    assert got["loss"] == sum(r * (r + 1) for r in ranks) / sum(r + 1 for r in ranks)


@ways
@pytest.mark.shows("process sets", "jax", "eager", "compiled")
def test_process_sets(way):
    last = hvd.size() - 1
    some = hvd.add_process_set([0, last])
    alone = hvd.add_process_set([last])
    run = WAYS[way]
    x = jnp.asarray(values((3,)))
    try:
        if some.included():
            both = values((3,), rank=0) + values((3,), rank=last)
            same(run(lambda x: hvd.allreduce(x, op=hvd.Sum, process_set=some))(x), both)
            tree = run(lambda x: hvd.grouped_allreduce({"x": x}, op=hvd.Sum, process_set=some))(x)
            same(tree["x"], both)
            same(run(lambda x: hvd.broadcast(x, last, process_set=some))(x), values((3,), rank=last))
            rows = run(lambda x: hvd.allgather(x, process_set=some))(x)
            same(rows, np.concatenate([values((3,), rank=r) for r in (0, last)]))
            of_grad = run(jax.grad(lambda x: hvd.broadcast(x, last, process_set=some).sum()))(x)
            same(of_grad, np.full(3, hvd.rank() == last, np.float32))
            hvd.barrier(some)
        if alone.included():
            same(run(lambda x: hvd.reducescatter(x, op=hvd.Sum, process_set=alone))(x), values((3,)))
        same(run(lambda x: hvd.allreduce(x, op=hvd.Sum))(x), total((3,)))
    finally:
        hvd.remove_process_set(some)
        hvd.remove_process_set(alone)
    if last > 1:
        return
    with pytest.raises(hvd.NotInitializedError, match="cannot be used"):
        run(lambda x: hvd.allreduce(x, process_set=some))(x)


def test_programs_outlive_the_engine():
    """Compiled before shutdown(), they find the next engine; between the two they say that there is none."""
    x = jnp.asarray(values((300, 300)))
    reduced = jax.jit(lambda x: hvd.allreduce(x, op=hvd.Sum))
    gathered = jax.jit(hvd.allgather)
    same(reduced(x), total((300, 300)))
    same(gathered(x)[:300], values((300, 300), rank=0))
    hvd.shutdown()
    try:
        with pytest.raises(
            jax.errors.JaxRuntimeError, match=r"ringdp\.NotInitializedError: ringdp is not init"
        ):
            jax.block_until_ready(reduced(x))
        with pytest.raises(hvd.NotInitializedError):
            hvd.allreduce(x)
    finally:
        hvd.init()
    same(reduced(x), total((300, 300)))
    same(gathered(x)[:300], values((300, 300), rank=0))
    assert reduced._cache_size() == 1


def test_programs_compiled_for_others():
    """Where the ranks are others now, what depends on their number is refused."""
    alone = hvd.add_process_set([hvd.size() - 1])
    if alone.included():
        gathered = jax.jit(lambda x: hvd.allgather(x, process_set=alone))
        same(gathered(jnp.ones(2)), np.ones(2, np.float32))
    hvd.remove_process_set(alone)
    number = alone.process_set_id
    assert number is None
    if hvd.rank() == hvd.size() - 1:
        with pytest.raises(jax.errors.JaxRuntimeError, match="is not in process set"):
            jax.block_until_ready(gathered(jnp.ones(2)))
