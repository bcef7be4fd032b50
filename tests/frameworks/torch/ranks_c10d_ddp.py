"""torch's DistributedDataParallel, its hooks, its Join context and its sharded optimizer over ringdp."""

import copy

import pytest
import torch
import torch.distributed as dist
from frameworks.torch.helpers import batches, network, same_on_all_ranks
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.algorithms.join import Join
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

import ringdp.torch as hvd

pytestmark = pytest.mark.usefixtures("c10d")

STEPS = 4


def train(model, steps, forward=None, optimizer=None):
    """Losses are means over a rank's rows, and all ranks have as many."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    for x, y in steps:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy((forward or model)(x), y).backward()
        optimizer.step()


def reference(optimizer=None):
    """One process with the batches of all ranks."""
    model = network()
    train(model, [(x, y) for x, y, _, _ in batches(STEPS)], optimizer=optimizer and optimizer(model))
    return model


def mine():
    return [(x, y) for _, _, x, y in batches(STEPS)]


def close(model, other, tolerance=1e-6):
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return all(torch.allclose(a, b, atol=tolerance, rtol=0) for a, b in pairs)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_as_bucket_view": True, "bucket_cap_mb": 0.004},
        {"find_unused_parameters": True},
        {"static_graph": True},
    ],
    ids=["plain", "small buckets", "unused", "static"],
)
def test_training_is_that_of_one_process(options):
    model = network(seed=hvd.rank())  # made the same by DDP
    if dist.get_rank() == 0:
        model = network()
    ddp = DistributedDataParallel(model, **options)
    train(ddp, mine())
    assert close(model, reference()) and same_on_all_ranks(model.parameters())


def test_gradients_are_exact_averages():
    n = dist.get_world_size()
    model = torch.nn.Linear(4, 3, bias=False)
    ddp = DistributedDataParallel(model)
    for step in range(3):
        model.zero_grad()
        rows = torch.arange(8.0).view(2, 4) + n * (dist.get_rank() + step)
        ddp(rows).sum().backward()
        # DDP multiplies by 1 / n before it adds, which is exact for powers of two only.
        wanted = sum((torch.arange(8.0).view(2, 4) + n * (r + step)).sum(0) / n for r in range(n))
        exact = n & (n - 1) == 0
        assert torch.allclose(model.weight.grad, wanted.expand(3, 4), atol=0, rtol=0 if exact else 1e-6)


def test_no_sync_and_buffers():
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    ddp = DistributedDataParallel(model)
    rows = torch.randn(5, 4, generator=torch.Generator().manual_seed(dist.get_rank()))
    with ddp.no_sync():
        ddp(rows).square().sum().backward()
    assert not same_on_all_ranks([p.grad for p in model.parameters()])
    ddp(rows).square().sum().backward()
    assert same_on_all_ranks([p.grad for p in model.parameters()])
    ddp(rows)  # buffers of rank 0 come before a pass
    before = [b.clone() for b in model.buffers()]
    assert not same_on_all_ranks(before)
    model.eval()
    with torch.no_grad():
        model.train()
        DistributedDataParallel(model)
    assert same_on_all_ranks(list(model.buffers()))


@pytest.mark.parametrize(
    ("hook", "tolerance"),
    [(default_hooks.allreduce_hook, 1e-6), (default_hooks.fp16_compress_hook, 1e-2)],
    ids=["allreduce", "fp16"],
)
def test_communication_hooks(hook, tolerance):
    model = network()
    ddp = DistributedDataParallel(model)
    ddp.register_comm_hook(None, hook)
    train(ddp, mine())
    assert close(model, reference(), tolerance) and same_on_all_ranks(model.parameters())


def test_powersgd_exchanges_in_callbacks_of_futures():
    model = network()
    ddp = DistributedDataParallel(model, bucket_cap_mb=0.004)
    state = powerSGD_hook.PowerSGDState(
        None, matrix_approximation_rank=1, start_powerSGD_iter=2, min_compression_rate=1
    )
    ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    start = [p.detach().clone() for p in model.parameters()]
    train(ddp, mine())
    assert same_on_all_ranks(model.parameters())
    assert all((a != b).any() for a, b in zip(start, model.parameters(), strict=True))


def test_sparse_gradients():
    model = torch.nn.Embedding(dist.get_world_size() + 1, 2, sparse=True)
    torch.nn.init.zeros_(model.weight)
    ddp = DistributedDataParallel(model)
    for _ in range(2):
        model.zero_grad()
        ddp(torch.tensor([dist.get_rank(), dist.get_world_size()])).sum().backward()
        n = dist.get_world_size()
        assert model.weight.grad.is_sparse
        wanted = torch.tensor([[1.0 / n] * 2] * n + [[1.0] * 2])
        assert torch.equal(model.weight.grad.to_dense(), wanted)


def test_join_with_uneven_inputs():
    """Rank r has r + 1 batches: the others' sums are divided by all ranks."""
    n, rank = dist.get_world_size(), dist.get_rank()
    model = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with Join([ddp]):
        for step in range(rank + 1):
            optimizer.zero_grad()
            ddp(torch.full((1, 2), float(n * (step + 1)))).sum().backward()
            optimizer.step()
    # In step s, n - s ranks contribute n (s + 1) each.
    assert torch.equal(model.weight, torch.full((1, 2), -float(sum((n - s) * (s + 1) for s in range(n)))))


def test_sharded_optimizer():
    def adam(model):
        return torch.optim.Adam(model.parameters(), lr=0.01)

    model = network()
    ddp = DistributedDataParallel(model)
    optimizer = ZeroRedundancyOptimizer(ddp.parameters(), torch.optim.Adam, lr=0.01)
    train(ddp, mine(), optimizer=optimizer)
    # Adam's first steps divide by gradients that may be nearly 0.
    assert close(model, reference(adam), 1e-4) and same_on_all_ranks(model.parameters())


def test_sync_batch_norm_inside_ddp():
    model = network()
    model.insert(1, hvd.SyncBatchNorm(4))
    one = copy.deepcopy(model)
    one[1] = torch.nn.BatchNorm2d(4)
    ddp = DistributedDataParallel(model)
    train(ddp, mine())
    train(one, [(x, y) for x, y, _, _ in batches(STEPS)])
    assert close(model, one, 1e-4) and same_on_all_ranks(model.parameters())


def test_an_error_in_the_exchange_comes_out_of_backward():
    model = torch.nn.Linear(4, 3)
    ddp = DistributedDataParallel(model)
    loss = ddp(torch.ones(1, 4)).sum()
    if dist.get_rank() == 0:
        with pytest.raises(hvd.MismatchError, match="torch.distributed group 0"):
            dist.broadcast(torch.ones(3), 0)  # what nobody else calls
    else:
        with pytest.raises(RuntimeError, match="'torch.distributed group 0 .* differs between ranks"):
            loss.backward()
