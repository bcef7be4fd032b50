"""`DistributedOptimizer(op=Adasum)`: local steps, whose differences are combined."""

import copy
import math

import pytest
import torch

import ringdp.torch as hvd


@pytest.fixture(autouse=True)
def _power_of_two(_job):
    if hvd.size() & (hvd.size() - 1):
        with pytest.raises(hvd.UsageError, match="op=Adasum needs a power of two of ranks"):
            hvd.DistributedOptimizer(sgd(model().parameters()), op=hvd.Adasum)
        pytest.skip("needs a power of two of ranks")


def model():
    torch.manual_seed(5)
    return torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2))


def data(rank, step):
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(10 * step + rank))


def adasum(a, b):
    a, b = a.double(), b.double()
    ab, aa, bb = (a * b).sum(), (a * a).sum(), (b * b).sum()
    return ((1 - ab / (2 * aa) if aa else 1) * a + (1 - ab / (2 * bb) if bb else 1) * b).float()


def combined(steps):
    while len(steps) > 1:
        steps = [adasum(a, b) for a, b in zip(steps[::2], steps[1::2], strict=True)]
    return steps[0]


def sgd(params):
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def adamw(params):
    return torch.optim.AdamW(params, lr=0.01)


@pytest.mark.parametrize("make", [sgd, adamw])
@pytest.mark.parametrize("passes", [1, 2])
def test_it_is_what_one_process_computes(make, passes):
    net = model()
    optimizer = hvd.DistributedOptimizer(
        make(net.parameters()), net.named_parameters(), op=hvd.Adasum, backward_passes_per_step=passes
    )
    alone = [model() for _ in range(hvd.size())]  # each rank's optimizer, all in this process
    optimizers = [make(one.parameters()) for one in alone]
    for step in range(4):
        optimizer.zero_grad()
        for p in range(passes):
            net(data(hvd.rank(), step + 100 * p)).square().mean().backward()
        optimizer.step()
        steps = []
        for rank, (one, its) in enumerate(zip(alone, optimizers, strict=True)):
            start = [p.detach().clone() for p in one.parameters()]
            its.zero_grad()
            for p in range(passes):
                one(data(rank, step + 100 * p)).square().mean().backward()
            its.step()
            steps.append([p.detach() - s for p, s in zip(one.parameters(), start, strict=True)])
        for i, params in enumerate(zip(*(one.parameters() for one in alone), strict=True)):
            new = start[i] + combined([of_rank[i] for of_rank in steps])
            for p in params:
                p.data.copy_(new)
    for got, want in zip(net.parameters(), alone[0].parameters(), strict=True):
        assert torch.allclose(got, want, rtol=1e-5, atol=1e-7)
        bits = hvd.allgather(got.detach().reshape(1, -1))
        assert (bits == bits[0]).all()


def test_an_overflow_on_one_rank_skips_the_step_on_all():
    net = model()
    optimizer = hvd.DistributedOptimizer(sgd(net.parameters()), net.named_parameters(), op=hvd.Adasum)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for step, bad_rank in enumerate([None, hvd.size() - 1, None]):
        before = [p.detach().clone() for p in net.parameters()]
        scale = scaler.get_scale()
        optimizer.zero_grad()
        loss = net(data(hvd.rank(), step)).square().mean()
        scaler.scale(loss * (math.inf if hvd.rank() == bad_rank else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
        moved = any((p != b).any() for p, b in zip(net.parameters(), before, strict=True))
        assert moved == (bad_rank is None)
        assert scaler.get_scale() == (scale if bad_rank is None else scale / 2)
    sums = torch.stack([p.detach().double().sum() for p in net.parameters()])
    assert (hvd.allreduce(sums, op=hvd.Max) == sums).all()


def test_compression_schedulers_and_copies():
    net = model()
    optimizer = hvd.DistributedOptimizer(
        sgd(net.parameters()), net.named_parameters(), hvd.Compression.bf16, op=hvd.Adasum
    )
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    net(data(hvd.rank(), 0)).sum().backward()
    with optimizer.no_sync():
        optimizer.synchronize()
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    assert type(copy.deepcopy(optimizer)) is torch.optim.SGD
    for refused in (lambda: optimizer.weigh(3), lambda: optimizer.register_comm_hook(None, print)):
        with pytest.raises(hvd.UsageError, match="op=Adasum"):
            refused()
