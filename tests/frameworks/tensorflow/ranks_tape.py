"""`DistributedGradientTape`: exact gradients, and training that equals one process on the joined batch."""

import numpy as np
import pytest
import tensorflow as tf
from frameworks.tensorflow.inputs import same, same_on_all_ranks, values

import ringdp
import ringdp.tensorflow as hvd


def gradients_of(variables, rank=None):
    """What `rank` contributes: exact integers, whose average over the ranks is one too."""
    rank = hvd.rank() if rank is None else rank
    return [
        tf.cast(hvd.size() * (rank + 1) * (np.arange(int(np.prod(v.shape))).reshape(v.shape) + 1), v.dtype)
        for v in variables
    ]


def averages(variables):
    ranks = [gradients_of(variables, rank) for rank in range(hvd.size())]
    return [
        tf.cast(sum(tf.cast(g, tf.float64) for g in of) / hvd.size(), of[0].dtype)
        for of in zip(*ranks, strict=True)
    ]


def taped(variables, targets=None, **options):
    """The gradients by a wrapped tape."""

    def step():
        with tf.GradientTape() as tape:
            loss = sum(
                tf.reduce_sum(tf.cast(v, tf.float64) * tf.cast(g, tf.float64))
                for v, g in zip(variables, gradients_of(variables), strict=True)
            )
        return hvd.DistributedGradientTape(tape, **options).gradient(
            loss, variables if targets is None else targets
        )

    return step


def made(dtypes=(tf.float32, tf.bfloat16)):
    shapes = [(3,), (), (2, 2), (0,), (5, 1)]
    return [tf.Variable(tf.ones(shape, dtype)) for dtype in dtypes for shape in shapes]


@pytest.mark.shows("DistributedGradientTape", "tensorflow", "eager", "compiled")
def test_average_in_the_structure_of_the_sources(way):
    variables = made()
    assert all(same(g, w) for g, w in zip(way(taped(variables)), averages(variables), strict=True))
    a, b = variables[:2]
    got = way(taped(variables, {"one": a, "more": [b]}))
    wanted = averages([a, b])
    assert same(got["one"], wanted[0]) and same(got["more"][0], wanted[1])
    assert same(way(taped(variables, a)), wanted[0])


def test_options(way):
    variables, size = made((tf.float32,)), hvd.size()
    wanted = averages(variables)
    for options, factor in (
        ({"op": hvd.Sum}, size),
        ({"gradient_predivide_factor": 2.0}, 1),
        ({"groups": 2}, 1),
        ({"num_groups": 1, "device_dense": "/gpu:0"}, 1),
        ({"compression": hvd.Compression.bf16}, 1),
        ({"compression": hvd.Compression.fp16, "op": hvd.Sum}, size),
    ):
        got = way(taped(variables, **options))
        assert all(same(g, w * factor) for g, w in zip(got, wanted, strict=True)), options
    largest = way(taped(variables, op=hvd.Max))
    assert all(same(g, w) for g, w in zip(largest, gradients_of(variables, size - 1), strict=True))

    class Halves:
        """A compression of the user's own."""

        @staticmethod
        def compress(tensor):
            return tensor / 2, 2.0

        @staticmethod
        def decompress(tensor, ctx):
            return tensor * ctx

    got = way(taped(variables, compression=Halves))
    assert all(same(g, w) for g, w in zip(got, wanted, strict=True))


def test_what_cannot_be():
    tape = tf.GradientTape()
    with pytest.raises(TypeError, match="must be a tf.GradientTape, not a list"):
        hvd.DistributedGradientTape([])
    with pytest.raises(ringdp.UsageError, match="needs op=Average"):
        hvd.DistributedGradientTape(tape, op=hvd.Sum, gradient_predivide_factor=2.0)
    with pytest.raises(ringdp.UsageError, match="groups must be"):
        hvd.DistributedGradientTape(tape, groups="two")
    with pytest.raises(ringdp.UsageError, match="op must be one of"):
        hvd.DistributedGradientTape(tape, op="mean")
    with pytest.raises(ringdp.UsageError, match="compress and decompress"):
        hvd.DistributedGradientTape(tape, compression="fp16")


def test_a_tape_that_is_yet_to_record_and_a_persistent_one(way):
    variable = tf.Variable([1.0, 2.0])

    def step():
        with hvd.DistributedGradientTape(tf.GradientTape(persistent=True)) as tape:
            loss = tf.reduce_sum(variable * variable) * tf.cast(hvd.rank_op() + 1, tf.float32)
            other = tf.reduce_sum(variable)
        return tape.gradient(loss, variable), tape.gradient(other, [variable])[0]

    first, second = way(step)
    mean = sum(range(1, hvd.size() + 1)) / hvd.size()
    assert same(first, tf.constant([2.0 * mean, 4.0 * mean])) and same(second, tf.ones([2]))


def test_none_stays_none_and_local_sources_stay_here(way):
    a, b, own, table = (
        tf.Variable(tf.ones([2])),
        tf.Variable(1.0),
        tf.Variable(3.0),
        tf.Variable(tf.ones([4, 1])),
    )

    def step(scale):
        with tf.GradientTape() as tape:
            factor = tf.cast(hvd.rank_op() + 1, tf.float32)
            loss = tf.reduce_sum(a) * factor + own * factor + tf.reduce_sum(tf.gather(table, [0, 2])) * factor
        tape = hvd.DistributedGradientTape(tape, op=hvd.Sum, scale_local_gradients=scale)
        tape.register_local_source(own)
        tape.register_local_source(table)
        got = tape.gradient(loss, [a, b, own, table])
        return got[0], got[1] is None, got[2], tf.convert_to_tensor(got[3])

    mine, size = hvd.rank() + 1.0, hvd.size()
    for scale, factor in ((True, 1 / size), (False, 1.0)):
        shared, is_none, local, rows = way(lambda s=scale: step(s))
        assert same(shared, tf.fill([2], float(sum(range(1, size + 1))))) and bool(is_none)
        assert same(local, tf.constant(mine) * tf.constant(factor, tf.float32))
        assert np.allclose(rows[:, 0], [mine * factor, 0, mine * factor, 0])


@pytest.mark.shows("sparse gradients", "tensorflow", "eager", "compiled")
def test_slices(way):
    rank, size = hvd.rank(), hvd.size()
    table = tf.Variable(tf.ones([6, 2]))
    dense = tf.Variable([1.0])
    rows = list(range(rank + 1)) + [
        5
    ]  # another number of slices on each rank; row 0 and row 5 are among all ranks'

    def step(as_dense):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.gather(table, rows)) * float((rank + 1) * size) + dense[0]
        got = hvd.DistributedGradientTape(tape, sparse_as_dense=as_dense).gradient(loss, [table, dense])
        assert isinstance(got[0], tf.IndexedSlices) != as_dense
        return tf.convert_to_tensor(got[0]), got[1]

    wanted = np.zeros((6, 2), np.float32)
    for r in range(size):
        wanted[[*range(r + 1), 5]] += r + 1
    for as_dense in (False, True):
        got, of_dense = way(lambda d=as_dense: step(d))
        assert same(got, wanted) and same(of_dense, tf.ones([1]))


@pytest.mark.shows("mismatch: an error on every rank", "tensorflow", "eager", "compiled")
def test_gradients_that_differ_between_ranks(way):
    a, b = tf.Variable([1.0]), tf.Variable(tf.ones([hvd.rank() + 2]))

    def step(with_b):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(a) + (tf.reduce_sum(b) if with_b else 0.0)
        return hvd.DistributedGradientTape(tape).gradient(loss, [a, b])

    for with_b in (True, hvd.rank() == 0):  # other shapes; a gradient on one rank alone
        with pytest.raises((ringdp.MismatchError, tf.errors.OpError)) as caught:
            way(lambda w=with_b: step(w))
        error = hvd.original_error(caught.value)
        assert isinstance(error, ringdp.MismatchError) and "gradient 1" in str(error)
    assert same(way(lambda: step(False)[0]), tf.ones([1]))  # and the job goes on


def test_a_process_set(way):
    mine = hvd.add_process_set([hvd.rank()]) if hvd.size() == 1 else None
    sets = [hvd.add_process_set(r) for r in ([0], list(range(1, hvd.size())))] if mine is None else [mine]
    of_mine = next(s for s in sets if s.included())
    x = tf.Variable([1.0, 2.0])

    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(x * values((2,)))
        return hvd.DistributedGradientTape(tape, op=hvd.Sum, process_set=of_mine).gradient(loss, x)

    assert same(way(step), sum(values((2,), rank=rank) for rank in of_mine.ranks))
    assert all(hvd.remove_process_set(s) for s in sets)


# --- training -------------------------------------------------------------------------------------

ROWS, STEPS = 6, 5


def network():
    import keras

    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.layers.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(16, activation="tanh"),
            keras.layers.Dense(3),
        ]
    )


def batches():
    """The joined batches of all ranks."""
    random = np.random.default_rng(7)
    for _ in range(STEPS):
        x = random.standard_normal((hvd.size() * ROWS, 8, 8, 1)).astype(np.float32)
        yield tf.constant(x), tf.constant(random.integers(0, 3, hvd.size() * ROWS))


def train(wrap, part, compiled, optimizer):
    import keras

    model, optimizer = network(), optimizer()
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer.build(model.trainable_variables)
    if wrap is not None and hvd.rank() != 0:
        for variable in model.variables:
            variable.assign(variable * 0)  # what rank 0 has comes to all
    if wrap is not None:
        hvd.broadcast_variables([*model.variables, *optimizer.variables], root_rank=0)

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        if wrap is not None:
            tape = wrap(tape)
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
        )
        return loss

    step = tf.function(step) if compiled else step
    for x, y in batches():
        step(x[part], y[part])
    return [v.numpy() for v in [*model.variables, *optimizer.variables] if v.dtype == "float32"]


@pytest.mark.shows("equals one process on the joined batch", "tensorflow", "eager", "compiled")
@pytest.mark.parametrize("compiled", [False, True])
def test_training_equals_one_process_on_the_joined_batch(compiled):
    import keras

    def adam():
        return keras.optimizers.Adam(0.01)

    mine = slice(hvd.rank() * ROWS, (hvd.rank() + 1) * ROWS)
    got = train(hvd.DistributedGradientTape, mine, compiled, adam)
    assert same_on_all_ranks(got)
    wanted = train(None, slice(None), compiled, adam)
    assert all(np.allclose(g, w, rtol=2e-3, atol=2e-5) for g, w in zip(got, wanted, strict=True))
    start = [v.numpy() for v in network().variables]
    assert all(
        np.abs(g - s).max() > 1e-3 for g, s in zip(got, start, strict=False) if g.ndim > 1
    )  # it has learned
    if compiled:
        again = train(hvd.DistributedGradientTape, mine, compiled, adam)
        assert all((g == a).all() for g, a in zip(got, again, strict=True))  # and repeats bit for bit


@pytest.mark.shows("DistributedOptimizer", "tensorflow", "eager", "compiled")
def test_an_optimizer_of_keras(way):
    import keras

    variable = tf.Variable([1.0, 2.0])
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(0.5), compression=hvd.Compression.bf16, op=hvd.Sum
    )
    optimizer.build([variable])
    way(lambda: optimizer.apply_gradients([(tf.constant([2.0, 4.0]) * float(hvd.rank() + 1), variable)]))
    total = sum(range(1, hvd.size() + 1))
    assert same(variable, tf.constant([1.0 - total, 2.0 - 2 * total]))
    with pytest.raises(ringdp.UsageError, match="tf.compat.v1.train.GradientDescentOptimizer"):
        hvd.DistributedOptimizer(tf.compat.v1.train.GradientDescentOptimizer(0.5))


def test_layers_that_stay_local(way):
    import keras

    layers = [keras.layers.Dense(1, use_bias=False, kernel_initializer="ones") for _ in range(2)]
    for layer in layers:
        layer.build((1, 1))
    variables = [layer.kernel for layer in layers]

    def step():
        with tf.GradientTape() as tape:
            loss = sum(tf.reduce_sum(v) for v in variables) * tf.cast(hvd.rank_op() + 1, tf.float32)
        tape = hvd.PartialDistributedGradientTape(
            tape, op=hvd.Sum, local_layers=layers[0], scale_local_gradients=False
        )
        return tape.gradient(loss, variables)

    local, shared = way(step)
    assert same(local, tf.fill([1, 1], hvd.rank() + 1.0))
    assert same(shared, tf.fill([1, 1], float(sum(range(1, hvd.size() + 1)))))


def test_a_table_that_is_trained_by_slices():
    import keras

    def train_table(wrap, part):
        table = tf.Variable(tf.reshape(tf.range(20.0), [10, 2]))
        optimizer = keras.optimizers.SGD(0.5)

        @tf.function
        def step(rows):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.gather(table, rows) ** 2)
            tape = wrap(tape) if wrap else tape
            optimizer.apply_gradients([(tape.gradient(loss, table), table)])

        for start in range(4):
            rows = [(start * 3 + i) % 7 for i in range(2 * hvd.size())]
            step(tf.constant(rows[part]))
        return table.numpy()

    mine = slice(2 * hvd.rank(), 2 * hvd.rank() + 2)
    got = train_table(hvd.DistributedGradientTape, mine)
    assert same_on_all_ranks([got])
    assert np.allclose(got, train_table(None, slice(None)), rtol=1e-5)
