"""Functional collectives over ringdp, in eager mode and inside the graph of torch.compile."""

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import torch.distributed.nn.functional as differentiable
from frameworks.torch.helpers import network
from torch.nn.parallel import DistributedDataParallel

import ringdp.torch as hvd

pytestmark = pytest.mark.usefixtures("c10d")


def several(x):
    """From x of rank r, shape (n, 2): n times the sum over the ranks of 2 x, and 1, in all rows."""
    doubled = x * 2
    dist.all_reduce(doubled)
    rows = functional.all_gather_tensor(doubled, 0, dist.group.WORLD)
    mine = functional.reduce_scatter_tensor(rows, "sum", 0, dist.group.WORLD)
    whole = torch.empty_like(rows)
    dist.all_gather_into_tensor(whole, mine)
    return whole + 1


def wanted():
    n = dist.get_world_size()
    doubled = sum(2 * given(r) for r in range(n))
    return n * doubled.repeat(n, 1) + 1


def given(rank):
    return torch.arange(2.0 * dist.get_world_size()).view(-1, 2) + rank


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_several_collectives_one_after_the_other(compiled):
    torch._dynamo.reset()
    function = torch.compile(several, fullgraph=True, backend="aot_eager") if compiled else several
    for _ in range(2):
        assert torch.equal(function(given(dist.get_rank())), wanted())


def test_a_tensor_that_waits_when_it_is_used_goes_into_any_collective():
    n = dist.get_world_size()
    waits = functional.all_reduce(torch.ones(3), "sum", dist.group.WORLD)
    assert type(waits) is functional.AsyncCollectiveTensor
    dist.all_reduce(waits)
    assert torch.equal(waits + 0, torch.full((3,), float(n * n)))
    permuted = functional.all_to_all_single(torch.arange(float(n)), [1] * n, [1] * n, dist.group.WORLD)
    assert torch.equal(permuted + 0, torch.full((n,), float(dist.get_rank())))
    assert torch.equal(
        functional.broadcast(torch.tensor([float(dist.get_rank())]), n - 1, dist.group.WORLD) + 0,
        torch.tensor([n - 1.0]),
    )


def test_a_compiled_model_in_ddp():
    torch._dynamo.reset()
    models = [network(), network()]
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(dist.get_rank()))
    plain, other = (DistributedDataParallel(model) for model in models)
    plain(x).square().sum().backward()
    torch.compile(other, backend="aot_eager")(x).square().sum().backward()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-5)


def test_gradients_flow_through_the_collectives_of_torch_distributed_nn():
    n = dist.get_world_size()
    x = torch.ones(3, requires_grad=True)
    (differentiable.all_reduce(x) * (dist.get_rank() + 1)).sum().backward()
    assert torch.equal(x.grad, torch.full((3,), n * (n + 1) / 2))
    y = torch.ones(2, requires_grad=True)
    torch.stack(differentiable.all_gather(y)).sum().backward()
    assert torch.equal(y.grad, torch.full((2,), float(n)))


def test_tensors_without_numbers_of_their_own_are_refused():
    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    tensor = dist.tensor.DTensor.from_local(torch.ones(2, 2), mesh)
    for call in (dist.all_reduce, hvd.allreduce, hvd.allreduce_):
        with pytest.raises(TypeError, match=r"DTensor, which has no numbers of its own: .* to_local\(\)"):
            call(tensor)
