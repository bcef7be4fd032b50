"""Gradients of the collectives, and tangents: exact numbers, eager and compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from frameworks.jax.helpers import WAYS, same, total, values

import ringdp.jax as hvd

ways = pytest.mark.parametrize("way", WAYS)


def weights(shape, rank=None):
    """What the loss of `rank` multiplies the result with: the gradients that meet. Their average is exact."""
    return values(shape, rank=rank) * hvd.size()


def average(shape):
    return total(shape)  # of size * values


def gradient(way, operation, x, shape):
    w = jnp.asarray(weights(shape))
    return WAYS[way](jax.grad(lambda x: jnp.sum(operation(x) * w)))(x)


@ways
@pytest.mark.shows("gradient of allreduce", "jax", "eager", "compiled")
def test_allreduce(way):
    x = jnp.asarray(values((2, 3)))
    same(gradient(way, lambda x: hvd.allreduce(x, op=hvd.Sum), x, (2, 3)), total((2, 3)) * hvd.size())
    same(gradient(way, hvd.allreduce, x, (2, 3)), average((2, 3)))
    scaled = gradient(way, lambda x: hvd.allreduce(x, prescale_factor=2, name="scaled"), x, (2, 3))
    same(scaled, 2 * average((2, 3)))
    narrow = gradient(way, lambda x: hvd.allreduce(x, compression=hvd.Compression.bf16), x, (2, 3))
    same(narrow, average((2, 3)))


@ways
@pytest.mark.shows("gradient of grouped_allreduce", "jax", "eager", "compiled")
def test_grouped_allreduce(way):
    tree = {"a": jnp.asarray(values((2, 3))), "b": jnp.asarray(values((4,))), "c": jnp.asarray(values((1,)))}

    def loss(tree):  # c has no gradient
        reduced = hvd.grouped_allreduce(tree, op=hvd.Sum)
        return jnp.sum(reduced["a"] * weights((2, 3))) + jnp.sum(reduced["b"] * weights((4,)))

    got = WAYS[way](jax.grad(loss))(tree)
    same(got["a"], hvd.size() * total((2, 3)))
    same(got["b"], hvd.size() * total((4,)))
    same(got["c"], np.zeros(1, np.float32))


@ways
@pytest.mark.shows("gradient of allgather", "jax", "eager", "compiled")
def test_allgather(way):
    size, rank = hvd.size(), hvd.rank()
    x = jnp.asarray(values((2, 3)))
    same(gradient(way, hvd.allgather, x, (2 * size, 3)), average((2 * size, 3))[2 * rank : 2 * rank + 2])
    rows = [r + 1 for r in range(size)]
    begin = sum(rows[:rank])
    x = jnp.asarray(values((rank + 1, 3)))
    got = gradient(way, lambda x: hvd.allgather(x, rows=rows), x, (sum(rows), 3))
    same(got, average((sum(rows), 3))[begin : begin + rank + 1])


@ways
@pytest.mark.shows("gradient of broadcast", "jax", "eager", "compiled")
def test_broadcast(way):
    x = jnp.asarray(values((2, 3)))
    got = gradient(way, lambda x: hvd.broadcast(x, 1), x, (2, 3))
    same(got, average((2, 3)) if hvd.rank() == 1 else np.zeros((2, 3), np.float32))


@ways
@pytest.mark.shows("gradient of alltoall", "jax", "eager", "compiled")
def test_alltoall(way):
    size, rank = hvd.size(), hvd.rank()
    x = jnp.asarray(values((2 * size, 3)))
    parts = [weights((2 * size, 3), r)[2 * rank : 2 * rank + 2] for r in range(size)]
    same(gradient(way, hvd.alltoall, x, (2 * size, 3)), np.concatenate(parts))
    # Rank r sends r + 1 rows to each rank, and gets their gradients back from where they went.
    rows = [r + 1 for r in range(size)]
    x = jnp.asarray(values((size * (rank + 1), 3)))
    got = gradient(
        way, lambda x: hvd.alltoall(x, [rank + 1] * size, received_splits=rows)[0], x, (sum(rows), 3)
    )
    begin = sum(rows[:rank])
    same(got, np.concatenate([weights((sum(rows), 3), r)[begin : begin + rank + 1] for r in range(size)]))


@ways
@pytest.mark.shows("gradient of reducescatter", "jax", "eager", "compiled")
def test_reducescatter(way):
    size, rank = hvd.size(), hvd.rank()
    rows = 2 * size + 1
    mine = [2 + (r < 1) for r in range(size)]
    x = jnp.asarray(values((rows, 3)))
    whole = np.concatenate([weights((mine[r], 3), r) for r in range(size)])
    got = gradient(way, lambda x: hvd.reducescatter(x, op=hvd.Sum), x, (mine[rank], 3))
    same(got, whole)
    same(gradient(way, hvd.reducescatter, x, (mine[rank], 3)), whole * np.float32(1 / size))


@ways
def test_tangents(way):
    """They go the way of the arrays: these are linear."""
    size, rank = hvd.size(), hvd.rank()
    x, t = jnp.asarray(values((size, 2))), jnp.asarray(3 * values((size, 2)))
    of = [3 * values((size, 2), rank=r) for r in range(size)]
    wanted = {
        lambda x: hvd.allreduce(x, op=hvd.Sum): 3 * total((size, 2)),
        lambda x: hvd.grouped_allreduce([x], op=hvd.Sum)[0]: 3 * total((size, 2)),
        hvd.allgather: np.concatenate(of),
        lambda x: hvd.broadcast(x, 1): of[1],
        hvd.alltoall: np.concatenate([o[rank : rank + 1] for o in of]),
        lambda x: hvd.reducescatter(x, op=hvd.Sum): 3 * total((size, 2))[rank : rank + 1],
    }
    for operation, tangent in wanted.items():
        value, got = WAYS[way](lambda x, t, f=operation: jax.jvp(f, (x,), (t,)))(x, t)
        same(got, tangent)
        same(value, tangent / 3)


@ways
def test_second_derivatives(way):
    """Of a sum over the ranks of x^3, each rank's own: 6x, reduced twice."""
    x = jnp.asarray(values((3,)))
    f = lambda x: jnp.sum(hvd.allreduce(x**3, op=hvd.Sum))  # noqa: E731
    got = WAYS[way](jax.grad(lambda x: jnp.sum(jax.grad(f)(x))))(x)
    same(got, 6 * values((3,)) * hvd.size())


@ways
def test_remat_scan_and_custom_rules(way):
    """Where JAX runs a part again, or leaves the derivative to the user, all ranks do so alike."""
    x = jnp.asarray(values((3,)))

    @jax.custom_vjp
    def doubled(x):
        return 2 * hvd.allreduce(x, op=hvd.Sum)

    doubled.defvjp(lambda x: (doubled(x), None), lambda _, g: (hvd.allreduce(g, op=hvd.Sum),))
    same(gradient(way, doubled, x, (3,)), hvd.size() * total((3,)))

    def loops(x):
        body = lambda x, _: (hvd.allreduce(x * 2), None)  # noqa: E731
        return jax.lax.scan(body, x, None, length=3)[0]

    same(gradient(way, loops, x, (3,)), 8 * average((3,)))
    again = jax.checkpoint(lambda x: hvd.allreduce(x, op=hvd.Sum) * 2)
    same(gradient(way, again, x, (3,)), 2 * hvd.size() * total((3,)))


@ways
def test_no_gradient_flows_through_a_selection(way):
    x = jnp.asarray(values((3,)))
    for op in (hvd.Min, hvd.Max, hvd.Product):
        with pytest.raises(hvd.UsageError, match=f"no gradient flows through {op.name}"):
            gradient(way, lambda x, op=op: hvd.allreduce(x, op=op), x, (3,))
    stopped = gradient(way, lambda x: x + hvd.allreduce(jax.lax.stop_gradient(x), op=hvd.Max), x, (3,))
    same(stopped, weights((3,)))
