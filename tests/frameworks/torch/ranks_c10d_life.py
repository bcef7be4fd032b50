"""From init_process_group to destroy_process_group and again, and torch's own backends beside ringdp's."""

import os
import socket

import pytest
import torch
import torch.distributed as dist

import ringdp.torch as hvd


@pytest.fixture(autouse=True)
def _ended():
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def works():
    tensor = torch.ones(3)
    dist.all_reduce(tensor)
    return (tensor == hvd.size()).all()


@pytest.mark.parametrize(
    "options",
    [{}, {"init_method": "ringdp://"}, {"init_method": "env://"}, {"backend": "cpu:ringdp"}],
    ids=str,
)
def test_begin_and_end_and_begin_again(options):
    for _ in range(3):
        dist.init_process_group(**{"backend": "ringdp"} | options)
        assert dist.get_backend() == options.get("backend", "ringdp") and dist.Backend.RINGDP == "ringdp"
        assert (dist.get_rank(), dist.get_world_size()) == (hvd.rank(), hvd.size())
        assert works()
        group = dist.new_group([hvd.size() - 1])
        if hvd.rank() == hvd.size() - 1:
            dist.barrier(group)
        dist.destroy_process_group()
        assert not dist.is_initialized()
    assert hvd.is_initialized()


def test_ringdp_is_shut_down_in_between():
    dist.init_process_group("ringdp")
    dist.new_group([0, hvd.size() - 1])
    assert works()
    hvd.shutdown()
    with pytest.raises(hvd.NotInitializedError):
        dist.all_reduce(torch.ones(1))
    dist.destroy_process_group()
    dist.init_process_group("ringdp")  # which initialises ringdp again
    assert hvd.is_initialized() and works()


def test_the_same_rank_and_size_may_be_said_and_others_not():
    dist.init_process_group("ringdp", rank=hvd.rank(), world_size=hvd.size())
    assert works()
    dist.destroy_process_group()
    text = rf"rank={hvd.size()}\): this is rank {hvd.rank()} of {hvd.size()}"
    with pytest.raises(hvd.UsageError, match=text):
        dist.init_process_group("ringdp", rank=hvd.size(), world_size=hvd.size())
    with pytest.raises(hvd.UsageError, match=rf"to ringdp it is rank {hvd.rank()} of {hvd.size()}"):
        dist.init_process_group("ringdp", store=dist.HashStore(), rank=0, world_size=hvd.size() + 1)


def free_port():
    """Of rank 0's host, on all ranks."""
    port = None
    if hvd.rank() == 0:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    return str(hvd.broadcast_object(port))


@pytest.mark.parametrize("backend", ["ringdp", "gloo", "cpu:gloo"])
def test_torchs_own_rendezvous_where_an_address_is_given(backend, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(ValueError, match="MASTER_PORT expected, but not set"):
        dist.init_process_group("ringdp", rank=hvd.rank(), world_size=hvd.size())
    monkeypatch.setenv("MASTER_PORT", free_port())
    dist.init_process_group(backend, rank=hvd.rank(), world_size=hvd.size())
    assert works() and dist.get_backend().lower() in (backend, "gloo")
    group = dist.new_group([hvd.size() - 1], backend="ringdp")
    if hvd.rank() == hvd.size() - 1:
        dist.barrier(group)
    hvd.barrier()  # rank 0 has the store: the others must not need it any more


@pytest.mark.parametrize("backend", ["gloo", "cpu:gloo", None])
def test_gloo_finds_its_ranks_over_mpi(backend):
    assert "MASTER_ADDR" not in os.environ
    for _ in range(2):
        dist.init_process_group(backend)
        assert works() and "gloo" in str(dist.distributed_c10d.get_backend_config())
        dist.monitored_barrier() if backend == "gloo" else dist.barrier()
        dist.destroy_process_group()


def test_backends_for_each_device_are_still_told_apart():
    if dist.is_nccl_available():
        pytest.skip("needs a build without NCCL: elsewhere this would need GPUs")
    # A rank that has got there closes gloo's connections, perhaps while another is still making them.
    with pytest.raises(RuntimeError, match="doesn't have NCCL built in|Gloo connectFullMesh failed"):
        dist.init_process_group("cpu:gloo,cuda:nccl")
    assert dist.Backend.default_device_backend_map["cpu"] == "gloo"


def test_what_torch_knows_of_the_group():
    dist.init_process_group("ringdp")
    group = dist.distributed_c10d._get_default_group()
    assert group.name() == "ringdp" and group.size() == hvd.size() and group.rank() == hvd.rank()
    assert group.group_name in dist.distributed_c10d._world.pg_names.values()
    assert group.group_desc == "default_pg"
    assert repr(group).startswith(f"<ringdp process group: torch.distributed group {group.group_name} (")
    assert dist.distributed_c10d._get_object_coll_device() == "cpu"


def test_what_went_with_shutdown_says_so(c10d):
    import ringdp.torch as hvd

    store = c10d.distributed_c10d._get_default_store()
    hvd.shutdown()
    hvd.init()
    with pytest.raises(
        hvd.NotInitializedError, match="destroy_process_group.. and init_process_group.. again"
    ):
        c10d.send(torch.ones(1), (c10d.get_rank() + 1) % max(2, c10d.get_world_size()))
    with pytest.raises(Exception, match="destroy_process_group.. and init_process_group.. again"):
        store.get("a key")
    c10d.destroy_process_group()
    c10d.init_process_group("ringdp")
    x = torch.ones(2)
    c10d.all_reduce(x)
    assert x.tolist() == [c10d.get_world_size()] * 2
