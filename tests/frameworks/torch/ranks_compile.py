"""Collectives inside torch.compile: whole graphs, with the results, gradients and number of calls of the eager ones."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import ringdp.torch as hvd
from ringdp import world
from ringdp.torch import operators, parallel

BACKENDS = ["eager", "aot_eager"]  # "inductor" takes many seconds for each graph, and so has one test
INDUCTOR = pytest.param("inductor", marks=[pytest.mark.host_only, pytest.mark.slow])


@pytest.fixture(autouse=True)
def _compile_anew():
    torch.compiler.reset()
    with torch.compiler.config.patch(
        force_disable_caches=True
    ):  # a graph of an earlier run would hide a change
        yield
    torch.compiler.reset()


def values(shape, rank=None):
    """Small integers that encode rank and index."""
    rank = hvd.rank() if rank is None else rank
    index = torch.arange(torch.Size(shape).numel()).reshape(shape)
    return ((index % 5) + 7 * rank).float()


def flat(results):
    return [results] if isinstance(results, torch.Tensor) else list(results)


def equal(got, expected):
    return len(got) == len(expected) and all(
        (a is None) == (b is None) and (a is None or (a.dtype == b.dtype and torch.equal(a, b)))
        for a, b in zip(got, expected, strict=True)
    )


def run(function, inputs):
    """(results, inputs as they are afterwards, gradients; operations submitted)."""
    inputs = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
    counters = world.current().engine.counters
    before = counters()["named"]
    results = flat(function(*inputs))
    losses = [(r * (values(r.shape) + 1)).sum() for r in results if r.requires_grad]
    if losses:
        sum(losses).backward()
    seen = [r.detach() for r in results], [x.detach() for x in inputs], [x.grad for x in inputs]
    return seen, counters()["named"] - before


def same(function, *inputs, backend, calls=None, dynamic=None):
    """Compiled as a whole, `function` does what it does eagerly, to the bit, by as many operations. (What is seen.)"""
    expected, submitted = run(function, inputs)
    assert calls is None or submitted == calls
    compiled = torch.compile(function, fullgraph=True, backend=backend, dynamic=dynamic)
    for _ in range(2):  # traced, and from the cache
        got, count = run(compiled, inputs)
        assert all(equal(*pair) for pair in zip(got, expected, strict=True)), (got, expected)
        assert count == submitted
    return expected


@pytest.mark.shows("allreduce", "torch", "compiled")
@pytest.mark.parametrize("backend", BACKENDS)
def test_allreduce_inside_a_full_graph_compile(backend):
    """Which Horovod does not support."""

    def act(x, weight):
        hidden = torch.relu(x @ weight)
        mean = hvd.allreduce(hidden, name="hidden")
        return hvd.allreduce(mean * mean, op=hvd.Sum)

    weight = values((3, 2), 0)
    (results, _, _) = same(act, hvd.size() * values((2, 3)), weight, backend=backend, calls=2)
    mean = sum(torch.relu(values((2, 3), r) @ weight) for r in range(hvd.size()))
    assert torch.equal(results[0], hvd.size() * mean * mean)


CASES = {
    "average": lambda x: hvd.allreduce(x),
    "older form": lambda x: hvd.allreduce(x, average=False),
    "max": lambda x: hvd.allreduce(x, op=hvd.Max, name="max"),
    "scaled": lambda x: hvd.allreduce(x, op=hvd.Sum, prescale_factor=2.0, postscale_factor=0.5),
    "transposed": lambda x: hvd.allreduce(x.t(), op=hvd.Sum).t(),
    "fp16": lambda x: hvd.allreduce(x, op=hvd.Sum, compression=hvd.Compression.fp16),
    "bf16": lambda x: hvd.reducescatter(x, op=hvd.Sum, compression=hvd.Compression.bf16),
    "compression of one's own": lambda x: hvd.allreduce(x, op=hvd.Sum, compression=Halves),
    "allgather": lambda x: hvd.allgather(x, name="gather"),
    "broadcast": lambda x: hvd.broadcast(x, 1, name="root"),
    "alltoall": lambda x: hvd.alltoall(torch.cat([x] * hvd.size())),
    "alltoall with splits": lambda x: hvd.alltoall(x, [4] + [0] * (hvd.size() - 2) + [1])[0],
    "reducescatter": lambda x: hvd.reducescatter(x, op=hvd.Sum, name="scatter", postscale_factor=2.0),
}


class Halves:
    """A compression as users write them."""

    @staticmethod
    def compress(tensor):
        return (tensor / 2).double(), tensor.dtype

    @staticmethod
    def decompress(tensor, context):
        return tensor.to(context) * 2


@pytest.mark.shows(
    ["allgather", "broadcast", "alltoall", "reducescatter", "compression"], "torch", "compiled"
)
@pytest.mark.parametrize("case", CASES)
def test_results(case):
    same(lambda x: CASES[case](x * 2) + 1, values((5, 2)), backend="aot_eager")


@pytest.mark.shows(
    ["gradient of allreduce", "gradient of allgather", "gradient of broadcast"], "torch", "compiled"
)
@pytest.mark.shows(["gradient of alltoall", "gradient of reducescatter"], "torch", "compiled")
@pytest.mark.parametrize("case", [case for case in CASES if case != "max"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients(case, backend):
    *_, (gradient,) = same(lambda x: CASES[case](x * 2) + 1, values((5, 2)).requires_grad_(), backend=backend)
    assert gradient is not None


ROWS = {
    "allgather": lambda x: hvd.allgather(x),
    "alltoall": lambda x: hvd.alltoall(x, torch.tensor([len(x) - 1] + [0] * (hvd.size() - 2) + [1])),
    "reducescatter": lambda x: hvd.reducescatter(torch.cat([hvd.broadcast(x[:2], 0), x[:2]]), op=hvd.Sum),
}


HOW = [
    pytest.param("eager", True, False, marks=pytest.mark.slow),
    pytest.param("aot_eager", False, False, marks=pytest.mark.slow),
    ("aot_eager", True, False),
    ("aot_eager", True, True),
]


@pytest.mark.parametrize(("backend", "differentiable", "dynamic"), HOW)
@pytest.mark.parametrize("case", ROWS)
def test_ranks_with_different_numbers_of_rows(case, backend, differentiable, dynamic):
    x = values((hvd.rank() + 2, 3)).requires_grad_(differentiable)
    same(lambda x: flat(ROWS[case](x * 2)), x, backend=backend, dynamic=dynamic)


@pytest.mark.shows("in place", "torch", "compiled")
@pytest.mark.parametrize("backend", BACKENDS)
def test_in_place(backend):
    def act(x, leaf):
        y = x + 1
        hvd.allreduce_(y, op=hvd.Sum, name="inside")
        z = hvd.allreduce_(x, op=hvd.Max) * y
        hvd.broadcast_(leaf, 1)
        hvd.allreduce_(x.t(), op=hvd.Sum)
        return y, z, x * leaf

    inputs = values((2, 2)), values((2, 2)).requires_grad_()
    _, (x, leaf), _ = same(act, *inputs, backend=backend, calls=4)
    assert torch.equal(leaf, values((2, 2), rank=1))
    assert torch.equal(x, hvd.size() * values((2, 2), rank=hvd.size() - 1))


GROUPS = {
    "allreduce": lambda xs: hvd.grouped_allreduce(xs, op=hvd.Sum, name="group"),
    "compressed": lambda xs: hvd.grouped_allreduce(xs, op=hvd.Sum, compression=hvd.Compression.bf16),
    "allgather": lambda xs: hvd.grouped_allgather(xs, name="group"),
    "reducescatter": lambda xs: hvd.grouped_reducescatter(xs, op=hvd.Sum, compression=hvd.Compression.fp16),
}


@pytest.mark.shows(["grouped_allreduce", "grouped_allgather", "grouped_reducescatter"], "torch", "compiled")
@pytest.mark.shows("gradient of grouped_allreduce", "torch", "compiled")
@pytest.mark.parametrize(("backend", "differentiable", "_"), HOW[:3])
@pytest.mark.parametrize("case", GROUPS)
def test_groups(case, backend, differentiable, _):
    inputs = [values((n, 2)).requires_grad_(differentiable) for n in (3, 5)]
    same(lambda x, y: [2 * r for r in GROUPS[case]([x * 2, y + 1])], *inputs, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_group_in_place(backend):
    inputs = [values((n, 2)) for n in (3, 5)]
    _, after, _ = same(
        lambda x, y: hvd.grouped_allreduce_([x, y], op=hvd.Max), *inputs, backend=backend, calls=2
    )
    assert equal(after, [values((n, 2), hvd.size() - 1) for n in (3, 5)])


# --- number and order -----------------------------------------------------------------------------


class Noted:
    """`operations`, noting each call."""

    def __init__(self, operations):
        self.operations, self.calls = operations, []

    def __getattr__(self, kind):
        def call(x, *args, **kwargs):
            self.calls.append((kind, *x.shape))
            return getattr(self.operations, kind)(x, *args, **kwargs)

        return call


@pytest.mark.parametrize("backend", [*BACKENDS, INDUCTOR])
def test_equal_calls_unused_results_and_order(backend, monkeypatch):
    """Each is carried out as often as it is written, in the order in which it is written, though the results are used
    in another, and though ranks have graphs of their own: here the numbers of rows differ."""
    noted = Noted(operators.operations)
    monkeypatch.setattr(operators, "operations", noted)

    def act(x, weight):
        hidden = torch.relu(x @ weight)
        hvd.allreduce(x[:1], name="unused")
        first = hvd.allreduce(x[:1], op=hvd.Sum)
        second = hvd.allreduce(x[:1], op=hvd.Sum)
        rows = hvd.allgather(hidden)
        late = hvd.allreduce(hidden[:2], op=hvd.Sum)
        return (late * late).sum() + (rows * rows).sum() + (second - 2 * first).sum()

    inputs = values((hvd.rank() + 2, 3)), values((3, 3), 0).requires_grad_()
    same(act, *inputs, backend=backend, calls=8)
    rows = sum(r + 2 for r in range(hvd.size()))
    forward = [("allreduce", 1, 3)] * 3 + [("allgather", hvd.rank() + 2, 3)]
    forward += [("allreduce", hvd.size()), ("allreduce", 2, 3)]
    assert noted.calls == 2 * [*forward, ("allreduce", 2, 3), ("allreduce", rows, 3)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_after_another_graph_has_run(backend):
    first = torch.compile(lambda x: hvd.allreduce(x * x, op=hvd.Sum), fullgraph=True, backend=backend)
    second = torch.compile(lambda x: hvd.allreduce(x, op=hvd.Max), fullgraph=True, backend=backend)
    x = values((3,)).requires_grad_()
    y = first(x)
    assert torch.equal(second(values((2, 2))), values((2, 2), hvd.size() - 1))
    y.sum().backward()
    assert torch.equal(x.grad, 2 * hvd.size() * values((3,)))


@pytest.mark.host_only  # the stand-in does not see that it is ringdp that makes numbers of rows in a graph
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_rank_that_does_not_compile_meets_those_that_do(backend):
    def act(x):
        y = hvd.allreduce(x, op=hvd.Sum)
        return hvd.allgather(y * x).sum() + hvd.grouped_allreduce([x, y], op=hvd.Sum)[1].sum()

    expected = run(act, [values((3,)).requires_grad_()])
    chosen = act if hvd.rank() == 0 else torch.compile(act, fullgraph=True, backend=backend)
    got = run(chosen, [values((3,)).requires_grad_()])
    assert all(equal(*pair) for pair in zip(got[0], expected[0], strict=True)) and got[1] == expected[1]


# --- what a graph depends on ----------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_size_and_rank(backend):
    same(lambda x: x * hvd.size() + hvd.rank() + hvd.local_rank(), values((3,)), backend=backend)


def numbered(x, process_set):
    """Parts as the ranks of a set have them: what has a shape by its size, and an index by this rank's number in it."""
    rank = process_set.rank()
    if rank is None:
        return x * process_set.size() - 1
    parts = x.tensor_split(process_set.size())
    return parts[rank] * process_set.size() + rank + process_set.included()


@pytest.mark.parametrize("backend", BACKENDS)
def test_size_and_rank_in_process_sets(backend):
    """The same function with one set after the other, and with one that is removed, and added again of other ranks."""
    last, every = hvd.size() - 1, range(hvd.size())
    sets = [hvd.add_process_set(ranks) for ranks in ([last], [0], list(every))]
    compiled = torch.compile(numbered, fullgraph=True, backend=backend)
    x = values((7, 2))
    for one in [*sets, hvd.global_process_set, *sets]:
        assert torch.equal(compiled(x, one), numbered(x, one))
    first = sets[1]
    hvd.remove_process_set(first)
    with pytest.raises(Exception, match="cannot be used"):
        compiled(x, first)
    first.ranks = [last]
    hvd.add_process_set(first)
    assert torch.equal(compiled(x, first), numbered(x, first))
    for one in sets:
        hvd.remove_process_set(one)


@pytest.mark.parametrize("backend", BACKENDS)
def test_size_and_rank_after_threads_have_stood_in_for_this_rank(backend):
    """As join() has them, one for each optimizer but the first."""
    params = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizers = [hvd.DistributedOptimizer(torch.optim.SGD([param], lr=1.0)) for param in params]
    for param, optimizer in zip(params, optimizers, strict=True):
        (param * values((2,))).sum().backward()
        optimizer.step()
    hvd.join()
    pair = hvd.add_process_set([0, hvd.size() - 1])
    for one in (pair, hvd.global_process_set):
        same(lambda x, one=one: numbered(x, one), values((7, 2)), backend=backend)
    test_size_and_rank(backend)
    if pair.included():
        up = parallel.ColumnLinear(3, 5, process_set=pair)
        down = parallel.RowLinear(5, 3, process_set=pair)
        gathering = parallel.ColumnLinear(3, 5, process_set=pair, gather_output=True)
        scattering = parallel.RowLinear(5, 3, process_set=pair, input_is_split=False)
        for first, second in ((up, down), (gathering, scattering)):
            inputs = values((4, 3), 0).requires_grad_()
            same(lambda x, first=first, second=second: second(first(x)), inputs, backend=backend)
    hvd.remove_process_set(pair)


def test_after_init_with_other_ranks_the_graph_is_another():
    def act(x):
        return hvd.reducescatter(x, op=hvd.Sum) * hvd.size() + hvd.rank()

    rank = hvd.rank()
    compiled = torch.compile(act, fullgraph=True, backend="aot_eager")
    x = values((6, 2))
    assert torch.equal(compiled(x), act(x))
    hvd.shutdown()
    hvd.init(comm=[rank])
    alone = compiled(x)
    hvd.shutdown()
    hvd.init()
    assert torch.equal(alone, x) and torch.equal(compiled(x), act(x))


@pytest.mark.shows("process sets", "torch", "compiled")
@pytest.mark.parametrize("backend", BACKENDS)
def test_process_sets(backend):
    sets = [hvd.add_process_set([r]) for r in range(hvd.size())]
    mine = sets[hvd.rank()]

    def act(x):
        y = hvd.allreduce(x, process_set=mine, op=hvd.Sum) + hvd.allgather(x, process_set=mine)
        part = hvd.reducescatter(x, process_set=mine) + hvd.alltoall(x, process_set=mine)
        return y + hvd.broadcast(part, hvd.rank(), process_set=mine)

    results, _, _ = same(act, values((3,)).requires_grad_(), backend=backend)
    assert torch.equal(results[0], 4 * values((3,)))
    for one in sets:
        hvd.remove_process_set(one)
    with pytest.raises(Exception, match="cannot be used: give it to init"):
        torch.compile(act, fullgraph=True, backend=backend)(values((3,)))


def test_numbers_that_change_from_call_to_call():
    def act(x, rows, factor):
        reduced = hvd.allreduce(x, op=hvd.Sum, prescale_factor=factor)
        return reduced, *hvd.alltoall(x, [rows, *[0] * (hvd.size() - 2), len(x) - rows])

    compiled = torch.compile(act, fullgraph=True, backend="aot_eager")
    for length, rows, factor in ((3, 1, 1.0), (4, 2, 2.0), (5, 3, 4.0), (9, 2, 4.0)):
        x = values((length, 2))
        assert equal(compiled(x, rows, factor), act(x, rows, factor))


# --- what no graph can hold -----------------------------------------------------------------------


BREAKS = {
    "handle": lambda x: hvd.synchronize(hvd.allreduce_async(x)),
    "group": lambda x: hvd.synchronize(hvd.grouped_allgather_async([x]))[0],
    "wait": lambda x: hvd.allgather_async(x).wait(),
    "barrier": lambda x: (hvd.barrier(), x)[1],
    "object": lambda x: x * hvd.broadcast_object(hvd.rank() + 2, 1),
    "objects": lambda x: x * sum(hvd.allgather_object(hvd.rank())),
    "parameters": lambda x: (hvd.broadcast_parameters({"x": x}, 1), x)[1],
}


@pytest.mark.parametrize("case", BREAKS)
def test_what_breaks_a_graph_works_as_outside(case):
    def act(x):
        return BREAKS[case](x * 2) + 1

    with pytest.raises(Exception, match="no graph can hold it: use the blocking form .* or call it outside"):
        torch.compile(act, fullgraph=True, backend="eager")(values((3,)))
    torch.compiler.reset()
    assert torch.equal(torch.compile(act, backend="eager")(values((3,))), act(values((3,))))


def test_errors():
    compiled = torch.compile(lambda x: hvd.allreduce(x, op=hvd.Max), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="no gradient flows through Max: use Average or Sum"):
        compiled(torch.ones(3, requires_grad=True))
    compiled = torch.compile(lambda x: hvd.allreduce(x, name="bad"), fullgraph=True, backend="aot_eager")
    with pytest.raises(hvd.MismatchError, match="'bad' differs"):
        compiled(values((3 + hvd.rank(),)))
    assert torch.equal(compiled(values((3,), 0)), values((3,), 0))
    with pytest.raises(hvd.UsageError, match="process set 77 is not there"):
        torch.ops.ringdp.allgather(torch.ones(1), None, 77)


def test_a_release_of_torch_without_what_keeps_the_order(monkeypatch):
    monkeypatch.setattr(operators, "MISSING", "torch has no way to keep collectives in order")
    without = operators._define("allreduce(…)", operators._allreduce, None)
    monkeypatch.setattr(operators, "allreduce", without)

    def act(x):
        return hvd.allreduce(x * 2, op=hvd.Sum) + 1

    with pytest.raises(Exception, match="no way to keep collectives in order"):
        torch.compile(act, fullgraph=True, backend="eager")(values((3,)))
    torch.compiler.reset()
    x = values((3,)).requires_grad_()
    got = torch.compile(act, backend="eager")(x)
    got.sum().backward()
    assert torch.equal(got, act(x)) and torch.equal(x.grad, torch.full((3,), 2.0 * hvd.size()))


def test_what_graphs_are_told_of_gpus():
    """Results are beside the tensors, but for numbers of rows. PyTorch needs no GPU to stand in for a tensor on one."""
    scale = 1.0, 1.0, 0
    with FakeTensorMode(shape_env=ShapeEnv()):
        x = torch.empty(4, 3, device="cuda")
        made = [
            operators.allreduce(x, None, 1, *scale),
            operators.allgather(x, None, 0),
            operators.broadcast(x, 0, None, 0),
            operators.reducescatter(x, 2, None, 1, *scale),
            *operators.grouped_allreduce([x, x], None, 1, *scale),
            *operators.grouped_allgather([x, x], None, 0),
            *operators.grouped_reducescatter([x, x], [2, 2], None, 1, *scale),
        ]
        exchanged, rows = operators.alltoall(x, None, 2, None, 0)
    assert {tensor.device.type for tensor in [*made, exchanged]} == {"cuda"}
    assert rows.device.type == "cpu"
