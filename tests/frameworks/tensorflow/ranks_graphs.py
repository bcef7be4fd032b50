"""No order in which TensorFlow runs nodes makes ranks wait for each other, and none changes what meets what."""

import threading

import tensorflow as tf
from frameworks.tensorflow.inputs import same

import ringdp.tensorflow as hvd


def weight(i):
    """Distinct for each operation: one that meets another is seen."""
    return tf.constant(float(3**i % 1009))


def summed(i):
    """What `hvd.allreduce(weight(i) * (rank + 1), op=Sum)` gives."""
    return weight(i) * float(sum(range(1, hvd.size() + 1)))


def one(i):
    return hvd.allreduce(weight(i) * tf.cast(hvd.rank_op() + 1, tf.float32), op=hvd.Sum)


def test_many_that_do_not_depend_on_one_another():
    @tf.function
    def step():
        return [one(i) for i in range(30)]

    for _ in range(3):
        assert all(same(got, summed(i)) for i, got in enumerate(step()))


def test_results_that_nobody_uses_and_other_orders_of_use():
    @tf.function
    def step():
        for i in range(5):
            one(i)  # still exchanged: the other ranks wait for it
        first, second = one(5), one(6)
        return (second, first) if hvd.rank() else (first, second)

    got = step()
    assert same(got[hvd.rank() > 0], summed(5)) and same(got[hvd.rank() == 0], summed(6))


def test_conditionals_that_read_variables():
    """TensorFlow itself lets such run in any order: they are no nodes with side effects to it."""
    variables = [tf.Variable(float(i)) for i in range(6)]

    @tf.function
    def step(yes):
        got = [tf.cond(yes, lambda i=i: one(i) + variables[i], lambda: 0.0) for i in range(6)]
        middle = one(7)
        nested = tf.cond(
            yes,
            lambda: tf.cond(variables[1] > 0, lambda: one(8), lambda: one(9)),
            lambda: variables[0] + one(9),
        )
        return [*got, middle, nested]

    for _ in range(5):
        *got, middle, nested = step(tf.constant(True))
        assert all(same(g, summed(i) + float(i)) for i, g in enumerate(got))
        assert same(middle, summed(7)) and same(nested, summed(8))
    assert same(step(tf.constant(False))[-1], summed(9))


def test_loops():
    @tf.function
    def step(count):
        total = tf.constant(0.0)
        for i in tf.range(count):
            tf.autograph.experimental.set_loop_options(parallel_iterations=10)
            # Nothing of one pass is needed by the next.
            total += hvd.allreduce(tf.cast(i + 1, tf.float32), op=hvd.Sum) * tf.cast(10**i, tf.float32) + one(
                1
            )
        mapped = tf.map_fn(
            lambda x: hvd.allreduce(x * 2.0, op=hvd.Sum), tf.range(1.0, 5.0), parallel_iterations=4
        )
        return total, mapped

    size = hvd.size()
    total, mapped = step(tf.constant(4))
    assert same(total, tf.constant(4321.0 * size) + 4 * summed(1))
    assert same(mapped, tf.range(1.0, 5.0) * 2 * size)


def test_a_rank_that_traces_again_and_has_traced_other_functions():
    @tf.function
    def inner(x):
        return hvd.allreduce(x, op=hvd.Sum, prescale_factor=2.0)

    @tf.function
    def step(x, training=True):
        return hvd.allreduce(x, op=hvd.Sum) + inner(x) + (one(1) if training else 0.0)

    @tf.function
    def of_one_rank(x):
        return x * 2

    size = hvd.size()
    wanted = tf.constant([3.0 * size]) + summed(1)
    assert same(step(tf.ones([1])), wanted)
    for extra in range(3):
        if hvd.rank() == 0:
            of_one_rank(tf.ones([extra + 2]))
            fresh = tf.function(step.python_function)  # traces on this rank alone
            assert same(fresh(tf.ones([1])), wanted)
        else:
            assert same(step(tf.ones([1])), wanted)
    assert inner.experimental_get_tracing_count() == 1


def test_a_data_set_that_exchanges_beside_the_training_step():
    """Its threads run ahead of the step by what it prefetches, on each rank as far as they come."""
    size = hvd.size()

    def largest(x):
        return hvd.allreduce(x + hvd.rank_op(), op=hvd.Max)

    data = tf.data.Dataset.range(30, output_type=tf.int32).map(largest).prefetch(4)

    @tf.function
    def step(x):
        return hvd.allreduce(tf.cast(x, tf.float32), op=hvd.Sum)

    got = [float(step(x)) for x in data]
    assert got == [float((i + size - 1) * size) for i in range(30)]


def test_threads_with_functions_of_their_own():
    """They meet by the functions' names, in whatever order the threads come to run."""

    def make(number):
        def function(x):
            return hvd.allreduce(x * float(number), op=hvd.Sum)

        function.__name__ = f"of_thread_{'abc'[number - 1]}"
        return tf.function(function)

    functions = {number: make(number) for number in (1, 2)}
    found = {}

    def work(number):
        found[number] = [functions[number](tf.constant([float(i)])).numpy().tolist() for i in range(10)]

    order = (1, 2) if hvd.rank() else (2, 1)
    threads = [threading.Thread(target=work, args=(number,)) for number in order]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: [[float(i * n * hvd.size())] for i in range(10)] for n in (1, 2)}
