"""The collective operations on TensorFlow's tensors, eagerly and in tf.function: dtypes, refusals. Exact inputs."""

import numpy as np
import pytest
import tensorflow as tf
from frameworks.tensorflow.inputs import NUMBERS, same, total, values

import ringdp
import ringdp.tensorflow as hvd


@pytest.mark.shows(["allreduce", "every dtype", "bfloat16", "no elements"], "tensorflow", "eager", "compiled")
def test_sums_of_every_dtype(way):
    shapes = [(), (0,), (1,), (7, 3), (2, 0, 3)]

    def sums(*tensors):
        return [hvd.allreduce(tensor, op=hvd.Sum) for tensor in tensors]

    for dtype in NUMBERS:
        given = [values(shape, dtype) for shape in shapes]
        before = [tensor.numpy().copy() for tensor in given]
        for got, shape in zip(way(sums, *given), shapes, strict=True):
            assert same(got, total(shape, dtype)), (dtype, shape)
        assert all((t.numpy() == b).all() for t, b in zip(given, before, strict=True))


def test_floats_of_8_bits(way):
    for name in ("float8_e4m3fn", "float8_e5m2"):
        dtype = getattr(tf.dtypes.experimental, name)
        x = tf.cast(tf.constant([1.0, 0.5, -2.0]), dtype)
        got = way(lambda t: hvd.allreduce(t, op=hvd.Max), x)
        assert same(got, x)
        got = way(lambda t: hvd.allgather(t), x)
        assert same(got, tf.constant(np.concatenate([x.numpy()] * hvd.size())))


def test_other_reductions(way):
    size = hvd.size()
    x = values((4,))

    def all_of_them(t):
        two = tf.fill([3], tf.constant(2, tf.int16))
        flags = tf.stack([tf.equal(hvd.rank(), 0), True, False])
        return [
            hvd.allreduce(t * size),
            hvd.allreduce(t, average=False),
            hvd.allreduce(t, op=hvd.Max),
            hvd.allreduce(t, op=hvd.Min),
            hvd.allreduce(two, op=hvd.Product),
            hvd.allreduce(t, op=hvd.Sum, prescale_factor=2.0, postscale_factor=0.5),
            hvd.allreduce(flags, op=hvd.Max),
            hvd.allreduce(flags, op=hvd.Min),
            hvd.allreduce(
                tf.ones([3]), op=hvd.Adasum if size == 2 else hvd.Average
            ),  # which needs a power of two
        ]

    got = way(all_of_them, x)
    wanted = [
        total((4,)),
        total((4,)),
        values((4,), rank=size - 1),
        values((4,), rank=0),
        tf.fill([3], tf.constant(2**size, tf.int16)),
        total((4,)),
        tf.constant([True, True, False]),
        tf.constant([False, True, False]),
    ]
    assert all(same(g, w) for g, w in zip(got, wanted, strict=False))
    assert np.allclose(got[-1], 1.0, rtol=1e-6)  # Adasum of equal tensors is that tensor
    with pytest.raises(ringdp.UsageError, match="give op="):
        hvd.allreduce(x, average=True, op=hvd.Sum)


def test_what_becomes_a_tensor(way):
    size = hvd.size()
    variable = tf.Variable([1.0, 2.0])
    assert same(way(lambda: hvd.allreduce(variable, op=hvd.Sum)), tf.constant([1.0 * size, 2.0 * size]))
    assert same(way(lambda: hvd.allreduce(3, op=hvd.Sum)), tf.constant(3 * size))
    assert same(way(lambda: hvd.allgather(np.ones((1, 2), np.int16))), tf.ones([size, 2], tf.int16))


@pytest.mark.shows(["allgather", "grouped_allgather"], "tensorflow", "eager", "compiled")
def test_allgather(way):
    rank, size = hvd.rank(), hvd.size()
    for dtype in (tf.bool, tf.int64, tf.bfloat16):
        x = tf.cast(values((2, 3)), dtype)[:rank]  # rank 0 has no rows
        wanted = tf.concat([tf.cast(values((2, 3), rank=r), dtype)[:r] for r in range(size)], 0)
        assert same(way(hvd.allgather, x), wanted)
        rows = tf.fill([rank + 1], tf.cast(rank % 2, dtype))
        all_rows = tf.concat([tf.fill([r + 1], tf.cast(r % 2, dtype)) for r in range(size)], 0)
        got = way(lambda a, b: hvd.grouped_allgather([a, b], name="both"), x, rows)
        assert same(got[0], wanted) and same(got[1], all_rows)


@pytest.mark.shows("broadcast", "tensorflow", "eager", "compiled")
def test_broadcast(way):
    for dtype in NUMBERS:
        got = way(lambda t: hvd.broadcast(t, hvd.size() - 1), values((3, 2), dtype))
        assert same(got, values((3, 2), dtype, hvd.size() - 1))


@pytest.mark.shows("alltoall", "tensorflow", "eager", "compiled")
def test_alltoall(way):
    rank, size = hvd.rank(), hvd.size()
    even = tf.range(2 * size) + 100 * rank
    assert same(
        way(hvd.alltoall, even),
        tf.concat([tf.range(2 * rank, 2 * rank + 2) + 100 * r for r in range(size)], 0),
    )
    splits = [(rank + to) % 3 for to in range(size)]  # some are zero
    x = tf.cast(tf.repeat(tf.range(size), splits)[:, None] + 10 * rank, tf.float32)
    rows = [(r + rank) % 3 for r in range(size)]
    wanted = tf.concat([tf.fill([n, 1], float(rank + 10 * r)) for r, n in enumerate(rows)], 0)
    for given in (splits, tf.constant(splits, tf.int64)):
        got, received = way(lambda t, s: hvd.alltoall(t, s), x, given)
        assert same(got, wanted) and same(received, tf.constant(rows, tf.int32))


@pytest.mark.shows(["reducescatter", "grouped_reducescatter"], "tensorflow", "eager", "compiled")
def test_reducescatter(way):
    rank, size = hvd.rank(), hvd.size()
    rows = size + 1  # the first rank gets one more
    first = rank + min(rank, 1)
    mine = slice(first, first + (2 if rank == 0 else 1))
    got = way(lambda t: hvd.reducescatter(t, op=hvd.Sum), values((rows, 2)))
    assert same(got, total((rows, 2))[mine])
    a, b = way(
        lambda t: hvd.grouped_reducescatter([t, tf.cast(t, tf.float64) * size], op=hvd.Average),
        values((rows,)) * size,
    )
    assert same(a, total((rows,))[mine]) and same(b, (total((rows,), tf.float64) * size)[mine])


@pytest.mark.shows("grouped_allreduce", "tensorflow", "eager", "compiled")
def test_grouped_allreduce(way):
    slices = tf.IndexedSlices(values((1, 2)), tf.constant([hvd.rank()]), tf.constant([9, 2]))

    def group(a, b):
        return hvd.grouped_allreduce([a, slices, b], op=hvd.Sum, name="group")

    a, got, b = way(group, values((3,)), values((2, 2), tf.int32))
    assert same(a, total((3,))) and same(b, total((2, 2), tf.int32))
    assert same(got.indices, tf.range(hvd.size()))
    assert hvd.grouped_allreduce([]) == [] and hvd.grouped_allgather([]) == []


@pytest.mark.shows("sparse_allreduce", "tensorflow", "eager", "compiled")
def test_slices(way):
    rank, size = hvd.rank(), hvd.size()
    for dtype in (tf.float32, tf.bfloat16, tf.int32):
        # Rank r has r + 1 slices; row 1 is among those of all.
        def one(r, dtype=dtype):
            return tf.cast(tf.ones([r + 1, 2]) * (r + 1) * size, dtype), tf.range(1, r + 2, dtype=tf.int64)

        def reduce(values, indices, op):
            got = hvd.allreduce(tf.IndexedSlices(values, indices, [5, 2]), op=op)
            return got.values, got.indices, tf.convert_to_tensor(got.dense_shape)

        for op, factor in ((hvd.Sum, size), (hvd.Average, 1)):
            got, indices, shape = way(lambda v, i, op=op: reduce(v, i, op), *one(rank))
            assert same(indices, tf.concat([one(r)[1] for r in range(size)], 0))
            wanted = tf.concat(
                [tf.cast(tf.ones([r + 1, 2]) * (r + 1) * factor, dtype) for r in range(size)], 0
            )
            assert same(got, wanted) and shape.numpy().tolist() == [5, 2]
    slices = tf.IndexedSlices(tf.ones([1, 2]), tf.constant([0]), tf.constant([5, 2]))
    with pytest.raises(ringdp.UsageError, match="op=Max needs dense tensors"):
        hvd.allreduce(slices, op=hvd.Max)


@pytest.mark.shows("compression", "tensorflow", "eager", "compiled")
def test_compression(way):
    size = hvd.size()
    x = tf.constant([1.0 + 2**-9, 3.0, 1e-30], tf.float32)
    for compression, narrow in ((hvd.Compression.fp16, tf.float16), (hvd.Compression.bf16, tf.bfloat16)):
        got = way(lambda t, c=compression: hvd.allreduce(t, op=hvd.Sum, compression=c), x)
        assert same(got, tf.cast(tf.cast(tf.cast(x, narrow), tf.float32) * size, tf.float32)) or same(
            got, tf.cast(tf.cast(tf.cast(tf.cast(x, narrow), tf.float32) * size, narrow), tf.float32)
        )
        whole = tf.constant([5, 6])
        assert same(
            way(lambda t, c=compression: hvd.allreduce(t, op=hvd.Sum, compression=c), whole), whole * size
        )
    with pytest.raises(ringdp.UsageError, match="compress and decompress"):
        hvd.allreduce(x, compression="fp16")


@pytest.mark.shows("barrier", "tensorflow", "eager", "compiled")
def test_barrier_holds_everybody_back(way):
    import time

    start = hvd.broadcast_object(time.time())  # of the one clock of this host
    if hvd.rank() == hvd.size() - 1:
        time.sleep(0.2)

    def step(x):
        hvd.barrier()
        return x + 1

    way(step, tf.constant(1))
    assert time.time() - start >= 0.2


def test_numbers_as_tensors(way):
    def ask():
        return [
            hvd.size_op(),
            hvd.rank_op(),
            hvd.local_size_op(),
            hvd.local_rank_op(),
            hvd.process_set_included_op(),
        ]

    numbers = [hvd.size(), hvd.rank(), hvd.local_size(), hvd.local_rank(), 1]
    assert [int(n) for n in way(ask)] == numbers
    assert all(n.dtype == tf.int32 and n.shape == () for n in way(ask))


@pytest.mark.shows("process sets", "tensorflow", "eager", "compiled")
def test_process_sets(way):
    last = hvd.add_process_set([hvd.size() - 1])
    others = hvd.add_process_set(list(range(hvd.size() - 1)))
    mine = last if last.included() else others
    members = mine.ranks

    def in_mine(x):
        everybody = hvd.allreduce(x, op=hvd.Sum, process_set=mine)
        rows = hvd.allgather(x[None], process_set=mine)
        return (
            everybody,
            rows,
            hvd.broadcast(x, members[0], process_set=mine),
            hvd.size_op(mine.process_set_id),
        )

    total_, rows, first, size = way(in_mine, values((3,)))
    assert same(total_, sum(values((3,), tf.float32, rank) for rank in members))
    assert same(rows, tf.stack([values((3,), rank=rank) for rank in members]))
    assert same(first, values((3,), rank=members[0])) and int(size) == len(members)
    included = way(lambda: [hvd.process_set_included_op(s.process_set_id) for s in (last, others)])
    assert [bool(i) for i in included] == [last.included(), others.included()]
    assert hvd.remove_process_set(last) and hvd.remove_process_set(others)


@pytest.mark.shows("join", "tensorflow", "eager", "compiled")
def test_join(way):
    rank, size = hvd.rank(), hvd.size()

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(x * 6.0)
        return hvd.DistributedGradientTape(tape).gradient(loss, x), hvd.allreduce(x, op=hvd.Sum, name="after")

    for done in range(1 + rank):
        with_data = size - done  # ranks below `done` have joined, and take part with zeros
        gradient, total_ = way(step, tf.ones([2]))
        assert np.allclose(gradient, 6.0 * with_data / size, rtol=1e-6)
        assert same(total_, tf.fill([2], 1.0 * with_data))
    assert hvd.join() == size - 1


# --- what cannot be -------------------------------------------------------------------------------


def failing(way, function, *args):
    """What a call raises: the error itself, or TensorFlow's error in a graph, of which it is found."""
    with pytest.raises((ringdp.RingdpError, tf.errors.OpError)) as caught:
        way(function, *args)
    return hvd.original_error(caught.value)


@pytest.mark.shows("mismatch: an error on every rank", "tensorflow", "eager", "compiled")
def test_mismatches_are_errors_on_every_rank_and_the_job_goes_on(way):
    rank, size = hvd.rank(), hvd.size()
    error = failing(way, lambda t: hvd.allreduce(t, name="shape"), tf.ones([rank + 1]))
    assert isinstance(error, ringdp.MismatchError) and "'shape' differs between ranks" in str(error)
    error = failing(
        way, lambda t: hvd.allgather(t, name="dtype"), tf.zeros([1], tf.int32 if rank else tf.int64)
    )
    assert isinstance(error, ringdp.MismatchError) and "int64[1]" in str(error) and "int32[1]" in str(error)
    error = failing(way, lambda t: hvd.grouped_allreduce([t, t[:rank]], name="group"), tf.ones([3]))
    assert isinstance(error, ringdp.MismatchError) and "tensor 1 of its group" in str(error)
    error = failing(way, lambda t: hvd.broadcast(t, rank, name="root"), tf.ones([2]))
    assert isinstance(error, ringdp.MismatchError)
    assert same(way(lambda t: hvd.allreduce(t, op=hvd.Sum), tf.ones([2])), tf.ones([2]) * size)


@pytest.mark.parametrize("kind", ["allreduce", "allgather", "reducescatter"])
def test_after_unnamed_groups_that_differ_in_number_unnamed_calls_still_meet(way, kind):
    size, last = hvd.size(), hvd.rank() == hvd.size() - 1
    grouped = getattr(hvd, f"grouped_{kind}")
    for times in range(3):
        error = failing(way, lambda t: grouped([t] * (2 + last)), tf.ones([size, 2]))
        assert isinstance(error, ringdp.MismatchError) and f"tensor 2 of its group: {kind}" in str(error)
        x = tf.fill([3], float(times))
        for _ in range(2):
            assert same(way(lambda t: hvd.allreduce(t, op=hvd.Sum), x), x * size)
        a, b = way(lambda t: hvd.grouped_allreduce([t, 2 * t], op=hvd.Sum), x)
        assert same(a, x * size) and same(b, 2 * x * size)
    assert same(way(hvd.allgather, tf.constant([hvd.rank()])), tf.range(size))


def test_wrong_on_this_rank_alone(way):
    error = failing(way, lambda t: hvd.alltoall(t, splits=[5] * hvd.size()), tf.ones([1]))
    assert isinstance(error, ringdp.UsageError)
    assert hvd.original_error(RuntimeError("of somebody else")) is None
    with pytest.raises(TypeError, match="dtype string, which ringdp cannot exchange.*carry strings"):
        way(hvd.allreduce, tf.constant("text"))
    with pytest.raises(TypeError, match="dtype complex64.*tf.math.real"):
        way(hvd.allreduce, tf.constant(1j, tf.complex64))
    with pytest.raises(TypeError, match="dtype uint32.*tf.bitcast"):
        way(hvd.allgather, tf.constant([1], tf.uint32))
    with pytest.raises(TypeError, match="tensor 1 has dtype complex128"):
        way(lambda: hvd.grouped_allreduce([tf.ones(2), tf.constant(1j, tf.complex128)]))
    with pytest.raises(TypeError, match="tf.SparseTensor"):
        way(lambda: hvd.allreduce(tf.sparse.eye(2)))
    with pytest.raises(TypeError, match="tf.IndexedSlices"):
        way(lambda: hvd.allgather(tf.IndexedSlices(tf.ones([1, 2]), tf.constant([0]), tf.constant([5, 2]))))


def test_graphs_of_tensorflow_1_and_xla_are_refused():
    with tf.Graph().as_default(), pytest.raises(ringdp.UsageError, match="not in graphs of tf.compat.v1"):
        hvd.allreduce(tf.constant(1.0))

    @tf.function(jit_compile=True)
    def by_xla(x):
        return hvd.allreduce(x)

    for function in (by_xla, tf.function(by_xla)):
        with pytest.raises(Exception, match="allreduce: XLA cannot compile") as caught:
            function(tf.ones([2]))
        assert isinstance(hvd.original_error(caught.value), ringdp.UsageError)

    @tf.function(jit_compile=True)
    def plain(x):
        return x * 2

    assert same(tf.function(lambda x: hvd.allreduce(plain(x)))(tf.ones([2])), tf.fill([2], 2.0))
