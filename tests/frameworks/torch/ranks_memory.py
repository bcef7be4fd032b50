"""Tensors in shared memory, and tensors that the core reads where they lie."""

import numpy as np
import pytest
import torch

import ringdp.torch as ringdp
from ringdp import world
from ringdp.torch.memory import bucket_memory

pytestmark = pytest.mark.mpi


def in_heap(tensor):
    """True if the tensor lies in this rank's heap: what the system calls that mapping tells."""
    address = tensor.data_ptr()
    with open("/proc/self/maps") as lines:
        for line in lines:
            begin, end = (int(number, 16) for number in line.split()[0].split("-"))
            if begin <= address < end:
                return "memfd:ringdp" in line or "/dev/shm/ringdp" in line
    return False


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (5,), (3, 0), (300, 200)])
def test_shapes_and_dtypes(shape, dtype):
    tensor = ringdp.empty(shape, dtype=dtype)
    assert tensor.shape == shape and tensor.dtype == dtype and tensor.is_contiguous()
    tensor.fill_(1)
    ringdp.allreduce_(tensor, op=ringdp.Max)
    assert (tensor == 1).all()


def test_arguments_are_those_of_torch():
    assert ringdp.empty(2, 3).shape == (2, 3) and ringdp.empty(2, 3).dtype == torch.get_default_dtype()
    assert ringdp.empty(torch.Size([4])).shape == (4,)
    assert ringdp.empty(4, requires_grad=True).requires_grad
    with pytest.raises(ValueError, match="negative dimensions"):
        ringdp.empty(2, -1)


@pytest.mark.host_only
def test_buckets_lie_in_shared_memory_and_are_zero():
    for _ in range(3):  # also when they get memory that has been used before
        flat = bucket_memory(300_000, torch.float32, torch.zeros(()))
        assert in_heap(flat) == (world.current().lender.bytes(1) is not None) and not flat.any()
        flat.fill_(7)
        del flat


def test_a_model_trains_in_shared_memory_as_in_ordinary():
    model = torch.nn.Linear(1000, 100)
    ringdp.broadcast_parameters(model.state_dict(), 0)
    optimizer = ringdp.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), 0.125), named_parameters=model.named_parameters(), op=ringdp.Sum
    )
    before = model.weight.detach().clone()
    for step in range(3):
        optimizer.zero_grad()
        model(torch.full((2, 1000), float(ringdp.rank() + step))).sum().backward()
        total = sum(2.0 * (rank + step) for rank in range(ringdp.size()))
        assert (model.weight.grad == total).all()
        optimizer.step()
        before -= 0.125 * total
        assert torch.equal(model.weight, before)


def test_what_is_not_plain_in_memory_is_exchanged_as_well():
    total = float(sum(range(1, ringdp.size() + 1)))
    value = float(ringdp.rank() + 1)
    strided = torch.full((6, 4), value).t()
    assert torch.equal(ringdp.allreduce(strided, op=ringdp.Sum), torch.full((4, 6), total))
    assert torch.equal(ringdp.allreduce_(strided, op=ringdp.Sum), torch.full((4, 6), total))
    negative = torch.complex(torch.zeros(3), torch.full((3,), value)).conj().imag
    assert negative.is_neg()
    assert torch.equal(ringdp.allreduce(negative.contiguous(), op=ringdp.Sum), torch.full((3,), -total))
    scalar = torch.complex(torch.tensor(0.0), torch.tensor(value)).conj().imag
    assert scalar.is_neg() and scalar.stride() == ()
    assert ringdp.allreduce(scalar, op=ringdp.Sum) == -total
    assert ringdp.allreduce_(scalar, op=ringdp.Sum) == -total and scalar == -total
    row = torch.full((1, 1, 4), value)[:, :, :1]  # dense, whatever the strides of its single elements are
    assert ringdp.allreduce_(row, op=ringdp.Sum) is row and row == total
    for empty in (torch.zeros(0), torch.zeros(3, 0, 2)):
        assert ringdp.allreduce(empty).shape == empty.shape
    parameter = torch.nn.Parameter(torch.full((3,), value))
    version = parameter._version
    ringdp.allreduce_(parameter, op=ringdp.Sum)
    assert torch.equal(parameter.detach(), torch.full((3,), total)) and parameter._version > version
    with torch.inference_mode():
        inference = torch.full((3,), value)
    assert torch.equal(ringdp.allreduce_(inference, op=ringdp.Sum), torch.full((3,), total))
    assert np.array_equal(ringdp.allreduce(inference, op=ringdp.Min).numpy(), inference.numpy())
