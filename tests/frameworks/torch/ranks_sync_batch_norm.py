"""SyncBatchNorm: the ranks' batches together give what one process gets from the joined batch."""

import copy

import pytest
import torch
from torch import nn

import ringdp.torch as hvd
from ringdp.torch import sync_batch_norm
from ringdp.torch.ops import operations

CHANNELS = 3
TORCHS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def rows(rank):
    """Batches of different sizes; that of rank 1 may be made empty by the tests."""
    return 3 + 2 * rank


def joined(dimensions, dtype=torch.float32, sizes=None, seed=0):
    """(the joined input, a gradient for its output, this rank's rows of them)."""
    sizes = [rows(r) for r in range(hvd.size())] if sizes is None else sizes
    generator = torch.Generator().manual_seed(seed)
    shape = (sum(sizes), CHANNELS, *(4, 2, 3)[: dimensions - 2])
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 3 + 5
    up = torch.randn(shape, generator=generator, dtype=torch.float64)
    start = sum(sizes[: hvd.rank()])
    return x.to(dtype), up.to(dtype), slice(start, start + sizes[hvd.rank()])


def pair(dimensions, dtype=torch.float32, **options):
    """(torch's BatchNorm, ours) with the same parameters."""
    theirs = TORCHS[dimensions](CHANNELS, **options).to(dtype)
    ours = hvd.SyncBatchNorm(CHANNELS, **options).to(dtype)
    if theirs.affine:
        with torch.no_grad():
            for module in (theirs, ours):
                module.weight.copy_(torch.tensor([0.5, -2, 3]))
                module.bias.copy_(torch.tensor([1.0, 0, -4]))
    return theirs, ours


def run(module, x, up):
    x = x.clone().requires_grad_()
    y = module(x)
    y.backward(up)
    return y.detach(), x.grad


def check(theirs, ours, x, up, mine, **close):
    """One training pass of both."""
    y, gradient = run(theirs, x, up)
    our_y, our_gradient = run(ours, x[mine], up[mine])
    assert our_y.dtype == y.dtype and our_gradient.dtype == gradient.dtype
    torch.testing.assert_close(our_y, y[mine], **close)
    torch.testing.assert_close(our_gradient, gradient[mine], **close)
    for name, parameter in theirs.named_parameters():
        total = hvd.allreduce(ours.get_parameter(name).grad, op=hvd.Sum)
        torch.testing.assert_close(total, parameter.grad, **close)
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer, **close)


FLOAT64 = {"rtol": 1e-12, "atol": 1e-12}
FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.shows("SyncBatchNormalization", "torch", "eager")
@pytest.mark.parametrize("dimensions", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": None},
        {"affine": False},
        {"track_running_stats": False},
        {"eps": 0.1, "momentum": 0.5},
    ],
    ids=["default", "cumulative", "plain", "untracked", "other"],
)
def test_equal_to_the_joined_batch(dimensions, options):
    theirs, ours = pair(dimensions, torch.float64, **options)
    for seed in range(3):
        check(theirs, ours, *joined(dimensions, torch.float64, seed=seed), **FLOAT64)
    x, _, mine = joined(dimensions, torch.float64, seed=9)
    if ours.track_running_stats:
        torch.testing.assert_close(ours.eval()(x[mine]), theirs.eval()(x)[mine], **FLOAT64)


def test_float32():
    theirs, ours = pair(4)
    check(theirs, ours, *joined(4), **FLOAT32)


def test_16_bits_are_computed_with_in_float32():
    for dtype, close in ((torch.bfloat16, 0.05), (torch.float16, 0.01)):
        theirs, ours = pair(4)
        x, up, mine = joined(4, dtype)
        y, gradient = run(ours, x[mine], up[mine])
        y_32, gradient_32 = run(theirs, x.float(), up.float())
        assert y.dtype == gradient.dtype == dtype and ours.weight.grad.dtype == torch.float32
        torch.testing.assert_close(y.float(), y_32[mine], rtol=close, atol=close)
        torch.testing.assert_close(gradient.float(), gradient_32[mine], rtol=close, atol=close)
        torch.testing.assert_close(ours.running_var, theirs.running_var, **FLOAT32)


def test_a_rank_with_an_empty_batch():
    sizes = [rows(r) for r in range(hvd.size())]
    sizes[-1] = 0
    theirs, ours = pair(4, torch.float64)
    check(theirs, ours, *joined(4, torch.float64, sizes), **FLOAT64)


def test_one_value_a_rank_is_enough_but_one_in_all_is_not():
    if hvd.size() > 1:
        theirs, ours = pair(2, torch.float64)
        check(theirs, ours, *joined(2, torch.float64, [1] * hvd.size()), **FLOAT64)
        with pytest.raises(hvd.UsageError, match="at least two values per channel"):
            ours(torch.ones(int(hvd.rank() == 0), CHANNELS))


def test_large_means_do_not_cancel():
    theirs, ours = pair(4, torch.float64)
    x, up, mine = joined(4)
    x = (x / 1000 + 4000).float()  # of float32: squares would have no digit of the variance left
    y, _ = run(theirs, x.double(), up.double())
    torch.testing.assert_close(run(ours.float(), x[mine], up[mine])[0], y[mine].float(), rtol=1e-5, atol=1e-5)


def test_channels_last_stays():
    theirs, ours = pair(4, torch.float64)
    x, up, mine = joined(4, torch.float64)
    x, part = (t.contiguous(memory_format=torch.channels_last) for t in (x, x[mine]))
    part.requires_grad_()
    y = ours(part)
    y.backward(up[mine])
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert part.grad.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, theirs(x)[mine], **FLOAT64)


def test_no_grad_and_autocast():
    theirs, ours = pair(4)
    x, _, mine = joined(4)
    with torch.no_grad():
        torch.testing.assert_close(ours(x[mine]), theirs(x)[mine], **FLOAT32)
    torch.testing.assert_close(ours.running_var, theirs.running_var, **FLOAT32)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x[mine].bfloat16()).dtype == theirs(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.host_only  # the number of values goes by itself there
def test_one_exchange_forward_and_one_backward(monkeypatch):
    calls = []
    for name in ("allgather", "allreduce_"):
        call = getattr(operations, name)

        def counted(tensor, *args, call=call, name=name, **options):
            calls.append((name, tensor.numel()))
            return call(tensor, *args, **options)

        monkeypatch.setattr(sync_batch_norm.operations, name, counted)
    _, ours = pair(4)
    x, up, mine = joined(4)
    run(ours, x[mine], up[mine])
    size = 2 * CHANNELS
    assert calls == ([("allgather", size + 1), ("allreduce_", size)] if hvd.size() > 1 else [])
    calls.clear()
    ours(x[mine]).backward(up[mine])  # the input wants no gradient: those of weight and bias are local
    ours.eval()(x[mine])
    assert calls == ([("allgather", size + 1)] if hvd.size() > 1 else [])


def test_same_bits_on_all_ranks_and_each_time():
    results = []
    for _ in range(2):
        _, ours = pair(4)
        x, up, mine = joined(4)
        run(ours, x[mine], up[mine])
        results.append((ours.running_mean.tolist(), ours.running_var.tolist()))
    assert results[0] == results[1]
    assert all(theirs == results for theirs in hvd.allgather_object(results))


def test_process_set():
    sets = [hvd.add_process_set([r]) for r in range(hvd.size())]
    pairs = hvd.add_process_set([0, hvd.size() - 1] if hvd.size() > 1 else [0])
    try:
        alone = hvd.SyncBatchNorm(CHANNELS, process_set=sets[hvd.rank()]).double()
        x, _, mine = joined(4, torch.float64)
        torch.testing.assert_close(alone(x[mine]), nn.BatchNorm2d(CHANNELS).double()(x[mine]), **FLOAT64)
        if pairs.included():
            ours = copy.deepcopy(hvd.SyncBatchNorm(CHANNELS, process_set=pairs).double())
            assert ours.process_set is pairs
            of = [joined(4, torch.float64)[0]]
            sizes = [rows(r) for r in range(hvd.size())]
            ends = [slice(0, sizes[0]), slice(sum(sizes[:-1]), sum(sizes))]
            both = torch.cat([of[0][part] for part in ends[: pairs.size()]])
            expected = nn.BatchNorm2d(CHANNELS).double()(both)
            part = expected[: sizes[0]] if hvd.rank() == 0 else expected[sizes[0] :]
            torch.testing.assert_close(ours(x[mine]), part, **FLOAT64)
    finally:
        for one in (*sets, pairs):
            hvd.remove_process_set(one)


def network():
    torch.manual_seed(1)
    shared = nn.BatchNorm1d(8)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8), shared, nn.Tanh(),
        nn.Sequential(nn.Linear(8, 8), shared),
    )  # fmt: skip


def test_converted_networks_train_as_one_process_with_the_joined_batch():
    whole, mine = network().double(), network().double()
    parameters = list(mine.parameters())
    assert hvd.convert_sync_batchnorm(mine) is mine
    assert [id(p) for p in mine.parameters()] == [id(p) for p in parameters]
    assert isinstance(mine[1], hvd.SyncBatchNorm) and mine[5] is mine[7][1]
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(mine.parameters(), lr=0.1))
    reference = torch.optim.SGD(whole.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(3)
    for _ in range(4):
        x = torch.randn(4 * hvd.size(), 1, 8, 8, generator=generator, dtype=torch.float64)
        part = x[4 * hvd.rank() : 4 * hvd.rank() + 4]
        for model, batch, steps in ((whole, x, reference), (mine, part, optimizer)):
            steps.zero_grad()
            (model(batch) - 1).pow(2).mean().backward()
            steps.step()
    for (name, theirs), ours in zip(whole.state_dict().items(), mine.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=name)


def test_conversion_takes_over_what_was_set():
    old = nn.BatchNorm1d(2, eps=0.5, momentum=None, affine=False, track_running_stats=False).eval()
    new = hvd.SyncBatchNorm.convert_sync_batchnorm(old)
    assert (new.eps, new.momentum, new.affine, new.weight) == (0.5, None, False, None)
    assert (new.track_running_stats, new.running_mean, new.training) == (False, None, False)
    with pytest.raises(hvd.UsageError, match="call the model once first"):
        hvd.convert_sync_batchnorm(nn.Sequential(nn.LazyBatchNorm1d()))


def test_shapes_that_are_refused():
    with pytest.raises(ValueError, match="needs \\(batch, channels"):
        hvd.SyncBatchNorm(3)(torch.ones(3))
    with pytest.raises(ValueError, match="has 3 channels, the input 4"):
        hvd.SyncBatchNorm(3)(torch.ones(2, 4))
