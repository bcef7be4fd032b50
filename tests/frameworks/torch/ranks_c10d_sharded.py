"""Device meshes, DTensor, FSDP2 and checkpoints of torch.distributed over ringdp."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from frameworks.torch.helpers import batches, network, same_on_all_ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

pytestmark = pytest.mark.usefixtures("c10d")


def mesh():
    return init_device_mesh("cpu", (dist.get_world_size(),))


def grid():
    """Two ranks in a row where their number is even, else one."""
    n = dist.get_world_size()
    across = 2 if n % 2 == 0 else 1
    return init_device_mesh("cpu", (n // across, across), mesh_dim_names=("down", "across"))


def test_a_mesh_of_two_dimensions():
    both = grid()
    rows, columns = both.shape
    rank = dist.get_rank()
    for name, ranks in [
        ("down", [r * columns + rank % columns for r in range(rows)]),
        ("across", [rank // columns * columns + c for c in range(columns)]),
    ]:
        group = both.get_group(name)
        assert dist.get_process_group_ranks(group) == ranks
        tensor = torch.tensor([10.0**rank])
        dist.all_reduce(tensor, group=group)
        assert tensor.item() == sum(10.0**r for r in ranks)


def test_distributed_tensors_change_their_placement():
    n, rank = dist.get_world_size(), dist.get_rank()
    whole = torch.arange(float(n * 2 * 3 * n)).view(2 * n, 3 * n)
    tensor = distribute_tensor(whole, mesh(), [Shard(0)])
    assert torch.equal(tensor.to_local(), whole[2 * rank : 2 * rank + 2])
    assert torch.equal(
        tensor.redistribute(placements=[Shard(1)]).to_local(), whole[:, 3 * rank : 3 * rank + 3]
    )
    assert torch.equal(tensor.full_tensor(), whole)
    partial = DTensor.from_local(whole, mesh(), [Partial()])
    assert torch.equal(partial.redistribute(placements=[Replicate()]).to_local(), whole * n)
    assert torch.equal(
        partial.redistribute(placements=[Shard(0)]).to_local(), whole[2 * rank : 2 * rank + 2] * n
    )
    assert torch.equal((tensor.t() @ tensor).full_tensor(), whole.t() @ whole)
    assert tensor.sum().full_tensor().item() == whole.sum().item()


def test_rows_that_do_not_divide_evenly():
    whole = torch.arange(float(2 * dist.get_world_size() + 1)).view(-1, 1)
    tensor = distribute_tensor(whole, mesh(), [Shard(0)])
    assert torch.equal(tensor.full_tensor(), whole)
    assert torch.equal((tensor + tensor).redistribute(placements=[Replicate()]).to_local(), 2 * whole)


def layers():
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 4))


def test_tensor_parallel():
    model = layers()
    one = copy.deepcopy(model)
    parallelize_module(model, mesh(), {"0": ColwiseParallel(), "2": RowwiseParallel()})
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(3))
    model(x).square().sum().backward()
    one(x).square().sum().backward()
    for a, b in zip(model.parameters(), one.parameters(), strict=True):
        assert torch.allclose(a.grad.full_tensor(), b.grad, atol=1e-5)


def shard(model, **options):
    for layer in model:
        if any(True for _ in layer.parameters()):
            fully_shard(layer, **options)
    return fully_shard(model, **options)


def train(model, steps):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, eps=1e-3)
    for x, y in steps:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def whole(model):
    return [p.full_tensor() if isinstance(p, DTensor) else p.detach() for p in model.parameters()]


@pytest.mark.parametrize("two_dimensions", [False, True], ids=["one dimension", "hybrid"])
def test_fully_sharded_training_is_that_of_one_process(two_dimensions):
    one, model = network(), network()
    shard(model, mesh=grid() if two_dimensions else mesh())
    train(model, [(x, y) for _, _, x, y in batches(4)])
    train(one, [(x, y) for x, y, _, _ in batches(4)])
    assert all(isinstance(p, DTensor) for p in model.parameters())
    for a, b in zip(whole(model), whole(one), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert same_on_all_ranks(whole(model))


def test_fully_sharded_gradients_are_exact():
    n, rank = dist.get_world_size(), dist.get_rank()
    model = torch.nn.Linear(4, 2 * n, bias=False)
    fully_shard(model, mesh=mesh())
    rows = torch.arange(8.0).view(2, 4)
    model(rows + n * rank).sum().backward()
    wanted = sum((rows + n * r).sum(0) for r in range(n)) / n
    assert torch.equal(model.weight.grad.full_tensor(), wanted.expand(2 * n, 4))


def test_the_older_fsdp_too():
    one, model = network(), network()
    sharded = FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)
    train(sharded, [(x, y) for _, _, x, y in batches(4)])
    train(one, [(x, y) for x, y, _, _ in batches(4)])
    with FullyShardedDataParallel.summon_full_params(sharded):
        for a, b in zip(sharded.parameters(), one.parameters(), strict=True):
            assert torch.allclose(a, b, atol=1e-5)


def test_clipping_the_norm_of_sharded_gradients():
    n = dist.get_world_size()
    model = torch.nn.Linear(4, n, bias=False)
    fully_shard(model, mesh=mesh())
    model(torch.ones(1, 4)).sum().backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert norm.full_tensor().item() == pytest.approx((4 * n) ** 0.5)


def test_checkpoints_of_sharded_models(tmp_path):
    folder = [str(tmp_path)]
    dist.broadcast_object_list(folder)
    model, other = network(), network(seed=5)
    shard(model, mesh=mesh())
    shard(other, mesh=mesh())
    checkpoint.save(model.state_dict(), checkpoint_id=folder[0])
    state = other.state_dict()
    checkpoint.load(state, checkpoint_id=folder[0])
    other.load_state_dict(state)
    for a, b in zip(whole(model), whole(other), strict=True):
        assert torch.equal(a, b)
