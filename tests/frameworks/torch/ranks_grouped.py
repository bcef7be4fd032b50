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


@pytest.mark.parametrize("kind", ["allreduce", "allgather", "reducescatter"])
def test_with_gradients_too_all_of_a_group_fails_or_nothing(kind):
    if hvd.size() == 1:
        pytest.skip("one rank has nobody to differ from")
    grouped = getattr(hvd, f"grouped_{kind}")
    shapes = [(4,), (4, 2 + (hvd.rank() == 1))]
    with pytest.raises(hvd.MismatchError, match=f"tensor 1 of its group: {kind}"):
        grouped([torch.ones(shape, requires_grad=True) for shape in shapes], name="differs")
    grouped([torch.ones(4, requires_grad=True)], name="differs")  # nothing is left in flight


@pytest.mark.shows("gradient of grouped_allreduce", "torch", "eager")
def test_gradients_of_groups():
    size, rank = hvd.size(), hvd.rank()

    def leaves():
        return [torch.full((size, n), float(rank), requires_grad=True) for n in (1, 3)]

    plain = torch.ones(size, 2)  # one that wants none
    for op, factor in ((hvd.Sum, size), (hvd.Average, 1)):
        xs = leaves()
        a, b, c = hvd.grouped_allreduce([*xs, plain], op=op, name="sum")
        assert not plain.requires_grad and (c == factor).all()
        (a.sum() + 2 * b.sum()).backward()
        assert (xs[0].grad == factor).all() and (xs[1].grad == 2 * factor).all()
        xs = leaves()
        a, b = hvd.grouped_reducescatter(xs, op=op)
        ((a + 2 * b).sum() * (rank + 1)).backward()
        of_owner = (torch.arange(size) + 1.0).reshape(-1, 1) * (1 if op is hvd.Sum else 1 / size)
        assert torch.allclose(xs[1].grad, 2 * of_owner.expand(size, 3))
    xs = [torch.full((rank + 1, n), float(rank), requires_grad=True) for n in (1, 3)]
    a, b = hvd.grouped_allgather(xs, name="rows")
    assert a.shape == (size * (size + 1) // 2, 1)
    (a.sum() + (b * (rank + 1)).sum()).backward()
    assert (xs[0].grad == 1).all() and torch.allclose(xs[1].grad, torch.tensor((size + 1) / 2))


def test_second_derivatives_are_an_error_and_not_left_out():
    for reduce in (lambda x: hvd.grouped_allreduce([x])[0], hvd.allreduce, hvd.allgather):
        x = torch.ones(3, requires_grad=True)
        (grad,) = torch.autograd.grad((reduce(x) ** 2).sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()


def test_compressed_groups_with_gradients():
    x = torch.full((3,), float(hvd.rank()), requires_grad=True)
    (got,) = hvd.grouped_allreduce([x], op=hvd.Sum, compression=hvd.Compression.fp16)
    assert got.dtype == torch.float32
    got.sum().backward()
    assert (x.grad == hvd.size()).all()


def test_a_group_with_fewer_tensors_on_one_rank_fails_soon():
    if hvd.size() == 1:
        pytest.skip("one rank has nobody to differ from")
    tensors = [torch.ones(3)] * (2 + (hvd.rank() == 0))
    began = time.monotonic()
    with pytest.raises(hvd.MismatchError, match="nothing more"):
        hvd.grouped_allreduce(tensors, op=hvd.Sum, name="fewer")
    assert time.monotonic() - began < 20  # seconds: long before the deadline


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("kind", ["allreduce", "allgather", "reducescatter"])
def test_after_unnamed_groups_that_differ_in_number_unnamed_calls_still_meet(kind, gradients):
    if hvd.size() == 1:
        pytest.skip("one rank has nobody to differ from")
    size, last = hvd.size(), hvd.rank() == hvd.size() - 1
    grouped, begin = getattr(hvd, f"grouped_{kind}"), getattr(hvd, f"grouped_{kind}_async")
    for times in range(4):
        tensors = [torch.full((size, 2), i + 1.0, requires_grad=gradients) for i in range(2 + last)]
        with pytest.raises(hvd.MismatchError, match=f"tensor 2 of its group: {kind}"):
            grouped(tensors) if gradients else begin(tensors).wait()
        x = torch.full((3,), float(times), requires_grad=True)
        y = hvd.allreduce(x, op=hvd.Sum)
        a, b = hvd.grouped_allreduce([x, 2 * x], op=hvd.Sum)
        (y + a + b).sum().backward()
        assert (y == size * times).all() and (a == y).all() and (b == 2 * y).all()
        assert (x.grad == 4 * size).all()
    assert hvd.allgather(torch.tensor([hvd.rank()])).tolist() == list(range(size))


def test_after_groups_of_an_optimizer_that_differ_in_number_unnamed_calls_still_meet():
    """Whether the ranks have other parameters, or put them into groups of other numbers."""
    if hvd.size() == 1:
        pytest.skip("one rank has nobody to differ from")
    first = hvd.rank() == 0
    for count, groups in ((2 + first, 0), (3, 2 + first)):
        params = [torch.nn.Parameter(torch.ones(2)) for _ in range(count)]
        optimizer = hvd.DistributedOptimizer(torch.optim.SGD(params, lr=1.0), num_groups=groups)
        with pytest.raises(hvd.MismatchError):
            sum(p.sum() for p in params).backward()
            optimizer.step()
        assert all((p == 1).all() for p in params)
        del optimizer
        for times in range(3):
            x = torch.full((3,), float(times))
            assert (hvd.allreduce(x, op=hvd.Sum) == hvd.size() * times).all()
