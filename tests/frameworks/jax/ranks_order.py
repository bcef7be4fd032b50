"""Collectives in compiled programs run in one order on all ranks, whatever XLA makes of the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from frameworks.jax.helpers import same, total, values

import ringdp.jax as hvd

MANY = 60


def work(x, n):
    """Takes a while, and is not simplified."""
    return jax.lax.fori_loop(0, n, lambda _, x: jnp.tanh(x @ x.T @ x) * 0 + x, x)


def test_many_that_do_not_depend_on_each_other():
    """Before each a piece of work of another length, on each rank: what is ready first differs."""
    xs = [jnp.asarray(values((40, 40)) + i) for i in range(MANY)]
    rank = hvd.rank()

    @jax.jit
    def program(xs, lengths):
        return [hvd.allreduce(work(x, n), op=hvd.Sum) for x, n in zip(xs, lengths, strict=True)]

    lengths = [(i * 7 + rank * 13) % 11 for i in range(MANY)]
    for _ in range(3):
        for i, got in enumerate(program(xs, lengths)):
            same(got, total((40, 40)) + np.float32(i * hvd.size()))


def test_programs_that_differ_between_ranks():
    """Each rank's has other work around the same collectives, in an order in which nothing is ready so early."""
    rank = hvd.rank()
    xs = [jnp.asarray(values((50, 50)) + i) for i in range(12)]

    @jax.jit
    def program(xs):
        out = []
        for i, x in enumerate(xs):
            before = work(x, 5 * ((i + rank) % 3)) if (i + rank) % 2 else x
            out.append(hvd.allreduce(before, op=hvd.Sum) + (rank if i == rank else 0))
        return out[::-1] if rank else out

    for i, got in enumerate(program(xs)[:: -1 if rank else 1]):
        same(got, total((50, 50)) + np.float32(i * hvd.size() + (rank if i == rank else 0)))


def test_a_function_that_is_called_twice():
    """JAX traces it once: both calls are the same piece of the program, in their order."""
    inner = jax.jit(lambda x: hvd.allreduce(x, op=hvd.Sum))
    x, y = jnp.asarray(values((30, 30))), jnp.asarray(values((30, 30)) + 1)

    @jax.jit
    def program(x, y):
        first = work(x, 20) if hvd.rank() == 0 else x
        second = work(y, 20) if hvd.rank() == 1 else y
        return inner(first), inner(second)

    for _ in range(10):
        a, b = program(x, y)
        same(a, total((30, 30)))
        same(b, total((30, 30)) + np.float32(hvd.size()))


@pytest.mark.parametrize("jitted", [True, False])
def test_loops_and_branches(jitted):
    x = jnp.asarray(values((5,)))

    def program(x, n):
        def body(carry, i):
            shared = hvd.allreduce(carry + i, op=hvd.Sum)
            return jax.lax.cond(i % 2 == 0, lambda s: hvd.allreduce(s), lambda s: s, shared), shared[0]

        y, firsts = jax.lax.scan(body, x, jnp.arange(3.0))
        z = jax.lax.while_loop(
            lambda c: c[0] < n, lambda c: (c[0] + 1, hvd.allreduce(c[1], op=hvd.Max)), (0, y)
        )
        return z[1], firsts

    got, firsts = (jax.jit(program) if jitted else program)(x, 2)
    size = hvd.size()
    wanted = total((5,))
    ones = [wanted[0]]
    for i in (1, 2):
        wanted = (wanted + i) * size
        ones.append(wanted[0])
    same(got, wanted)
    same(firsts, np.array(ones, np.float32))


def test_several_programs_in_flight():
    """Nobody waits between them; outside of jit, others meet meanwhile."""
    x = jnp.asarray(values((200, 200)))
    f = jax.jit(lambda x: hvd.allreduce(work(x, 5), op=hvd.Sum))
    g = jax.jit(lambda x: hvd.allgather(work(x, 3)))
    results = []
    for i in range(5):
        results.append((f(x + i), g(x + i)))
        same(hvd.allreduce(float(i), op=hvd.Sum), np.float32(i * hvd.size()))
    for i, (sums, everything) in enumerate(results):
        same(sums, total((200, 200)) + np.float32(i * hvd.size()))
        same(
            everything,
            np.concatenate([values((200, 200), rank=r) + np.float32(i) for r in range(hvd.size())]),
        )


def test_vmap_of_a_branch():
    """Which of the branches is taken differs: vmap runs both of them on all ranks."""
    x = jnp.asarray(values((2, 3)))

    def f(p, x):
        return jax.lax.cond(p, lambda x: hvd.allreduce(x, op=hvd.Sum), lambda x: x, x)

    for g in (jax.vmap(f), jax.jit(jax.vmap(f))):
        got = g(jnp.asarray([hvd.rank() == 0, hvd.rank() == 1]), x)
        wanted = values((2, 3))
        if hvd.rank() < 2:
            wanted[hvd.rank()] = total((2, 3))[hvd.rank()]
        same(got, wanted)
