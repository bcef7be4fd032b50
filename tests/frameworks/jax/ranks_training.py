"""Training with optax: two ranks give what one process gives on the joined batch, all ranks the same bits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from frameworks.jax.helpers import WAYS, same

import ringdp.jax as hvd

ways = pytest.mark.parametrize("way", WAYS)
STEPS, ROWS = 6, 16
OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1, momentum=0.9),
    "adamw": lambda: optax.adamw(0.01),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.01)),
}


def parameters():
    random = np.random.default_rng(99)
    shapes = {"hidden": {"w": (8, 16), "b": (16,)}, "out": {"w": (16, 3), "b": (3,)}}
    values = jax.tree.map(
        lambda n: 0.3 * random.normal(size=n), shapes, is_leaf=lambda n: isinstance(n, tuple)
    )
    return jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), values)


def loss(params, x, y):
    hidden = jnp.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"])
    logits = hidden @ params["out"]["w"] + params["out"]["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def batch(step, ranks):
    """The joined one of so many ranks."""
    random = np.random.default_rng(step)
    return random.normal(size=(ROWS * ranks, 8)).astype(np.float32), random.integers(0, 3, ROWS * ranks)


def trained(optimizer, way, part=slice(None)):
    """The parameters after all steps, each on `part` of the joined batch."""
    params = parameters()
    state = optimizer.init(params)

    def step(params, state, x, y):
        updates, state = optimizer.update(jax.grad(loss)(params, x, y), state, params)
        return optax.apply_updates(params, updates), state

    step = WAYS[way](step)
    for i in range(STEPS):
        x, y = batch(i, hvd.size())
        params, state = step(params, state, jnp.asarray(x[part]), jnp.asarray(y[part]))
    return params


def own_part():
    return slice(hvd.rank() * ROWS, (hvd.rank() + 1) * ROWS)


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize(
    ("way", "optimizer"), [("eager", "sgd"), *(("compiled", name) for name in OPTIMIZERS)]
)
@pytest.mark.shows(
    ["DistributedOptimizer", "equals one process on the joined batch"], "jax", "eager", "compiled"
)
def test_as_one_process(way, optimizer):
    ours = trained(hvd.distributed(OPTIMIZERS[optimizer]()), way, own_part())
    alone = trained(OPTIMIZERS[optimizer](), "compiled")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), ours, alone)
    assert not any(a == b for a, b in zip(bits(ours), bits(parameters()), strict=True))
    all_bits = hvd.allgather_object(bits(ours))
    assert all(theirs == all_bits[0] for theirs in all_bits)


def test_training_repeats():
    once, again = (trained(hvd.distributed(OPTIMIZERS["adamw"]()), "compiled", own_part()) for _ in range(2))
    assert bits(once) == bits(again)


def test_eager_and_compiled_exchanges_give_the_same_bits():
    tree = {"a": jnp.asarray(np.random.default_rng(hvd.rank()).normal(size=(333, 7)), jnp.float32)}
    tree["b"] = tree["a"][0]
    assert bits(hvd.allreduce_gradients(tree)) == bits(jax.jit(hvd.allreduce_gradients)(tree))


@pytest.mark.shows("backward_passes_per_step", "jax", "compiled")  # optax.MultiSteps
def test_windows():
    """Two batches a step: the exchange is in a branch of the compiled program."""
    inner = hvd.distributed(optax.sgd(0.1))
    ours = trained(optax.MultiSteps(inner, every_k_schedule=2), "compiled", own_part())
    alone = trained(optax.MultiSteps(optax.sgd(0.1), every_k_schedule=2), "compiled")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), ours, alone)


@ways
def test_value_and_grad(way):
    x, y = batch(0, hvd.size())
    mine = jnp.asarray(x[own_part()]), jnp.asarray(y[own_part()])
    value, gradients = WAYS[way](hvd.value_and_grad(loss))(parameters(), *mine)
    np.testing.assert_allclose(value, loss(parameters(), *mine), rtol=1e-6)
    wanted = jax.grad(loss)(parameters(), x, y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), gradients, wanted)


def test_options():
    gradients = {"w": jnp.full(4, 2.0 * hvd.rank() + 1), "n": jnp.asarray([3], jnp.int32)}
    size = hvd.size()
    summed = hvd.allreduce_gradients(gradients, op=hvd.Sum, compression=hvd.Compression.bf16)
    same(summed["w"], np.full(4, size * size, np.float32))
    same(summed["n"], np.array([3 * size], np.int32))
    divided = hvd.allreduce_gradients(gradients, gradient_predivide_factor=2.0)
    same(divided["w"], np.full(4, size, np.float32))
    with pytest.raises(hvd.UsageError, match="needs op=Average"):
        hvd.allreduce_gradients(gradients, op=hvd.Sum, gradient_predivide_factor=2.0)
    with pytest.raises(hvd.UsageError, match="must be positive"):
        hvd.allreduce_gradients(gradients, gradient_predivide_factor=0)
    with pytest.raises(hvd.UsageError, match="compression must have"):
        hvd.distributed(optax.sgd(0.1), compression="bf16")
