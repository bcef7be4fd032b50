"""Collectives inside torch.compile: whole graphs, with the results, gradients and number of calls of the eager ones."""

import pytest
import torch

import ringdp.torch as hvd
from ringdp import world

BACKENDS = ["eager", "aot_eager"]
CPP = "inductor"


@pytest.fixture(autouse=True)
def _compile_anew():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def values(shape, dtype=torch.float32, rank=None):
    """Small integers that encode rank and index."""
    rank = hvd.rank() if rank is None else rank
    index = torch.arange(torch.Size(shape).numel()).reshape(shape)
    return ((index % 5) + 7 * rank).to(dtype)


def named():
    """How many operations this rank has submitted."""
    return world.current().engine.counters()["named"]


def flat(results):
    return [results] if isinstance(results, torch.Tensor) else list(results)


def run(function, inputs, with_gradients):
    """(results, inputs as they are afterwards, gradients, operations submitted)."""
    inputs = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
    before = named()
    results = flat(function(*inputs))
    if with_gradients:
        sum((r * (values(r.shape) + 1)).sum() for r in results if r.requires_grad).backward()
    return (
        [r.detach() for r in results],
        [x.detach() for x in inputs],
        [x.grad for x in inputs],
        named() - before,
    )


def same(function, *inputs, backend, calls=None, with_gradients=False, dynamic=None):
    """Compiled as a whole, `function` does what it does eagerly, to the bit, with the same number of operations."""
    expected = run(function, inputs, with_gradients)
    compiled = torch.compile(function, fullgraph=True, backend=backend, dynamic=dynamic)
    for _ in range(2):  # traced, and from the cache
        got = run(compiled, inputs, with_gradients)
        for ours, theirs in zip(got[:3], expected[:3], strict=True):
            for a, b in zip(ours, theirs, strict=True):
                assert (a is None) == (b is None)
                assert a is None or (a.dtype == b.dtype and torch.equal(a, b)), (a, b)
        assert got[3] == expected[3] and (calls is None or got[3] == calls)
    return expected


CASES = {
    "average": lambda x: hvd.allreduce(x),
    "older form": lambda x: hvd.allreduce(x, average=False),
    "max": lambda x: hvd.allreduce(x, op=hvd.Max, name="max"),
    "scaled": lambda x: hvd.allreduce(x, op=hvd.Sum, prescale_factor=2.0, postscale_factor=0.5),
    "adasum": lambda x: hvd.allreduce(x, op=hvd.Adasum),
    "fp16": lambda x: hvd.allreduce(x, op=hvd.Sum, compression=hvd.Compression.fp16),
    "bf16": lambda x: hvd.reducescatter(x, op=hvd.Sum, compression=hvd.Compression.bf16),
    "allgather": lambda x: hvd.allgather(x, name="gather"),
    "broadcast": lambda x: hvd.broadcast(x, 1, name="root"),
    "alltoall": lambda x: hvd.alltoall(torch.cat([x] * hvd.size())),
    "alltoall with splits": lambda x: hvd.alltoall(x, [4] + [0] * (hvd.size() - 2) + [1])[0],
    "reducescatter": lambda x: hvd.reducescatter(x, op=hvd.Sum),
    "transposed": lambda x: hvd.allreduce(x.t(), op=hvd.Sum).t() + 1,
    "barrel": lambda x: hvd.broadcast(hvd.allgather(hvd.reducescatter(x, op=hvd.Sum))[:5] * 2, 0),
}
SELECTIONS = ("max", "adasum")  # through which no gradient flows


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_results(case, backend):
    same(lambda x: CASES[case](x * 2) + 1, values((5, 2)), backend=backend)


@pytest.mark.parametrize("case", [case for case in CASES if case not in SELECTIONS])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients(case, backend):
    same(
        lambda x: CASES[case](x * 2) + 1,
        values((5, 2)).requires_grad_(),
        backend=backend,
        with_gradients=True,
    )


ROWS = {
    "allgather": lambda x: hvd.allgather(x),
    "alltoall": lambda x: hvd.alltoall(x, torch.tensor([len(x) - 1] + [0] * (hvd.size() - 2) + [1])),
    "reducescatter": lambda x: hvd.reducescatter(hvd.broadcast(torch.cat([x, x[:1]])[:2], 0), op=hvd.Sum),
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("with_gradients", [False, True])
@pytest.mark.parametrize("case", ROWS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_ranks_with_different_numbers_of_rows(case, backend, with_gradients, dynamic):
    x = values((hvd.rank() + 2, 3)).requires_grad_(with_gradients)
    same(
        lambda x: flat(ROWS[case](x * 2)), x, backend=backend, with_gradients=with_gradients, dynamic=dynamic
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_in_place(backend):
    def act(x, leaf):
        y = x + 1
        hvd.allreduce_(y, op=hvd.Sum, name="inside")
        z = hvd.allreduce_(x, op=hvd.Max) * y
        hvd.broadcast_(leaf, 1)
        hvd.allreduce_(x.t(), op=hvd.Sum)
        return y, z, x * leaf

    expected = same(
        act, values((2, 2)), values((2, 2)).requires_grad_(), backend=backend, calls=4, with_gradients=True
    )
    assert torch.equal(expected[1][1], values((2, 2), rank=1))


GROUPS = {
    "allreduce": lambda xs: hvd.grouped_allreduce(xs, op=hvd.Sum, name="group"),
    "allreduce_": lambda xs: hvd.grouped_allreduce_(xs, op=hvd.Max),
    "compressed": lambda xs: hvd.grouped_allreduce(xs, op=hvd.Sum, compression=hvd.Compression.bf16),
    "allgather": lambda xs: hvd.grouped_allgather(xs, name="group"),
    "reducescatter": lambda xs: hvd.grouped_reducescatter(xs, op=hvd.Sum, compression=hvd.Compression.fp16),
}


@pytest.mark.parametrize("with_gradients", [False, True])
@pytest.mark.parametrize("case", GROUPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_groups(case, backend, with_gradients):
    def act(x, y):
        return [2 * r for r in GROUPS[case]([x * 2, y + 1])]

    inputs = [values((n, 2)).requires_grad_(with_gradients and case != "allreduce_") for n in (3, 5)]
    same(act, *inputs, backend=backend, with_gradients=with_gradients and case != "allreduce_")


@pytest.mark.parametrize("backend", BACKENDS)
def test_counts_and_order(backend):
    def act(x):
        a = hvd.allreduce(x, op=hvd.Sum)
        b = hvd.allreduce(x, op=hvd.Sum)
        hvd.allreduce(x, op=hvd.Sum, name="unused")
        hvd.allgather(x)
        return a + b

    same(act, values((3,)), backend=backend, calls=4)
    same(act, values((3,)).requires_grad_(), backend=backend, with_gradients=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_size_and_rank(backend):
    same(lambda x: x * hvd.size() + hvd.rank() + hvd.local_rank(), values((3,)), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_process_sets(backend):
    pairs = [hvd.add_process_set([r]) for r in range(hvd.size())]
    mine = pairs[hvd.rank()]

    def act(x):
        y = hvd.allreduce(x, process_set=mine, op=hvd.Sum) + hvd.allgather(x, process_set=mine)
        return y + hvd.broadcast(hvd.reducescatter(x, process_set=mine), hvd.rank(), process_set=mine)

    same(act, values((3,)).requires_grad_(), backend=backend, with_gradients=True)
    for one in pairs:
        hvd.remove_process_set(one)


@pytest.mark.parametrize(
    "form", [lambda x: hvd.allreduce_async(x), lambda x: hvd.grouped_allgather_async([x])]
)
def test_handles(form):
    def act(x):
        return hvd.synchronize(form(x * 2))

    with pytest.raises(Exception, match="use the blocking form"):
        torch.compile(act, fullgraph=True, backend="eager")(values((3,)))
    torch.compiler.reset()
    got = torch.compile(act, backend="eager")(values((3,)))
    assert all(torch.equal(a, b) for a, b in zip(flat(got), flat(act(values((3,)))), strict=True))


def test_dyn():
    def act(x, a, f):
        return hvd.allreduce(x, op=hvd.Sum, prescale_factor=f), *hvd.alltoall(
            x, [a, *[0] * (hvd.size() - 2), len(x) - a]
        )

    c = torch.compile(act, fullgraph=True, backend="aot_eager")
    for n, a, f in ((3, 1, 1.0), (4, 2, 2.0), (5, 3, 4.0), (9, 2, 4.0)):
        x = values((n, 2))
        assert all(torch.equal(p, q) for p, q in zip(c(x, a, f), act(x, a, f), strict=True))


def test_errors():
    with pytest.raises(Exception, match="no gradient flows through Max"):
        torch.compile(lambda x: hvd.allreduce(x, op=hvd.Max), fullgraph=True, backend="eager")(
            values((3,)).requires_grad_()
        )
    c = torch.compile(lambda x: hvd.allreduce(x, name="bad"), fullgraph=True, backend="aot_eager")
    with pytest.raises(hvd.MismatchError, match="'bad' differs"):
        c(values((3 + hvd.rank(),)))


@pytest.mark.parametrize("backend", [*BACKENDS, CPP])
def test_ind(backend):
    def act(x, w):
        h = torch.relu(x @ w)
        hvd.allreduce(x.detach())
        g = hvd.allgather(h)
        y = hvd.allreduce(h, op=hvd.Sum)
        return (y * y).sum() + (g * g).sum()

    same(act, values((4, 4)), values((4, 4)).requires_grad_(), backend=backend, with_gradients=True)
