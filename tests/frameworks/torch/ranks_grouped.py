"""Grouped operations: all of a group or nothing."""

import time

import pytest
import torch

import ringdp.torch as hvd


def test_a_name_in_flight_leaves_nothing_of_a_group_queued():
    tensors = [torch.full((3,), float(i)) for i in range(3)]
    if hvd.size() == 1:
        pytest.skip("an operation of one rank is never in flight")
    if hvd.rank() == 0:  # the second of the group's names
        blocker = hvd.allreduce_async(tensors[1], op=hvd.Sum, name="group.1")
        with pytest.raises(
            hvd.DuplicateNameError, match=r"'group\.1': an operation of this name is still in flight"
        ):
            hvd.grouped_allreduce_async(tensors, op=hvd.Sum, name="group")
    hvd.barrier()  # until now nobody else has come to it
    if hvd.rank() > 0:
        blocker = hvd.allreduce_async(tensors[1], op=hvd.Sum, name="group.1")
    first = hvd.allreduce_async(tensors[0] + 5, op=hvd.Sum, name="group.0")  # its name is free
    assert (first.wait() == 5 * hvd.size()).all() and (blocker.wait() == hvd.size()).all()
    with pytest.raises(hvd.UsageError, match="names that begin with 'unnamed"):
        hvd.grouped_allreduce_async(tensors, name="unnamed")
    results = hvd.grouped_allreduce(tensors, op=hvd.Sum, name="group")
    assert [r.tolist() for r in results] == [[i * hvd.size()] * 3 for i in range(3)]


def test_a_group_in_which_one_tensor_differs_fails_as_one():
    if hvd.size() == 1:
        pytest.skip("one rank has nobody to differ from")
    for name in (None, "differs"):
        tensors = [torch.ones(3), torch.ones(4 + (hvd.rank() == 1)), torch.ones(5)]
        handle = hvd.grouped_allreduce_async_(tensors, op=hvd.Sum, name=name)
        with pytest.raises(
            hvd.MismatchError, match=r"rank 1: tensor 1 of its group: allreduce of float32\[5\]"
        ):
            handle.wait()
        assert all((t == 1).all() for t in tensors)
        tensors = [torch.ones(3)] * 3
        assert all((r == hvd.size()).all() for r in hvd.grouped_allreduce(tensors, op=hvd.Sum, name=name))


def test_a_group_with_fewer_tensors_on_one_rank_fails_soon():
    if hvd.size() == 1:
        pytest.skip("one rank has nobody to differ from")
    tensors = [torch.ones(3)] * (2 + (hvd.rank() == 0))
    began = time.monotonic()
    with pytest.raises(hvd.MismatchError, match="nothing more"):
        hvd.grouped_allreduce(tensors, op=hvd.Sum, name="fewer")
    assert time.monotonic() - began < 20  # seconds: long before the deadline
