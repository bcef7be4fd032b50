"""The operations on arrays of JAX: dtypes, shapes, eager, compiled, by vmap and in loops. Exact inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from frameworks.jax.helpers import DTYPES, NUMBERS, WAYS, same, total, values, wide
from memory_flags import flags_at, needs_huge_pages

import ringdp.jax as hvd

SHAPES = [(), (0,), (1,), (7, 3), (2, 0, 3), (300, 200)]
ways = pytest.mark.parametrize("way", WAYS)


@ways
@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.shows(["allreduce", "every dtype", "bfloat16", "no elements"], "jax", "eager", "compiled")
def test_sums(way, dtype):
    with wide(dtype):
        for shape in SHAPES:
            x = jnp.asarray(values(shape, dtype))
            same(WAYS[way](lambda x: hvd.allreduce(x, op=hvd.Sum))(x), total(shape, dtype))
            same(x, values(shape, dtype))


@ways
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.shows(
    ["allgather", "broadcast", "alltoall", "every dtype", "no elements"], "jax", "eager", "compiled"
)
def test_moves(way, dtype):
    """No arithmetic: every dtype, bool and float8 included."""
    size, rank, run = hvd.size(), hvd.rank(), WAYS[way]
    with wide(dtype):
        for rest in [(), (3,), (0,)]:
            x = jnp.asarray(values((2, *rest), dtype))
            same(run(hvd.allgather)(x), np.concatenate([values((2, *rest), dtype, r) for r in range(size)]))
            same(run(lambda x: hvd.broadcast(x, 1))(x), values((2, *rest), dtype, 1))
            x = jnp.asarray(values((2 * size, *rest), dtype))
            parts = [values((2 * size, *rest), dtype, r)[2 * rank : 2 * rank + 2] for r in range(size)]
            same(run(hvd.alltoall)(x), np.concatenate(parts))


@ways
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_floats_of_8_bits(way, dtype):
    size, rank, run = hvd.size(), hvd.rank(), WAYS[way]
    x = jnp.asarray([(i + rank) % 2 for i in range(6)], dtype)
    sums = np.array([sum((i + r) % 2 for r in range(size)) for i in range(6)], np.float32).astype(dtype)
    same(run(lambda x: hvd.allreduce(x, op=hvd.Sum))(x), sums)
    same(run(lambda x: hvd.allreduce(x, op=hvd.Max))(x), np.ones(6, np.float32).astype(dtype))


@ways
def test_other_operations(way):
    size, run = hvd.size(), WAYS[way]
    x = jnp.asarray(values((4,)))
    same(run(lambda x: hvd.allreduce(x * size))(x), total((4,)))  # Average by default
    same(run(lambda x: hvd.allreduce(x, average=False))(x), total((4,)))
    same(run(lambda x: hvd.allreduce(x, op=hvd.Max))(x), values((4,), rank=size - 1))
    same(run(lambda x: hvd.allreduce(x, op=hvd.Min))(x), values((4,), rank=0))
    two = jnp.full((3,), 2, jnp.int16)
    same(run(lambda x: hvd.allreduce(x, op=hvd.Product))(two), np.full(3, 2**size, np.int16))
    halves = run(lambda x: hvd.allreduce(x, op=hvd.Sum, prescale_factor=0.5, postscale_factor=4.0))(x)
    same(halves, 2 * total((4,)))
    flags = jnp.asarray([hvd.rank() == 0, False, True])
    same(run(lambda x: hvd.allreduce(x, op=hvd.Max))(flags), np.array([True, False, True]))
    same(run(lambda x: hvd.allreduce(x, op=hvd.Sum, name="named"))(x), total((4,)))


@ways
@pytest.mark.parametrize("compression", ["fp16", "bf16"])
@pytest.mark.shows("compression", "jax", "eager", "compiled")
def test_compression(way, compression):
    x = jnp.asarray(values((5,)) + 2**-10)  # more digits than 16 bits have
    narrow = {"fp16": np.dtype("float16"), "bf16": jnp.bfloat16}[compression]
    wanted = sum((values((5,), rank=r) + np.float32(2**-10)).astype(narrow) for r in range(hvd.size()))
    how = getattr(hvd.Compression, compression)
    got = WAYS[way](lambda x: hvd.allreduce(x, op=hvd.Sum, compression=how))(x)
    assert got.dtype == np.float32
    if hvd.size() == 2:  # else the order of addition matters
        same(got, wanted.astype(np.float32))
    ints = jnp.asarray(values((5,), "int32"))
    same(WAYS[way](lambda x: hvd.allreduce(x, op=hvd.Sum, compression=how))(ints), total((5,), "int32"))


@ways
@pytest.mark.shows("reducescatter", "jax", "eager", "compiled")
def test_reducescatter(way):
    size, rank = hvd.size(), hvd.rank()
    for rows in (size, 2 * size + 1, 1, 0):
        x = jnp.asarray(values((rows, 3)))
        counts = [rows // size + (r < rows % size) for r in range(size)]
        begin = sum(counts[:rank])
        got = WAYS[way](lambda x: hvd.reducescatter(x, op=hvd.Sum))(x)
        same(got, total((rows, 3))[begin : begin + counts[rank]])


@ways
def test_uneven_rows(way):
    size, rank, run = hvd.size(), hvd.rank(), WAYS[way]
    rows = [r + 1 for r in range(size)]
    known = None if way == "eager" else rows
    x = jnp.asarray(values((rank + 1, 2)))
    wanted = np.concatenate([values((r + 1, 2), rank=r) for r in range(size)])
    same(run(lambda x: hvd.allgather(x, rows=known))(x), wanted)
    same(hvd.allgather(x, rows=rows), wanted)
    # Rank r sends r + 1 rows to each rank.
    x = jnp.asarray(values((size * (rank + 1), 2)))
    parts = [values((size * (r + 1), 2), rank=r)[rank * (r + 1) :][: r + 1] for r in range(size)]
    got, came = run(lambda x: hvd.alltoall(x, [rank + 1] * size, received_splits=known))(x)
    same(got, np.concatenate(parts))
    same(came, np.array(rows, np.int32))


@ways
@pytest.mark.shows(["grouped_allreduce", "pytrees"], "jax", "eager", "compiled")
def test_pytrees(way):
    tree = {
        "kernel": jnp.asarray(values((70, 30))),
        "nested": [jnp.asarray(values((), "int32")), None, jnp.asarray(values((3,), "bfloat16"))],
        "empty": jnp.zeros((0, 5)),
        "more": jnp.asarray(values((33,))),
    }
    got = WAYS[way](lambda tree: hvd.grouped_allreduce(tree, op=hvd.Sum))(tree)
    assert jax.tree_util.tree_structure(got) == jax.tree_util.tree_structure(tree)
    same(got["kernel"], total((70, 30)))
    same(got["nested"][0], total((), "int32"))
    same(got["nested"][2], total((3,), "bfloat16"))
    same(got["empty"], np.zeros((0, 5), np.float32))
    same(got["more"], total((33,)))
    same(tree["kernel"], values((70, 30)))
    assert WAYS[way](lambda: hvd.grouped_allreduce([]))() == []


@ways
@pytest.mark.shows("vmap", "jax", "eager", "compiled")
def test_vmap(way):
    size, rank, run = hvd.size(), hvd.rank(), WAYS[way]
    x = jnp.asarray(values((3, 2 * size, 5)))
    whole = total((3, 2 * size, 5))
    of = [values((3, 2 * size, 5), rank=r) for r in range(size)]
    for axis in (0, 1, 2):
        same(run(jax.vmap(lambda x: hvd.allreduce(x, op=hvd.Sum), in_axes=axis, out_axes=axis))(x), whole)
    pair = run(jax.vmap(lambda x, y: hvd.grouped_allreduce([x, y], op=hvd.Sum), in_axes=(0, None)))
    left, right = pair(x, x[0])
    same(left, whole)
    same(right, np.stack([whole[0]] * 3))
    same(run(jax.vmap(lambda x: hvd.broadcast(x, 1)))(x), of[1])
    same(run(jax.vmap(hvd.allgather))(x), np.concatenate(of, axis=1))
    columns = run(jax.vmap(hvd.allgather, in_axes=2, out_axes=2))(x)
    same(columns, np.concatenate(of, axis=0))
    mine = whole[:, 2 * rank : 2 * rank + 2]
    same(run(jax.vmap(lambda x: hvd.reducescatter(x, op=hvd.Sum)))(x), mine)
    same(run(jax.vmap(hvd.alltoall))(x), np.concatenate([o[:, 2 * rank : 2 * rank + 2] for o in of], axis=1))


@ways
@pytest.mark.shows("barrier", "jax", "eager", "compiled")
def test_barrier(way, tmp_path_factory):
    """No rank leaves before the last one has come."""
    import time

    def late(x):
        if hvd.rank() == 0:
            time.sleep(0.3)
        hvd.barrier()
        return x

    came = time.time() + (0.3 if hvd.rank() == 0 else 0)
    if way == "eager":
        late(1)
    else:
        if hvd.rank() == 0:
            time.sleep(0.3)
        program = jax.jit(lambda x: (hvd.barrier(), hvd.allreduce(x, op=hvd.Sum))[1])
        same(program(jnp.ones(2)), np.full(2, hvd.size(), np.float32))
    left = time.time()
    times = hvd.allgather_object((came, left))
    assert max(c for c, _ in times) <= min(left for _, left in times)


def test_what_else_is_given():
    """Numbers, lists and NumPy arrays, as JAX's own functions take them."""
    same(hvd.allreduce(2.5, op=hvd.Sum), np.float32(2.5 * hvd.size()))
    same(hvd.allreduce([1, 2], op=hvd.Sum), np.array([1, 2], np.int32) * hvd.size())
    same(hvd.allreduce(values((4, 4)).T, op=hvd.Sum), total((4, 4)).T)
    strided = jnp.asarray(values((6, 4)))[::2, 1:3]
    same(hvd.allreduce(strided, op=hvd.Sum), total((6, 4))[::2, 1:3])


def test_results_are_arrays_of_their_own():
    """What is large is not copied again on its way back to JAX, and nothing is shared with the input."""
    x = jnp.asarray(values((1000, 100)))
    y = hvd.allreduce(x, op=hvd.Sum)
    assert isinstance(y, jax.Array) and y.unsafe_buffer_pointer() != x.unsafe_buffer_pointer()
    assert y.sharding == x.sharding and y.committed == x.committed
    there = jax.device_put(x, jax.devices()[0])
    assert hvd.allreduce(there).committed


def test_closed_over():
    """An array that is no argument is exchanged when the program runs, not when it is traced."""
    x = jnp.asarray(values((3,)))
    program = jax.jit(lambda: hvd.allreduce(x, op=hvd.Sum))
    before = program.lower()
    assert "ringdp_allreduce" in before.as_text()
    same(program(), total((3,)))
    same(program(), total((3,)))


@ways
@needs_huge_pages
def test_large_results_are_in_huge_pages(way):
    result = WAYS[way](lambda x: hvd.allreduce(x, op=hvd.Sum))(jnp.zeros(1 << 21, jnp.float32))
    assert "hg" in flags_at(result.unsafe_buffer_pointer() + (2 << 20))
