"""Gradients through the collective operations, eagerly and in tf.function. Exact inputs."""

import pytest
import tensorflow as tf
from frameworks.tensorflow.inputs import same, total, values

import ringdp.tensorflow as hvd


def gradient_of(function, weights):
    """d(sum of weights times what the function gives)/d x, as a function of x."""

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.cast(function(x), weights.dtype) * weights)
        return tape.gradient(loss, x)

    return gradient


@pytest.mark.shows("gradient of allreduce", "tensorflow", "eager", "compiled")
def test_allreduce(way):
    weights = values((2, 3)) * hvd.size()  # what each rank's loss says of the result
    for dtype in (tf.float32, tf.bfloat16, tf.float64):
        x = values((2, 3), dtype)
        got = way(gradient_of(lambda t: hvd.allreduce(t, op=hvd.Sum), weights), x)
        assert same(got, total((2, 3), dtype) * hvd.size())
        assert same(way(gradient_of(hvd.allreduce, weights), x), total((2, 3), dtype))
    scaled = way(
        gradient_of(lambda t: hvd.allreduce(t, op=hvd.Sum, prescale_factor=2, postscale_factor=4), weights),
        values((2, 3)),
    )
    assert same(scaled, total((2, 3)) * hvd.size() * 8)
    narrow = way(
        gradient_of(lambda t: hvd.allreduce(t, compression=hvd.Compression.bf16), weights), values((2, 3))
    )
    assert same(narrow, total((2, 3)))


@pytest.mark.shows("gradient of grouped_allreduce", "tensorflow", "eager", "compiled")
def test_grouped_allreduce(way):
    def gradient(x, y):
        with tf.GradientTape() as tape:
            tape.watch([x, y])
            a, b = hvd.grouped_allreduce([x, y], op=hvd.Sum)
            loss = tf.reduce_sum(a * values((2,))) + tf.reduce_sum(b * values((3,)))
        return tape.gradient(loss, [x, y])

    a, b = way(gradient, tf.ones([2]), tf.ones([3]))
    assert same(a, total((2,))) and same(b, total((3,)))


@pytest.mark.shows("gradient of allgather", "tensorflow", "eager", "compiled")
def test_allgather(way):
    rank, size = hvd.rank(), hvd.size()
    rows = sum(range(size))  # rank r has r rows
    first = sum(range(rank))
    weights = values((rows, 2)) * size
    wanted = total((rows, 2))[first : first + rank]  # their average
    assert same(way(gradient_of(hvd.allgather, weights), tf.ones([rank, 2])), wanted)
    assert same(
        way(gradient_of(lambda t: hvd.grouped_allgather([t, t])[1], weights), tf.ones([rank, 2])), wanted
    )


@pytest.mark.shows("gradient of broadcast", "tensorflow", "eager", "compiled")
def test_broadcast(way):
    root = hvd.size() - 1
    got = way(gradient_of(lambda t: hvd.broadcast(t, root), values((4,)) * hvd.size()), tf.ones([4]))
    assert same(got, total((4,)) if hvd.rank() == root else tf.zeros([4]))


@pytest.mark.shows("gradient of alltoall", "tensorflow", "eager", "compiled")
def test_alltoall(way):
    rank, size = hvd.rank(), hvd.size()
    splits = [(rank + to) % 3 for to in range(size)]
    came = [(r + rank) % 3 for r in range(size)]
    # Each row's weight says who had it, and from whom: the gradient must come back to that.
    weights = tf.constant(
        [[float(10 * rank + r)] for r, n in enumerate(came) for _ in range(n)], shape=(sum(came), 1)
    )
    got = way(gradient_of(lambda t: hvd.alltoall(t, splits)[0], weights), tf.ones([sum(splits), 1]))
    wanted = [[float(10 * to + rank)] for to, n in enumerate(splits) for _ in range(n)]
    assert same(got, tf.constant(wanted, shape=(sum(splits), 1)))
    even = way(gradient_of(hvd.alltoall, tf.range(size, dtype=tf.float32) + 10 * rank), tf.ones([size]))
    assert same(even, tf.constant([float(rank + 10 * to) for to in range(size)]))


@pytest.mark.shows("gradient of reducescatter", "tensorflow", "eager", "compiled")
def test_reducescatter(way):
    rank, size = hvd.rank(), hvd.size()
    mine = 2 if rank == 0 else 1
    weights = tf.fill([mine], float((rank + 1) * size))
    wanted = tf.constant([1.0] + [float(r + 1) for r in range(size)]) * size
    for function in (
        lambda t: hvd.reducescatter(t, op=hvd.Sum),
        lambda t: hvd.grouped_reducescatter([t, t], op=hvd.Sum)[0],
    ):
        assert same(way(gradient_of(function, weights), tf.ones([size + 1])), wanted)
    assert same(way(gradient_of(hvd.reducescatter, weights), tf.ones([size + 1])), wanted / size)


def test_what_has_no_gradient(way):
    with pytest.raises(Exception, match="no gradient flows through Max"):
        way(gradient_of(lambda t: hvd.allreduce(t, op=hvd.Max), tf.ones([2])), tf.ones([2]))

    def second(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = tf.reduce_sum(hvd.allreduce(x * x) ** 2)
            first = inner.gradient(y, x)
        return outer.gradient(first, x)

    with pytest.raises(Exception, match="no second derivatives of allreduce"):
        way(second, tf.ones([2]))
    assert hvd.allreduce(tf.ones([1]), op=hvd.Sum).numpy() == hvd.size()  # and the job goes on


def test_through_a_function_a_branch_and_a_loop():
    """Gradients whose functions TensorFlow makes: their operations meet, too."""
    size = hvd.size()
    scale = tf.Variable(1.0)

    @tf.function
    def inner(x):
        return hvd.allreduce(x, op=hvd.Sum) * scale

    @tf.function
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.cond(tf.reduce_sum(x) > 0, lambda: inner(x), lambda: x)
            for _ in tf.range(3):
                y = hvd.allreduce(y, op=hvd.Sum)
            loss = tf.reduce_sum(y + inner(x))
        return tape.gradient(loss, x)

    wanted = tf.fill([2], float(size**4 + size))
    assert same(gradient(tf.ones([2])), wanted)
    with tf.GradientTape() as tape:  # the gradient of a function that was traced before
        x = tf.ones([2])
        tape.watch(x)
        loss = tf.reduce_sum(inner(x) * 2.0)
    assert same(tape.gradient(loss, x), tf.fill([2], 2.0 * size))


def test_gradients_of_functions_that_are_called_more_than_once():
    """Each call's gradient is a function of the same name, and its operations have the same names: in which order they
    run must be the same on all ranks. Each call's weight is distinct, so one that meets another is seen."""
    rank, size = hvd.rank(), hvd.size()

    @tf.function
    def inner(x):
        return hvd.allreduce(x, op=hvd.Sum)

    def weighted(x):
        direct = sum(tf.reduce_sum(inner(x[i])) * float((rank + 1) * 10**i) for i in range(4))
        branch = tf.cond(x[4] > 0, lambda: inner(x[4]) * 7.0, lambda: x[4])
        return direct + branch + tf.reduce_sum(hvd.allreduce(x[5:], op=hvd.Sum))

    middle = tf.function(weighted)
    ranks = float(sum(range(1, size + 1)))
    wanted = tf.constant([*(ranks * 10**i for i in range(4)), 7.0 * size, float(size)])

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = middle(x)
        return tape.gradient(loss, x)

    function = tf.function(gradient)
    for _ in range(5):
        assert same(function(tf.ones([6])), wanted)


def test_the_gradient_of_a_function_by_a_tape_outside_of_it():
    @tf.function
    def function(x):
        parts = [hvd.allreduce(x[i], op=hvd.Sum) * float((hvd.rank() + 1) * 10**i) for i in range(6)]
        return sum(parts)

    ranks = float(sum(range(1, hvd.size() + 1)))
    for _ in range(5):
        with tf.GradientTape() as tape:
            x = tf.ones([6])
            tape.watch(x)
            loss = function(x)
        assert same(tape.gradient(loss, x), tf.constant([ranks * 10**i for i in range(6)]))
