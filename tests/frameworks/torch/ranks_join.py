"""`join()` with optimizers: ranks whose data end sooner."""

import math

import pytest
import torch

import ringdp.torch as hvd


def model():
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))


def batches(rank, count):
    generator = torch.Generator().manual_seed(100 + rank)
    return [torch.randint(-4, 5, (4, 4), generator=generator).float() for _ in range(count)]


def loss_of(net, x):
    return net(x).square().mean()


def length(rank):
    """Steps of each rank: the last one has most."""
    return 2 + 2 * rank


def reference(divide_by, make):
    """One process that averages the gradients of the ranks that still have data, by hand."""
    net = model()
    optimizer = make(net.parameters())
    data = [batches(rank, length(rank)) for rank in range(hvd.size())]
    for step in range(length(hvd.size() - 1)):
        total = None
        active = [rank for rank in range(hvd.size()) if step < length(rank)]
        for rank in active:
            net.zero_grad()
            loss_of(net, data[rank][step]).backward()
            grads = [p.grad.double() for p in net.parameters()]
            total = grads if total is None else [a + b for a, b in zip(total, grads, strict=True)]
        by = hvd.size() if divide_by == "all" else len(active)
        for p, g in zip(net.parameters(), total, strict=True):
            p.grad = (g / by).float()
        optimizer.step()
    return [p.detach() for p in net.parameters()]


def sgd(params):
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


@pytest.mark.shows("join", "torch", "eager")
@pytest.mark.parametrize("bucket_bytes", [64, 1 << 20])
@pytest.mark.parametrize("divide_by", ["all", "active"])
def test_training_on_uneven_data(divide_by, bucket_bytes):
    net = model()
    optimizer = hvd.DistributedOptimizer(
        sgd(net.parameters()), net.named_parameters(), bucket_bytes=bucket_bytes
    )
    for x in batches(hvd.rank(), length(hvd.rank())):
        optimizer.zero_grad()
        loss = loss_of(net, x)
        loss.backward()
        hvd.allreduce(loss.detach())  # an unnamed operation of the training loop
        optimizer.step()
    last = hvd.join(divide_by=divide_by)
    assert last == hvd.size() - 1
    hvd.broadcast_parameters(net.state_dict(), root_rank=last)
    hvd.broadcast_optimizer_state(optimizer, root_rank=last)
    for got, want in zip(net.parameters(), reference(divide_by, sgd), strict=True):
        assert torch.allclose(got, want, rtol=1e-5, atol=1e-7)
    # And on with the next epoch, in which all ranks have as much again.
    before = [p.detach().clone() for p in net.parameters()]
    optimizer.zero_grad()
    loss_of(net, batches(0, 1)[0]).backward()
    optimizer.step()
    assert any((p != b).any() for p, b in zip(net.parameters(), before, strict=True))
    sums = hvd.allreduce(torch.stack([p.detach().double().sum() for p in net.parameters()]), op=hvd.Max)
    assert (sums == torch.stack([p.detach().double().sum() for p in net.parameters()])).all()


def test_buffers_of_a_model_whose_first_rank_has_joined():
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    optimizer = hvd.DistributedOptimizer(sgd(net.parameters()), model=net)
    means = []
    net[1].register_forward_pre_hook(lambda norm, _: means.append(norm.running_mean.tolist()))
    for _ in range(2):  # and once more after all have joined
        steps = length(hvd.rank())
        for x in batches(hvd.rank(), steps):
            optimizer.zero_grad()
            loss_of(net, x).backward()
            optimizer.step()
        last = hvd.join()
        hvd.broadcast_parameters(net.state_dict(), root_rank=last)
    # At each forward those that go on have the same buffers.
    seen = hvd.allgather_object(means)
    assert len(seen[-1]) == 2 * length(hvd.size() - 1)
    for rank in range(1, hvd.size()):
        assert seen[rank][: length(rank)] == seen[-1][: length(rank)]
        assert seen[rank][length(rank) :] == seen[-1][length(hvd.size() - 1) :][: length(rank)]


def test_two_optimizers_used_in_turn():
    torch.manual_seed(1)
    nets = [torch.nn.Linear(3, 2), torch.nn.Linear(5, 1)]
    optimizers = [
        hvd.DistributedOptimizer(torch.optim.SGD(net.parameters(), lr=0.5), net.named_parameters())
        for net in nets
    ]
    for step in range(length(hvd.rank())):
        for net, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad()
            net(torch.full((1, net.in_features), float(step))).sum().backward()
            optimizer.step()
    assert hvd.join() == hvd.size() - 1
    for epoch in range(2):
        for net, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad()
            net(torch.ones(1, net.in_features)).sum().backward()
            assert (net.weight.grad == 1).all()
            optimizer.step()
        if epoch == 0:
            hvd.join()


def test_weights_count_what_is_there():
    net = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.zeros_(net.weight)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(net.parameters(), lr=1.0), net.named_parameters())
    steps = 1 + hvd.rank()
    for step in range(steps):
        optimizer.zero_grad()
        optimizer.weigh(2)
        (net(torch.full((2, 2), 4.0 * (1 + hvd.rank())))).mean().backward()
        active = [rank for rank in range(hvd.size()) if step < 1 + rank]
        want = sum(4.0 * (1 + rank) for rank in active) / len(active)
        assert torch.allclose(net.weight.grad, torch.full((1, 2), want))
        optimizer.step()
    hvd.join()


def test_gradients_that_one_rank_alone_has():
    net = torch.nn.ModuleList([torch.nn.Linear(2, 1, bias=False) for _ in range(3)])
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(net.parameters(), lr=1.0), net.named_parameters())
    for step in range(1 + hvd.rank()):
        optimizer.zero_grad()
        net[step % 2](torch.ones(1, 2)).sum().backward()
        optimizer.synchronize()
        active = hvd.size() - step
        assert (net[step % 2].weight.grad == torch.tensor(1.0) * active / hvd.size()).all()
        assert net[2].weight.grad is None
        optimizer.step()
    hvd.join()
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("op", [hvd.Min, hvd.Max, hvd.Product], ids=lambda op: op.name)
def test_other_operations_than_sums(op):
    """Rank r's gradient is r + 2 everywhere, and in the next parameter its negative."""
    net = torch.nn.ModuleList([torch.nn.Linear(3, 1, bias=False) for _ in range(2)])
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(net.parameters(), lr=0.5), net.named_parameters(), op=op
    )
    combine = {hvd.Min: min, hvd.Max: max, hvd.Product: math.prod}[op]
    for step in range(1 + hvd.rank()):
        optimizer.zero_grad()
        mine = hvd.rank() + 2.0
        (net[0](torch.full((1, 3), mine)) + net[1](torch.full((1, 3), -mine))).sum().backward()
        active = [rank + 2.0 for rank in range(hvd.size()) if step <= rank]
        assert (net[0].weight.grad == combine(active)).all()
        assert (net[1].weight.grad == combine([-n for n in active])).all()
        optimizer.step()
    hvd.join()


def test_groups_while_some_have_joined():
    """A rank that has joined knows of a group only what the others tell it."""
    for step in range(1 + hvd.rank()):
        active = [rank for rank in range(hvd.size()) if rank >= step]
        tensors = [torch.full((n,), float(hvd.rank() + 1)) for n in (3, 70_000)]
        sums = hvd.grouped_allreduce(tensors, op=hvd.Sum, name="group")
        assert all((total == sum(rank + 1 for rank in active)).all() for total in sums)
        gathered = hvd.grouped_allgather([t[:2] for t in tensors])
        assert all(rows.tolist() == [rank + 1 for rank in active for _ in range(2)] for rows in gathered)
    hvd.join()
