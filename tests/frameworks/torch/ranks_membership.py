"""Which parameters have a gradient: none, on some ranks, outside the plan, frozen and thawed. All inputs are exact."""

import pytest
import torch
from frameworks.torch.helpers import (
    average,
    gradient,
    in_views,
    loss,
    parameters,
    reduced,
    same_on_all_ranks,
    slots,
    wrap,
)

import ringdp.torch as hvd
from ringdp.torch.plans import Plans


@pytest.fixture
def plans(monkeypatch):
    """Counts the plans that are made."""
    made = []
    renew = Plans.renew

    def counting(self, members, order=None):
        made.append([slot.name for slot in members])
        renew(self, members, order)

    monkeypatch.setattr(Plans, "renew", counting)
    return made


def one_rank_part(param, rank):
    """The average where `rank` alone has a gradient."""
    return (gradient(param, rank).double() / hvd.size()).to(param.dtype)


def test_a_parameter_without_gradient_on_any_rank_stays_without():
    params = parameters()
    optimizer = wrap(params, optimizer=torch.optim.AdamW)
    before = params[1].detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        loss([params[0], params[2]]).backward()
        optimizer.step()
        assert params[1].grad is None
        assert torch.equal(params[1], before)  # no weight decay either
        assert reduced([params[0], params[2]])
    assert same_on_all_ranks(params)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("bytes_", [16, 1 << 20])
def test_a_gradient_on_one_rank_counts_as_zeros_on_the_others(which, bytes_):
    params = parameters()
    optimizer = wrap(params, bucket_bytes=bytes_)
    for _ in range(3):
        optimizer.zero_grad()
        mine = params if hvd.rank() == hvd.size() - 1 else [p for i, p in enumerate(params) if i != which]
        loss(mine).backward()
        optimizer.step()
        for i, p in enumerate(params):
            expected = one_rank_part(p, hvd.size() - 1) if i == which else average(p)
            assert torch.equal(p.grad, expected)
        assert in_views(optimizer)
    assert same_on_all_ranks(params)


def test_ranks_that_lack_different_gradients():
    params = parameters((4, 4, 4))
    optimizer = wrap(params)
    for _ in range(2):
        optimizer.zero_grad()
        loss([params[hvd.rank() % 3]]).backward()
        optimizer.step()
        for i, p in enumerate(params):
            ranks = [r for r in range(hvd.size()) if r % 3 == i]
            if ranks:
                total = sum(gradient(p, r).double() for r in ranks)
                assert torch.equal(p.grad, (total / hvd.size()).float())
            else:
                assert p.grad is None


def test_a_rank_without_any_backward():
    params = parameters()
    optimizer = wrap(params)
    for _ in range(2):
        optimizer.zero_grad()
        if hvd.rank() == 0:
            loss(params).backward()
        optimizer.step()
        assert all(torch.equal(p.grad, one_rank_part(p, 0)) for p in params)
    assert same_on_all_ranks(params)


def test_blocking_operations_between_backward_and_step_where_ranks_lack_gradients():
    params = parameters()
    optimizer = wrap(params)
    for _ in range(3):
        optimizer.zero_grad()
        loss(params if hvd.rank() == 0 else params[1:]).backward()
        assert hvd.allreduce(torch.ones(1), op=hvd.Sum).item() == hvd.size()
        optimizer.step()
        assert torch.equal(params[0].grad, one_rank_part(params[0], 0)) and reduced(params[1:])


def test_no_gradient_anywhere():
    params = parameters()
    optimizer = wrap(params)
    before = [p.detach().clone() for p in params]
    for _ in range(2):
        optimizer.step()
    assert all(p.grad is None and torch.equal(p, b) for p, b in zip(params, before, strict=True))


@pytest.mark.parametrize("zero", [True, False])
def test_add_param_group(plans, zero):
    params = parameters()
    optimizer = wrap(params, op=hvd.Sum)
    loss(params).backward()
    optimizer.step()
    more = parameters((4, 2))
    optimizer.add_param_group({"params": more, "lr": 0.25})
    plans.clear()
    for step in range(3):
        if zero or step == 0:
            optimizer.zero_grad()
        before = [p.detach().clone() for p in params + more]
        loss(params + more).backward()
        times = 1 if zero else step + 1
        # in this very step, and when backward returns
        assert all(torch.equal(p.grad, hvd.size() * average(p, times)) for p in params + more)
        optimizer.step()
        rates = [0.5] * len(params) + [0.25] * len(more)
        for p, b, rate in zip(params + more, before, rates, strict=True):
            assert torch.equal(p, b - rate * hvd.size() * average(p, times))
    assert plans == [["p0", "p1", "p2", "parameter.1.0", "parameter.1.1"]]  # once


def test_a_new_group_on_one_rank_alone_is_an_error_before_any_parameter_changes():
    params = parameters()
    optimizer = wrap(params)
    loss(params).backward()
    optimizer.step()
    optimizer.zero_grad()
    before = [p.detach().clone() for p in params]
    more = parameters((4,))
    if hvd.rank() == 0:
        optimizer.add_param_group({"params": more})
    with pytest.raises(hvd.MismatchError, match="marks' differs between ranks"):
        loss(params + more).backward()
        optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))


def test_freeze_and_thaw(plans):
    params = parameters()
    optimizer = wrap(params)
    names = ["p0", "p1", "p2"]
    plans.clear()
    for frozen in ([], [1], [1], [], [], [0, 2], [0]):
        for i, p in enumerate(params):
            p.requires_grad_(i not in frozen)
        before = [p.detach().clone() for p in params]
        optimizer.zero_grad()
        live = [p for p in params if p.requires_grad]
        loss(live).backward()
        optimizer.step()
        assert reduced(live)
        for p, b in zip(params, before, strict=True):
            assert p.requires_grad or (p.grad is None and torch.equal(p, b))
    assert plans[-4:] == [["p0", "p2"], names, ["p1"], ["p1", "p2"]]
    assert same_on_all_ranks(params)


def test_parameters_frozen_when_the_optimizer_is_made():
    params = parameters()
    params[0].requires_grad_(False)
    optimizer = wrap(params)
    loss(params[1:]).backward()
    optimizer.step()
    params[0].requires_grad_(True)
    for _ in range(2):
        optimizer.zero_grad()
        loss(params).backward()
        optimizer.synchronize()
        assert reduced(params)
        optimizer.step()


def test_a_discriminator_that_is_frozen_every_other_pass(plans):
    g, d = parameters((3, 4)), parameters((5, 2))
    of_g, of_d = wrap(g), wrap(d)
    plans.clear()
    for step in range(4):
        of_d.zero_grad()
        loss(d, 1).backward()
        of_d.step()
        for p in d:
            p.requires_grad_(False)
        of_g.zero_grad()
        loss(g + d, 2).backward()
        of_g.step()
        assert reduced(g, 2) and reduced(d, 1)
        for p in d:
            p.requires_grad_(True)
        if step == 0:
            plans.clear()  # the observed orders
    assert plans == []


def test_a_model_that_changes_its_dtype():
    params = parameters()
    optimizer = wrap(params)
    loss(params).backward()
    optimizer.step()
    for p in params:
        p.grad = None
        p.data = p.data.double()
    for _ in range(3):
        optimizer.zero_grad()
        loss(params).backward()
        optimizer.step()
        assert all(p.grad.dtype == torch.float64 for p in params) and reduced(params)
    assert all(slot.view.dtype == torch.float64 for slot in slots(optimizer))


def test_a_model_that_changes_before_its_first_exchange():
    params = parameters((4, 3))
    optimizer = wrap(params, op=hvd.Sum)
    params[0].data = params[0].data.double()
    value = 1 + 2.0**-40  # not in float32
    for _ in range(3):
        optimizer.zero_grad()
        (params[0] * value * (hvd.rank() == 0)).sum().backward()
        loss(params[1:]).backward()
        optimizer.step()
        assert torch.equal(params[0].grad, torch.full((4,), value, dtype=torch.float64))
        assert torch.equal(params[1].grad, hvd.size() * average(params[1]))


def test_sparse_gradients_as_dense():
    table = torch.nn.Embedding(6, 2, sparse=True)
    torch.nn.init.zeros_(table.weight)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(table.parameters(), lr=1.0), sparse_as_dense=True)
    for _ in range(2):
        optimizer.zero_grad()
        rows = torch.tensor([hvd.rank(), 5, 5])
        (table(rows) * hvd.size()).sum().backward()
        expected = torch.zeros(6, 2)
        for rank in range(hvd.size()):
            expected[rank] += 1
            expected[5] += 2
        assert torch.equal(table.weight.grad, expected)
        optimizer.step()


def test_an_optimizer_that_is_dropped_falls_silent():
    params = parameters()
    optimizer = wrap(params)
    loss(params).backward()
    del optimizer
    for p in params:
        p.grad = None
    loss(params).backward()
    assert all(torch.equal(p.grad, gradient(p)) for p in params)
    again = wrap(params)
    again.zero_grad()
    loss(params).backward()
    assert reduced(params)
