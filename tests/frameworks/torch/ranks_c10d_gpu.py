"""torch.distributed over ringdp with tensors on GPUs: which stream waits for what, and when."""

import threading
import time

import pytest
import torch
import torch.distributed as dist

from ringdp.torch import device
from ringdp.torch.distributed.futures import Future

pytestmark = [pytest.mark.usefixtures("c10d"), pytest.mark.mixed]

COUNT = 3000


def on_gpu(tensor):
    from standin import torch_on_gpu

    return torch_on_gpu.on_gpu(tensor)


def mine(rank=None):
    return torch.arange(float(COUNT)) + (dist.get_rank() if rank is None else rank)


def total():
    return sum(mine(r) for r in range(dist.get_world_size())).tolist()


def other_stream():
    """With nothing to do."""
    from standin import torch_on_gpu

    return torch_on_gpu.stream("another one")


def start_late(call, tensor, *arguments):
    """A call whose tensor is computed for a while yet, in the current stream."""
    from standin import torch_on_gpu

    torch_on_gpu.write_late(tensor, mine())
    return call(tensor, *arguments, async_op=True)


def wait_until(condition):
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def test_the_backend_is_for_both_devices():
    assert dist.Backend.backend_capability["ringdp"] == ["cpu", "cuda"]
    assert dist.Backend.default_device_backend_map["cuda"] == "nccl"  # of who asks for none


def test_whoever_waits_first_comes_after_it():
    tensor = on_gpu(torch.zeros(COUNT))
    work = start_late(dist.all_reduce, tensor)
    with other_stream():
        assert work.wait()
        assert tensor.tolist() == total()


def test_whoever_waits_later_comes_after_it_too():
    tensor = on_gpu(torch.zeros(COUNT))
    work = start_late(dist.all_reduce, tensor)
    wait_until(work.get_future().done)  # by the waiter's thread, in its own stream
    with other_stream():
        assert work.wait()
        assert tensor.tolist() == total()
    assert work.is_completed() and work.is_success()


def test_futures_know_of_the_gpu(monkeypatch):
    """Then PyTorch orders streams: those of callbacks, and that of whoever waits."""
    told, init = [], Future.__init__

    def noted(future, number, settle, devices=()):
        told.append(devices)
        init(future, number, settle)
        future._devices = devices

    monkeypatch.setattr(Future, "__init__", noted)
    monkeypatch.setattr(device, "of_future", lambda gpu: [f"GPU {gpu}"])
    tensor = on_gpu(torch.zeros(COUNT))
    future = start_late(dist.all_reduce, tensor).get_future()
    with other_stream():
        (found,) = future.then(lambda future: future.value()).wait()
        assert found is tensor and found.tolist() == total()
    dist.all_reduce(torch.ones(1), async_op=True).get_future().wait()
    assert told == [["GPU 0"], ["GPU 0"], []]


def test_callbacks_come_after_it():
    tensor, seen = on_gpu(torch.zeros(COUNT)), []

    def doubled(future):
        seen.append((threading.current_thread(), device.current_stream(0)))
        return future.value()[0] * 2

    future = start_late(dist.all_reduce, tensor).get_future().then(doubled)
    wait_until(future.done)
    result = future.wait()
    assert device.is_on_gpu(result)
    assert result.tolist() == [2 * x for x in total()]
    ((thread, stream),) = seen
    # The caller's stream goes on with what it has to compute.
    assert thread is not threading.main_thread() and stream != device.current_stream(0)


def test_is_completed_when_the_gpu_is_done():
    from standin import torch_on_gpu

    tensor = on_gpu(torch.zeros(COUNT))
    work = start_late(dist.all_reduce, tensor)
    work.wait()
    torch_on_gpu.keep_busy(1)
    wait_until(work.is_completed)
    with other_stream():  # which has waited for nothing
        assert tensor.tolist() == total()


def test_the_host_does_not_wait_for_the_gpu(monkeypatch):
    from standin import torch_on_gpu

    waits = []
    monkeypatch.setattr(torch_on_gpu, "host_waits", waits)
    n = dist.get_world_size()
    tensor, gathered, part = (on_gpu(torch.ones(count)) for count in (2 * n, 2 * n * n, 2))
    for _ in range(2):
        dist.all_reduce(tensor)
        dist.broadcast(tensor, n - 1)
        dist.all_gather_into_tensor(gathered, tensor)
        dist.reduce_scatter_tensor(part, tensor)
        dist.all_to_all_single(tensor, tensor.clone())
        dist.all_reduce(part, dist.ReduceOp.MAX, async_op=True).wait()
    assert waits == []
    assert part.tolist() == [n**3] * 2 and gathered.tolist() == [n**2] * (2 * n * n)


def test_what_is_gathered_goes_into_its_place_at_once(monkeypatch):
    """No other memory is made for it, and nothing is copied."""
    monkeypatch.setattr(device.Place, "empty", lambda *_: pytest.fail("made memory"))
    gathered = on_gpu(torch.zeros(dist.get_world_size(), COUNT))
    dist.all_gather_into_tensor(gathered, on_gpu(mine()))
    assert gathered.tolist() == [mine(r).tolist() for r in range(dist.get_world_size())]
    swapped, rank = on_gpu(torch.zeros(dist.get_world_size())), float(dist.get_rank())
    dist.all_to_all_single(swapped, on_gpu(torch.full((dist.get_world_size(),), rank)))
    assert swapped.tolist() == list(range(dist.get_world_size()))


@pytest.mark.parametrize("settled", ["by the caller", "by a thread"])
def test_messages_come_after_what_still_uses_their_memory(settled):
    from standin import torch_on_gpu

    n, rank = dist.get_world_size(), dist.get_rank()
    received = on_gpu(torch.zeros(COUNT))
    busy = device.current_stream(0)
    torch_on_gpu.write_late(received, torch.zeros(COUNT))
    receiving = dist.irecv(received, (rank - 1) % n)
    dist.barrier()
    with other_stream():
        dist.isend(on_gpu(mine()), (rank + 1) % n).wait()
        if settled == "by a thread":
            wait_until(lambda: receiving._operation is None)
        receiving.wait()
        torch_on_gpu.wait_for(busy)
        assert received.tolist() == mine((rank - 1) % n).tolist()


def test_ranks_with_different_kinds_of_memory_are_told():
    tensor = torch.ones(3)
    if dist.get_rank() == 0:
        tensor = on_gpu(tensor)
    with pytest.raises(Exception, match=r"rank 0: allreduce of float32\[3\] on a GPU"):
        dist.all_reduce(tensor)


def test_what_a_thread_of_ours_brings_home_is_in_use_there(monkeypatch):
    """Its memory is of the caller's stream, and must not be given out again before."""
    used = []
    monkeypatch.setattr(
        device, "used_in_current_stream", lambda t: used.append((t.data_ptr(), device.current_stream(0)))
    )
    outputs = [on_gpu(torch.zeros(COUNT)) for _ in range(dist.get_world_size())]
    caller = device.current_stream(0)
    future = dist.all_gather(outputs, on_gpu(mine()), async_op=True).get_future()
    wait_until(future.done)  # by that thread: who waits for a future may be there before it
    assert [output.tolist() for output in outputs] == [mine(r).tolist() for r in range(dist.get_world_size())]
    addresses = {address for address, stream in used if stream != caller}
    assert {output.data_ptr() for output in outputs} < addresses  # and of what is copied into them
