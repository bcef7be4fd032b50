"""groups, no_sync, operations, process sets, compressions of the user's own: exact inputs, `==`."""

import pytest
import torch
from frameworks.torch.helpers import (
    average,
    gradient,
    loss,
    parameters,
    reduced,
    same_on_all_ranks,
    wrap,
)

import ringdp.torch as hvd


def layout(optimizer):
    return [sorted(slot.index for slot in bucket.slots) for bucket in optimizer._exchange._plans.buckets]


# --- groups ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"num_groups": 2}, [[3, 4], [0, 1, 2]]),
        ({"groups": 3}, [[4], [2, 3], [0, 1]]),
        ({"num_groups": 99}, [[4], [3], [2], [1], [0]]),
        ({"num_groups": 1, "bucket_bytes": 16}, [[0, 1, 2, 3, 4]]),
    ],
)
def test_groups_by_number_are_consecutive_parameters(options, expected):
    params = parameters((3, 5, 2, 4, 1))
    optimizer = wrap(params, **options)
    for _ in range(3):
        optimizer.zero_grad()
        sum(loss([p]) for p in reversed(params)).backward()
        assert reduced(params)
        optimizer.step()
    assert sorted(map(tuple, layout(optimizer))) == sorted(map(tuple, expected))


def test_listed_groups_leave_as_one_and_the_others_by_size():
    params = parameters((3, 5, 2, 4, 1)) + parameters((6,), torch.bfloat16)
    optimizer = wrap(params, groups=[[params[0], params[3]], [params[5], params[1]]], bucket_bytes=4)
    left = []
    for p in params:
        p.register_post_accumulate_grad_hook(lambda _: left.append(optimizer._exchange._submitted))
    for _ in range(3):
        optimizer.zero_grad()
        left.clear()
        sum(loss([p]).float() for p in params).backward()
        assert reduced(params)
        optimizer.step()
    assert sorted(layout(optimizer)) == [[0, 3], [1], [2], [4], [5]]
    # A group that is not complete holds back what stands behind it in the plan, and leaves as one.
    buckets = optimizer._exchange._plans.buckets
    assert max(left) == len(buckets) and left == sorted(left)


def test_ranks_that_group_differently_are_told():
    params = parameters((3, 5, 2))
    kept = wrap(params, num_groups=1 + (hvd.rank() == 0))
    with pytest.raises(hvd.MismatchError, match="group"):
        loss(params).backward()
    del kept


# --- no_sync --------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["none", "fp16"])
def test_passes_inside_no_sync_stay_on_this_rank(compression):
    params = parameters()
    optimizer = wrap(params, op=hvd.Sum, compression=getattr(hvd.Compression, compression))
    for _ in range(2):
        optimizer.zero_grad()
        with optimizer.no_sync():
            loss(params, 1).backward()
            with optimizer.no_sync():
                loss(params[1:], 2).backward()
            loss(params, 4).backward()
        assert torch.equal(params[0].grad, gradient(params[0], factor=5))  # this rank's alone
        assert not optimizer._exchange._begun()
        loss(params[:2], 8).backward()
        assert optimizer._exchange.finished
        for p, factor in zip(params, (13, 15, 7), strict=True):
            assert torch.equal(p.grad, hvd.size() * average(p, factor))
        optimizer.step()
    assert same_on_all_ranks(params)


def test_step_inside_no_sync_exchanges_what_is_there():
    params = parameters()
    optimizer = wrap(params)
    with optimizer.no_sync():
        loss(params).backward()
        optimizer.step()
    assert reduced(params) and same_on_all_ranks(params)


def test_no_sync_does_not_count_among_the_passes_of_a_window():
    params = parameters()
    optimizer = wrap(params, backward_passes_per_step=2)
    for _ in range(2):
        optimizer.zero_grad()
        with optimizer.no_sync():
            loss(params, 1).backward()
        loss(params, 2).backward()
        assert all(torch.equal(p.grad, gradient(p, factor=3)) for p in params)
        with optimizer.no_sync():
            loss(params, 4).backward()
        loss(params, 8).backward()
        assert optimizer._exchange.finished and reduced(params, 15)
        optimizer.step()


def test_no_sync_after_an_exchange_adds_only_what_is_new():
    params = parameters()
    optimizer = wrap(params, op=hvd.Sum)
    loss(params, 1).backward()
    with optimizer.no_sync():
        loss(params, 2).backward()
    loss(params, 4).backward()
    assert all(torch.equal(p.grad, hvd.size() * average(p, 7)) for p in params)
    optimizer.step()


# --- operations -----------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["Min", "Max", "Product"])
def test_other_operations(op):
    params = parameters()
    optimizer = wrap(params, op=getattr(hvd, op))
    for _ in range(2):
        optimizer.zero_grad()
        loss(params).backward()
        for p in params:
            all_of = torch.stack([gradient(p, rank) for rank in range(hvd.size())])
            want = {"Min": all_of.amin(0), "Max": all_of.amax(0), "Product": all_of.prod(0)}[op]
            assert torch.equal(p.grad, want)
        optimizer.step()


# --- process sets ---------------------------------------------------------------------------------


@pytest.fixture
def some():
    """All ranks but the last, or the first alone of two."""
    process_set = hvd.add_process_set(range(max(hvd.size() - 1, 1)))
    yield process_set
    assert hvd.remove_process_set(process_set)


@pytest.fixture
def everyone():
    process_set = hvd.add_process_set(range(hvd.size()))
    yield process_set
    assert hvd.remove_process_set(process_set)


def test_an_optimizer_over_a_process_set(some):
    params, others = parameters(), parameters()
    optimizer = wrap(params, op=hvd.Sum, process_set=some)
    globally = wrap(others)
    for _ in range(3):
        optimizer.zero_grad()
        globally.zero_grad()
        (loss(params) + loss(others)).backward()
        members = some.ranks if some.included() else [hvd.rank()]
        for p in params:
            assert torch.equal(p.grad, sum(gradient(p, rank) for rank in members))
        assert reduced(others)
        optimizer.step()
        globally.step()
    assert same_on_all_ranks(others)
    theirs = hvd.allgather_object([p.tolist() for p in params])
    assert all(theirs[rank] == theirs[0] for rank in some.ranks)


def test_ranks_outside_need_not_make_the_optimizer(some):
    if some.included():
        params = parameters()
        optimizer = wrap(params, op=hvd.Sum, process_set=some)
        loss(params).backward()
        assert all(torch.equal(p.grad, sum(gradient(p, r) for r in some.ranks)) for p in params)
        optimizer.step()
    params = parameters()
    optimizer = wrap(params)
    loss(params).backward()
    assert reduced(params)
    optimizer.step()


def test_a_process_set_of_everyone_gives_the_same_bits(everyone):
    results = []
    for process_set in (hvd.global_process_set, everyone):
        params = [
            torch.nn.Parameter(torch.randn(50, generator=torch.Generator().manual_seed(i))) for i in range(3)
        ]
        optimizer = wrap(params, process_set=process_set)
        for step in range(3):
            optimizer.zero_grad()
            torch.manual_seed(100 * hvd.rank() + step)
            sum((p * torch.randn(50)).sum() for p in params).backward()
            optimizer.step()
        results.append([p.detach().clone() for p in params])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# --- compressions of the user's own ---------------------------------------------------------------


class Halves:
    """Horovod's interface, with state: how often it was called, and with which shapes."""

    def __init__(self):
        self.shapes = []

    def compress(self, tensor):
        self.shapes.append(tuple(tensor.shape))
        return (tensor / 2).to(torch.float64), tensor.dtype

    def decompress(self, tensor, dtype):
        return tensor.to(dtype) * 2


class Plain:
    @staticmethod
    def compress(tensor):
        return tensor, None

    @staticmethod
    def decompress(tensor, context):
        return tensor


@pytest.mark.parametrize("op", ["Sum", "Average"])
def test_a_compression_of_the_users_own(op):
    params = parameters((3, 5, 2), torch.float32) + parameters((4,), torch.bfloat16)
    own = Halves()
    optimizer = wrap(params, compression=own, op=getattr(hvd, op), bucket_bytes=16)
    times = hvd.size() if op == "Sum" else 1
    for _ in range(3):
        optimizer.zero_grad()
        sum(loss([p]).float() for p in params).backward()
        assert optimizer._exchange.finished
        assert all(torch.equal(p.grad, times * average(p)) for p in params)
        optimizer.step()
    assert sorted(own.shapes) == sorted([(3,), (5,), (2,), (4,)] * 3)


def test_a_class_as_compression_and_ranks_that_differ():
    params = parameters()
    optimizer = wrap(params, compression=Plain)
    loss(params).backward()
    assert reduced(params)
    optimizer.step()
    optimizer = wrap(params, compression=Plain if hvd.rank() else Halves())
    with pytest.raises(hvd.MismatchError, match="communication hook"):
        loss(params).backward()
