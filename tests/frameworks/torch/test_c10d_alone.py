"""A group of one rank, without MPI."""

import pytest
import torch
import torch.distributed as dist

import ringdp.torch as hvd


@pytest.fixture(autouse=True)
def _group():
    dist.init_process_group("ringdp")
    yield
    dist.destroy_process_group()


def test_every_collective_gives_what_it_got():
    given = torch.arange(6.0).view(2, 3)
    for call in (
        lambda t: dist.all_reduce(t),
        lambda t: dist.all_reduce(t, dist.ReduceOp.AVG),
        lambda t: dist.reduce(t, 0),
        lambda t: dist.broadcast(t, 0),
        lambda t: dist.all_gather([t], given),
        lambda t: dist.all_gather_into_tensor(t, given),
        lambda t: dist.gather(given, [t], 0),
        lambda t: dist.scatter(t, [given], 0),
        lambda t: dist.reduce_scatter(t, [given]),
        lambda t: dist.reduce_scatter_tensor(t, given),
        lambda t: dist.all_to_all([t], [given]),
        lambda t: dist.all_to_all_single(t, given),
    ):
        tensor = given.clone()
        call(tensor)
        assert torch.equal(tensor, given)
    dist.barrier()


def test_the_store_and_groups():
    store = dist.distributed_c10d._get_default_store()
    store.set("a", "1")
    assert store.get("a") == b"1" and store.add("n", 3) == 3
    with pytest.raises(hvd.DeadlineError, match="store has not got"):
        store.wait(["none"], dist.default_pg_timeout * 0)
    assert dist.get_world_size(dist.new_group([0])) == 1


def test_training():
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 1, bias=False))
    model(torch.tensor([[3.0, 4.0]])).sum().backward()
    assert torch.equal(model.module.weight.grad, torch.tensor([[3.0, 4.0]]))


def test_messages_need_mpi():
    with pytest.raises(hvd.UsageError, match="recv from any rank: only a job over MPI"):
        dist.recv(torch.ones(1))
