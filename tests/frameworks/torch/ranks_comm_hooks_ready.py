"""The ready communication hooks: what they compute, what they send, that ranks keep the same bits, and overflows."""

import pickle

import pytest
import torch
from frameworks.torch.helpers import batches, loss, network, parameters, reduced, same_on_all_ranks, wrap

import ringdp.torch as hvd
from ringdp.torch.comm_hooks import (
    Int8State,
    PowerSGDState,
    allreduce_hook,
    bf16_hook,
    fp16_hook,
    int8_hook,
    powersgd_hook,
)
from ringdp.torch.comm_hooks import int8 as int8_module
from ringdp.torch.ops import operations

needs_ranks = pytest.mark.usefixtures("_several")
HOOKS = {
    "allreduce": (lambda: None, allreduce_hook),
    "fp16": (lambda: None, fp16_hook),
    "bf16": (lambda: None, bf16_hook),
    "int8": (Int8State, int8_hook),
    "int8 without feedback": (lambda: Int8State(block=32, error_feedback=False), int8_hook),
    "powersgd": (lambda: PowerSGDState(2, start_powerSGD_iter=2), powersgd_hook),
    "powersgd cold": (lambda: PowerSGDState(1, 0, 1.0, False, False), powersgd_hook),
}
every = pytest.mark.parametrize("kind", HOOKS)


@pytest.fixture
def _several(_rank):
    if hvd.size() == 1:
        pytest.skip("one rank exchanges nothing")


@pytest.mark.parametrize("kind", ["allreduce", "fp16", "powersgd"])
def test_exact_where_nothing_is_lost(kind):
    params = parameters()  # small integers; vectors, which PowerSGD does not compress
    make, hook = HOOKS[kind]
    optimizer = wrap(params)
    optimizer.register_comm_hook(make(), hook)
    for _ in range(4):
        optimizer.zero_grad()
        loss(params).backward()
        assert reduced(params)
        optimizer.step()


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(kind, torch.float32) for kind in HOOKS if kind != "allreduce"]
    + [(kind, dtype) for kind in ("int8", "powersgd") for dtype in (torch.bfloat16, torch.float64)],
)
def test_training_goes_like_float32_and_ranks_keep_the_same_bits(kind, dtype):
    results = {}
    for name in ("allreduce", kind):
        make, hook = HOOKS[name]
        model = network().to(dtype)
        optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), bucket_bytes=4096)
        optimizer.register_comm_hook(make(), hook)
        losses = []
        for _, _, x, y in list(batches(1)) * 12:
            optimizer.zero_grad()
            value = torch.nn.functional.cross_entropy(model(x.to(dtype)), y)
            value.backward()
            optimizer.step()
            losses.append(float(value.detach()))
        assert same_on_all_ranks(model.parameters())
        results[name] = losses
    slow = "cold" in kind  # rank 1, and what it leaves out is lost
    assert results[kind][-1] < (0.95 if slow else 0.8) * results[kind][0]
    assert slow or abs(results[kind][-1] - results["allreduce"][-1]) < 0.1


@every
def test_results_repeat(kind):
    make, hook = HOOKS[kind]
    results = []
    for _ in range(2):
        model = network()
        optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), bucket_bytes=4096)
        optimizer.register_comm_hook(make(), hook)
        for _, _, x, y in batches(5):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        results.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("kind", "bad"),
    [(kind, torch.inf) for kind in HOOKS] + [("int8", torch.nan), ("powersgd", torch.nan)],
)
def test_scaler_skips_on_all_ranks_and_training_goes_on(kind, bad):
    make, hook = HOOKS[kind]
    model = network()
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), bucket_bytes=4096)
    optimizer.register_comm_hook(make(), hook)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    for step, (_, _, x, y) in enumerate(batches(7)):
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(model(x), y)
        if step == 4 and hvd.rank() == hvd.size() - 1:
            value = value * bad
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        same = all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        assert same == (step == 4) and scaler.get_scale() == (64.0 if step < 4 else 32.0)
        assert all(torch.isfinite(p).all() for p in model.parameters())
    assert same_on_all_ranks(model.parameters())


def one_matrix(rows, columns, hook, state, **options):
    param = torch.nn.Parameter(torch.zeros(rows, columns))
    optimizer = wrap([param], lr=1.0, **options)
    optimizer.register_comm_hook(state, hook)
    return param, optimizer


def exchange(param, optimizer, gradient):
    optimizer.zero_grad()
    (param * gradient).sum().backward()
    return param.grad.clone()


@needs_ranks
def test_int8_is_exact_for_codes_of_a_block():
    # Each block has ±127 in it, so its scale is 1; the average's scale is 1 too.
    rank_free = torch.arange(512.0) % 255 - 127
    param, optimizer = one_matrix(2, 256, int8_hook, Int8State())
    assert torch.equal(exchange(param, optimizer, rank_free.view(2, 256)), rank_free.view(2, 256))
    wire = int8_module.quantise(rank_free.view(2, 256))
    assert wire.shape == (2, 260) and wire[:, :256].view(torch.int8).flatten().tolist() == rank_free.tolist()


@pytest.mark.parametrize("block", [1, 2, 3, 4, 5, 255, 256, 257])
def test_int8_blocks_of_any_number_and_size_come_back(block):
    for rows in (0, 1, 2, 5):
        codes = torch.arange(float(rows * block)).view(rows, block) % 255 - 127
        codes[:, -1] = 127  # the scale is 1
        assert torch.equal(int8_module.dequantise(int8_module.quantise(codes)), codes)


@needs_ranks
@pytest.mark.parametrize("block", [1, 2, 3, 5, 257])
@pytest.mark.parametrize("elements", [1, 2, 6, 11])  # fewer blocks than ranks, and some ranks own one
def test_int8_exchanges_blocks_of_any_size(block, elements):
    gradient = torch.where(torch.arange(float(elements)) % 2 == 0, 127.0, -127.0)
    param, optimizer = one_matrix(1, elements, int8_hook, Int8State(block=block))
    for _ in range(3):
        assert torch.equal(exchange(param, optimizer, gradient)[0], gradient)
        optimizer.step()


@needs_ranks
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 257), (37, 53)])
def test_int8_errors_are_bounded_and_fed_back(rows, columns):
    generator = torch.Generator().manual_seed(4)
    gradients = torch.randn(hvd.size(), rows, columns, generator=generator)
    mean = gradients.mean(0)
    bound = 2 * float(gradients.abs().max()) / 127 / 2 + 1e-5  # half a code each way
    drifts = []
    for feedback in (True, False):
        param, optimizer = one_matrix(rows, columns, int8_hook, Int8State(error_feedback=feedback))
        total = torch.zeros(rows, columns)
        for _ in range(20):
            got = exchange(param, optimizer, gradients[hvd.rank()])
            assert (got - mean).abs().max() <= 4 * bound
            total += got
            optimizer.step()
        drifts.append(float((total - 20 * mean).abs().max()))
    assert drifts[0] <= 4 * bound  # the sum has not drifted away
    assert rows * columns == 1 or drifts[1] > 4 * bound


@needs_ranks
def test_int8_sends_a_quarter(monkeypatch):
    sent = []
    for name in ("alltoall_async", "allgather"):
        call = getattr(operations, name)

        def counted(tensor, *args, call=call, **options):
            sent.append(tensor.numel() * tensor.element_size())
            return call(tensor, *args, **options)

        monkeypatch.setattr(int8_module.operations, name, counted)
    elements = 256 * hvd.size() * 8
    param, optimizer = one_matrix(8, elements // 8, int8_hook, Int8State())
    exchange(param, optimizer, torch.ones_like(param))
    scattered, gathered = sent
    assert scattered == elements // 256 * 260 and gathered == scattered // hvd.size()
    # To each peer a chunk, both ways; a ring of float32 sends as many chunks of four bytes an element.
    peers = hvd.size() - 1
    int8_bytes = peers * scattered // hvd.size() + peers * gathered
    assert int8_bytes / (2 * peers * elements * 4 / hvd.size()) == 260 / 1024


@needs_ranks
def test_powersgd_finds_a_matrix_of_its_rank():
    generator = torch.Generator().manual_seed(5)
    for rank in (1, 2, 4):
        left, right = (torch.randn(n, rank, generator=generator) for n in (40, 60))
        param, optimizer = one_matrix(40, 60, powersgd_hook, PowerSGDState(rank, start_powerSGD_iter=0))
        # Every rank's gradient is a multiple of the same matrix: their average has its rank too.
        got = exchange(param, optimizer, (hvd.rank() + 1) * left @ right.T)
        torch.testing.assert_close(got, (hvd.size() + 1) / 2 * left @ right.T, rtol=1e-3, atol=1e-3)


@needs_ranks
def test_powersgd_feeds_back_what_it_left_out():
    generator = torch.Generator().manual_seed(6)
    gradients = torch.randn(hvd.size(), 24, 30, generator=generator)
    mean, errors = gradients.mean(0), []
    for feedback in (True, False):
        state = PowerSGDState(2, 0, 1.0, use_error_feedback=feedback)
        param, optimizer = one_matrix(24, 30, powersgd_hook, state)
        total = torch.zeros(24, 30)
        for _ in range(60):
            total += exchange(param, optimizer, gradients[hvd.rank()])
            optimizer.step()
        errors.append(float((total / 60 - mean).norm() / mean.norm()))
    assert errors[0] < 0.4 < errors[1]


@needs_ranks
def test_powersgd_sends_factors_and_a_zero_gradient_does_not_end_it():
    state = PowerSGDState(2, start_powerSGD_iter=0)
    param, optimizer = one_matrix(40, 60, powersgd_hook, state)
    sizes = []
    start = operations.allreduce_async_

    def counted(tensor, *args, **options):
        if tensor.dtype is torch.float32:
            sizes.append(tensor.numel())
        return start(tensor, *args, **options)

    operations.allreduce_async_ = counted
    try:
        assert not exchange(param, optimizer, torch.zeros(40, 60)).any()
        assert sizes == [80, 120]
        optimizer.step()
        optimizer.zero_grad()
        got = exchange(param, optimizer, torch.ones(40, 60))
    finally:
        del operations.allreduce_async_
    torch.testing.assert_close(got, torch.ones(40, 60), rtol=1e-4, atol=1e-4)


def test_orthogonal_columns():
    from ringdp.torch.comm_hooks.powersgd import orthogonalise

    p = torch.randn(50, 4, generator=torch.Generator().manual_seed(8))
    p[:, 2] = 3 * p[:, 0]
    orthogonalise(p)
    torch.testing.assert_close(p.T @ p, torch.diag(torch.tensor([1.0, 1, 0, 1])), rtol=0, atol=1e-6)


@needs_ranks
@pytest.mark.parametrize("kind", ["int8", "powersgd"])
def test_a_pickled_state_goes_on_with_the_same_bits(kind):
    make, hook = HOOKS[kind]
    results = []
    for again in (False, True):
        model, state = network(), make()
        for part in (list(batches(8))[:5], list(batches(8))[5:]):
            if again:
                before, state = state, pickle.loads(pickle.dumps(state))
                assert kept_in(state) == kept_in(before)
            inner = torch.optim.SGD(model.parameters(), lr=0.1)
            optimizer = hvd.DistributedOptimizer(inner, bucket_bytes=4096)
            optimizer.register_comm_hook(state, hook)
            for _, _, x, y in part:
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
        results.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert len(kept_in(state)) > 0


def kept_in(state):
    """The numbers of all that the state has kept, by bucket."""
    kept = {}
    for index, value in state.memory._kept.items():
        fields = [f if isinstance(f, list) else [f] for f in vars(value).values()]
        kept[index] = [tensor.tolist() for field in fields for tensor in field]
    return kept


@needs_ranks
@pytest.mark.parametrize("kind", ["int8", "powersgd"])
def test_an_overflow_on_the_way_back_is_seen_by_all_and_does_not_stay(kind):
    """What a rank sends is finite, what comes of it is not: in the average with its error, or in the second factors."""
    state, hook = (Int8State(), int8_hook) if kind == "int8" else (PowerSGDState(1, 0, 1.0), powersgd_hook)
    param, optimizer = one_matrix(24, 30, hook, state)
    for _ in range(3):  # the plan stands then
        exchange(param, optimizer, torch.ones(24, 30))
        optimizer.step()
    (kept,) = state.memory._kept.values()
    if kind == "int8":
        kept.average.fill_(3e38)
    else:
        for q in kept.qs:
            q.mul_(1e-10)
    got = exchange(param, optimizer, torch.full((24, 30), 2e38))
    assert not got.isfinite().all()
    optimizer.step()
    assert exchange(param, optimizer, torch.ones(24, 30)).isfinite().all()


def test_arguments_that_are_refused():
    with pytest.raises(hvd.UsageError, match="must be 1 or more"):
        PowerSGDState(0)
    with pytest.raises(hvd.UsageError, match="must be 1 or more"):
        Int8State(block=0)


def trained_by(kind, steps=6, weigh=False, joins=False, **options):
    """The model, and what it should be: that of the same steps without a hook."""
    models = []
    for hooked in (True, False):
        model = network()
        optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.5), **options)
        if hooked:
            make, hook = HOOKS[kind]
            optimizer.register_comm_hook(make(), hook)
        mine = steps - 2 * (joins and hvd.rank() == 0)
        for number, (_, _, x, y) in enumerate(batches(steps)):
            if number == mine:
                break
            rows = len(x) - (hvd.rank() if weigh else 0)
            optimizer.zero_grad()
            if weigh:
                optimizer.weigh(rows)
            torch.nn.functional.cross_entropy(model(x[:rows]), y[:rows]).backward()
            optimizer.step()
        if joins:
            last = hvd.join()
            hvd.broadcast_parameters(model.parameters(), root_rank=last)
        models.append(model)
    return models


def far(model, other):
    return max(
        (p - q).abs().max().item() for p, q in zip(model.parameters(), other.parameters(), strict=True)
    )


# How far a training may go from that without a hook, as a share of its way.
SHARES = {
    "allreduce": 1e-4,
    "fp16": 0.01,
    "bf16": 0.1,
    "int8": 0.1,
    "int8 without feedback": 0.1,
    "powersgd cold": 2.0,
}


@needs_ranks
@pytest.mark.parametrize("how", ["weigh", "join"])
@every
def test_weighed_and_while_ranks_have_joined(kind, how):
    hooked, plain = trained_by(kind, weigh=how == "weigh", joins=how == "join")
    assert same_on_all_ranks(hooked.parameters())
    assert far(hooked, plain) < SHARES.get(kind, 0.9) * far(plain, network())


@needs_ranks
@every
def test_in_a_process_set(kind):
    """Of the last two ranks; the others step by themselves."""
    process_set = hvd.add_process_set(list(range(hvd.size()))[-2:])
    hooked, plain = trained_by(kind, process_set=process_set)
    share = SHARES.get(kind, 0.9) if process_set.included() else 1e-6
    assert far(hooked, plain) < share * far(plain, network())
    hvd.remove_process_set(process_set)
