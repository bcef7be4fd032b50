"""All-gather and reduce-scatter of many arrays in one call: the same as one by one, and all of them or none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from frameworks.jax.helpers import WAYS, raises, same, total, values

import ringdp.jax as hvd

ways = pytest.mark.parametrize("way", WAYS)


def gathered(shape, dtype="float32"):
    return np.concatenate([values(shape, dtype, rank) for rank in range(hvd.size())])


def own(shape, dtype="float32"):
    """This rank's rows of the sum."""
    counts = [shape[0] // hvd.size() + (rank < shape[0] % hvd.size()) for rank in range(hvd.size())]
    begin = sum(counts[: hvd.rank()])
    return total(shape, dtype)[begin : begin + counts[hvd.rank()]]


def tree():
    return {
        "kernel": jnp.asarray(values((4, 3))),
        "nested": [jnp.asarray(values((7,), "int32")), None, jnp.asarray(values((5, 2), "bfloat16"))],
        "empty": jnp.zeros((0, 5)),
        "large": jnp.asarray(values((700, 50))),
    }


@ways
@pytest.mark.shows("grouped_allgather", "jax", "eager", "compiled")
def test_allgather(way):
    given = tree()
    got = WAYS[way](hvd.grouped_allgather)(given)
    assert jax.tree_util.tree_structure(got) == jax.tree_util.tree_structure(given)
    same(got["kernel"], gathered((4, 3)))
    same(got["nested"][0], gathered((7,), "int32"))
    same(got["nested"][2], gathered((5, 2), "bfloat16"))
    same(got["empty"], np.zeros((0, 5), np.float32))
    same(got["large"], gathered((700, 50)))
    same(given["kernel"], values((4, 3)))
    (alone,) = WAYS[way](lambda x: hvd.grouped_allgather([x], name="alone"))(given["kernel"])
    same(alone, gathered((4, 3)))
    assert WAYS[way](lambda: hvd.grouped_allgather([]))() == []


@ways
def test_uneven_rows(way):
    size, rank = hvd.size(), hvd.rank()
    rows = [[r + 1 for r in range(size)], None, [2 * r for r in range(size)]]
    given = [jnp.asarray(values(shape)) for shape in ((rank + 1, 2), (3,), (2 * rank, 4))]
    ragged, even, more = WAYS[way](lambda x: hvd.grouped_allgather(x, rows=rows))(given)
    same(ragged, np.concatenate([values((r + 1, 2), rank=r) for r in range(size)]))
    same(even, gathered((3,)))
    same(more, np.concatenate([values((2 * r, 4), rank=r) for r in range(size)]))
    if way == "eager":
        same(hvd.grouped_allgather(given)[0], ragged)


@ways
@pytest.mark.shows("grouped_reducescatter", "jax", "eager", "compiled")
def test_reducescatter(way):
    given = tree()
    got = WAYS[way](lambda tree: hvd.grouped_reducescatter(tree, op=hvd.Sum))(given)
    assert jax.tree_util.tree_structure(got) == jax.tree_util.tree_structure(given)
    same(got["kernel"], own((4, 3)))
    same(got["nested"][0], own((7,), "int32"))
    same(got["nested"][2], own((5, 2), "bfloat16"))
    same(got["empty"], np.zeros((0, 5), np.float32))
    same(got["large"], own((700, 50)))
    same(given["kernel"], values((4, 3)))
    scaled = lambda x: hvd.grouped_reducescatter(x, prescale_factor=2, name="scaled")  # noqa: E731
    same(WAYS[way](scaled)([given["kernel"] * hvd.size()])[0], 2 * own((4, 3)))
    narrow = lambda x: hvd.grouped_reducescatter(x, compression=hvd.Compression.bf16, op=hvd.Max)  # noqa: E731
    highest = values((hvd.size(), 2), rank=hvd.size() - 1)[hvd.rank() : hvd.rank() + 1]
    same(WAYS[way](narrow)([jnp.asarray(values((hvd.size(), 2)))])[0], highest)
    assert WAYS[way](lambda: hvd.grouped_reducescatter({}))() == {}


@ways
def test_gradients(way):
    """One of the arrays has none."""
    size, rank = hvd.size(), hvd.rank()
    x, y, z = (jnp.asarray(values(shape)) for shape in ((2, 3), (rank + 1, 2), (size + 1, 2)))
    rows = [None, [r + 1 for r in range(size)], None]
    begin, of_all = sum(rows[1][:rank]), sum(rows[1])

    def of_gather(arrays):
        a, b, _ = hvd.grouped_allgather(arrays, rows=rows)
        return jnp.sum(a * values(a.shape) * size) + jnp.sum(b * values(b.shape) * size)

    a, b, c = WAYS[way](jax.grad(of_gather))([x, y, z])
    same(a, total((2 * size, 3))[2 * rank : 2 * rank + 2])
    same(b, total((of_all, 2))[begin : begin + rank + 1])
    same(c, np.zeros((size + 1, 2), np.float32))

    def of_scatter(arrays):
        a, b = hvd.grouped_reducescatter(arrays, op=hvd.Sum)
        return jnp.sum(a) + jnp.sum(b * values(b.shape))

    a, b = WAYS[way](jax.grad(of_scatter))([x, z])
    counts = [1 + (r == 0) for r in range(size)]
    same(a, np.ones((2, 3), np.float32))
    same(b, np.concatenate([values((counts[r], 2), rank=r) for r in range(size)]))
    with pytest.raises(hvd.UsageError, match="no gradient flows through Max"):
        WAYS[way](jax.grad(lambda x: jnp.sum(hvd.grouped_reducescatter([x], op=hvd.Max)[0])))(x)


@ways
def test_tangents_and_vmap(way):
    run, x, t = WAYS[way], jnp.asarray(values((3, 2))), jnp.asarray(3 * values((3, 2)))
    both = lambda x: (hvd.grouped_allgather([x]), hvd.grouped_reducescatter([x, x], op=hvd.Sum)[1])  # noqa: E731
    ([value], part), ([moved], of_part) = run(lambda x, t: jax.jvp(both, (x,), (t,)))(x, t)
    same(value, gathered((3, 2)))
    same(moved, 3 * gathered((3, 2)))
    same(of_part, 3 * part)
    many = jnp.asarray(values((5, 3, 2)))  # over its first axis, beside one that is not mapped
    a, b = run(jax.vmap(lambda x, y: hvd.grouped_allgather([x, y]), in_axes=(0, None)))(many, x)
    same(a, np.concatenate([values((5, 3, 2), rank=r) for r in range(hvd.size())], axis=1))
    same(b, np.stack([gathered((3, 2))] * 5))


def works():
    for call in (hvd.grouped_allgather, jax.jit(hvd.grouped_allgather)):
        a, b = call([jnp.asarray(values((2,))), jnp.asarray(values((3, 2)))])
        same(a, gathered((2,)))
        same(b, gathered((3, 2)))


@ways
def test_a_leaf_differs(way):
    """The text names it, and what comes next meets the next of the others."""
    rank, both = hvd.rank(), (hvd.grouped_allgather, hvd.grouped_reducescatter)
    for call in both:
        given = {"a": jnp.ones(4), "kernel": jnp.ones((2, 3 + rank)), "z": jnp.ones(2)}
        text = raises(hvd.MismatchError, way, call, given)
        what = "allgather of float32[any" if call is hvd.grouped_allgather else "reducescatter of float32[2"
        assert all(f"rank {r}: ['kernel']: {what}, {3 + r}]" in text for r in range(hvd.size()))
        works()
        given = {"a": jnp.ones(3), **({"b": jnp.ones(3, jnp.int32)} if rank == 0 else {})}
        text = raises(hvd.MismatchError, way, call, given)
        assert "rank 0: ['b']: " in text and "int32[" in text
        works()
    text = raises(hvd.MismatchError, way, lambda x: both[rank > 0]([x, x]), jnp.ones(3))
    assert "allgather of float32[any]" in text and "reducescatter of float32[3]" in text
    text = raises(
        hvd.MismatchError, way, lambda x: both[1]([x], op=hvd.Sum if rank else hvd.Max), jnp.ones(3)
    )
    assert "op Sum" in text and "op Max" in text
    works()


def test_rows_that_were_not_compiled_for():
    text = raises(
        hvd.MismatchError, "compiled", hvd.grouped_allgather, [jnp.ones(2), jnp.ones(2 + hvd.rank())]
    )
    came = ", ".join(str(2 + r) for r in range(hvd.size()))
    assert f"rows {came} have come from the ranks" in text
    works()


@ways
def test_usage(way):
    run = WAYS[way]
    for call in (hvd.grouped_allgather, hvd.grouped_reducescatter):
        with pytest.raises(hvd.UsageError, match="at least one dimension"):
            run(lambda x, call=call: call([x, jnp.float32(1)]))(jnp.ones(2))
        with pytest.raises(TypeError, match="uint32"):
            run(lambda x, call=call: call([x]))(jnp.ones(2, jnp.uint32))
    with pytest.raises(hvd.UsageError, match="rows has 1 entries for 2 arrays"):
        run(lambda x: hvd.grouped_allgather([x, x], rows=[[1]]))(jnp.ones(2))
    with pytest.raises(hvd.UsageError, match="compression must have"):
        run(lambda x: hvd.grouped_reducescatter([x], compression=3))(jnp.ones(2))
    works()
