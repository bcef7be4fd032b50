"""Gradients of a `tf.function` by a tape outside of any: TensorFlow keeps no order in the function that gives them.

Each exchange's weight is distinct, so one that meets another is seen. In a gradient the exchanges in functions have the
same names wherever these are called.
"""

import time

import pytest
import tensorflow as tf
from frameworks.tensorflow.inputs import same

import ringdp.tensorflow as hvd
from ringdp.tensorflow import turn

TIMES = 5


def gradient_of(function, x, **options):
    with tf.GradientTape(**options) as tape:
        tape.watch(x)
        loss = function(x)
    return tape.gradient(loss, x)


def weight(i):
    return float((hvd.rank() + 1) * 10**i)


def all_weights(i):
    """All ranks' together, as their gradients are summed."""
    return float(sum(range(1, hvd.size() + 1)) * 10**i)


def weighted(parts):
    """Their sum. On each rank the gradients of other parts are late: what is not held back overtakes them."""

    def wait(grad):
        time.sleep(0.05)
        return grad

    def late(grad):
        return tf.ensure_shape(tf.numpy_function(wait, [grad], grad.dtype), grad.shape)

    def part(x, i):
        back = late if (i + hvd.rank()) % 2 else tf.identity
        return tf.custom_gradient(lambda x: (x * weight(i), lambda grad: back(grad) * weight(i)))(x)

    return sum(part(x, i) for i, x in enumerate(parts))


def summed(x):
    return hvd.allreduce(x, op=hvd.Sum)


@tf.function
def once(x):
    return summed(x)


@tf.function
def twice(x):
    return once(x) + once(x * 3.0)


def test_branches():
    @tf.function
    def function(x):
        branches = [
            tf.cond(x[i] > 0, lambda i=i: summed(once(x[i])), lambda i=i: once(x[i])) for i in range(6)
        ]
        chosen = tf.switch_case(tf.constant(1), [lambda: x[6], lambda: once(x[6])])
        return weighted([*branches, chosen])

    wanted = [all_weights(i) * (hvd.size() if i < 4 else 1) for i in range(7)]
    x = tf.constant([1.0] * 4 + [-1.0] * 2 + [1.0])
    for _ in range(TIMES):
        assert same(gradient_of(function, x), tf.constant(wanted))
    inside = tf.function(lambda x: gradient_of(function, x))
    assert same(inside(x), tf.constant(wanted))


def test_loops():
    @tf.function
    def function(x):
        def repeated(y):
            for _ in tf.range(2):
                y = once(once(y))
            return y

        return weighted([repeated(x[0]), summed(x[1]), repeated(x[2]), repeated(x[3]), once(x[4])])

    wanted = [all_weights(i) * (hvd.size() ** 3 if i in (0, 2, 3) else 1) for i in range(5)]
    for _ in range(TIMES):
        assert same(gradient_of(function, tf.ones([5])), tf.constant(wanted))


@pytest.mark.parametrize("persistent", [False, True])
def test_functions(persistent):
    """Called beside each other, inside one another, and beside exchanges of the function's own."""

    @tf.function
    def function(x):
        return weighted([summed(x[0]), *[(once if i % 2 else twice)(x[i]) for i in range(1, 7)]])

    wanted = [all_weights(i) * (1 if i % 2 or i == 0 else 4) for i in range(7)]
    for _ in range(TIMES):
        assert same(gradient_of(function, tf.ones([7]), persistent=persistent), tf.constant(wanted))


def test_functions_in_gradients_that_a_user_writes():
    """As layers that are split have: nothing is exchanged forward."""

    @tf.custom_gradient
    def copied(x):
        return x, lambda grad: once(grad) + once(grad * 3.0)

    @tf.custom_gradient
    def copied_if(x):
        return x, lambda grad: tf.cond(grad > 0, lambda: once(grad) + once(grad * 3.0), lambda: grad)

    @tf.function
    def function(x):
        return weighted([(copied if i % 2 else copied_if)(x[i]) for i in range(6)])

    for _ in range(TIMES):
        assert same(gradient_of(function, tf.ones([6])), tf.constant([all_weights(i) * 4 for i in range(6)]))


def test_several_calls_under_one_tape():
    with tf.GradientTape() as tape:
        x = tf.ones([3])
        tape.watch(x)
        loss = weighted([twice(x[i]) for i in range(3)])
    assert same(tape.gradient(loss, x), tf.constant([all_weights(i) * 4 for i in range(3)]))


def test_a_tensorflow_that_cannot_be_told_to_keep_order(monkeypatch):
    """Later releases may lack what `turn.py` uses: there such a gradient is an error, and others are as before."""
    monkeypatch.setattr(turn, "_orders_gradients", False)

    @tf.function
    def branch(x):
        return tf.cond(x > 0, lambda: summed(x), lambda: x)

    @tf.function
    def inside(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = summed(x) * weight(0)
        return tape.gradient(loss, x)

    with pytest.raises(
        Exception, match="allreduce.gradient: ringdp cannot keep the order of gradients"
    ) as caught:
        gradient_of(branch, tf.constant(1.0))
    assert isinstance(hvd.original_error(caught.value), hvd.UsageError)
    assert same(inside(tf.constant(1.0)), tf.constant(all_weights(0)))
    assert same(gradient_of(lambda x: summed(x) * weight(0), tf.constant(1.0)), tf.constant(all_weights(0)))
