"""Windows: when gradients are exchanged, and that each is exchanged exactly once. All inputs are exact."""

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
from torch.utils.checkpoint import checkpoint

import ringdp.torch as hvd


def test_gradients_are_reduced_when_backward_returns():
    params = parameters()
    optimizer = wrap(params)
    before = [p.detach().clone() for p in params]
    for _ in range(3):
        optimizer.zero_grad()
        assert all(p.grad is None for p in params)
        loss(params).backward()
        assert reduced(params)
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    optimizer.step()
    assert all(torch.equal(p, b - 0.5 * average(p)) for p, b in zip(params, before, strict=True))


def test_every_gradient_lies_in_its_view():
    params = parameters()
    optimizer = wrap(params)
    for _ in range(3):
        optimizer.zero_grad()
        loss(params).backward()
        optimizer.synchronize()
    assert in_views(optimizer)


def test_several_small_buckets_leave_in_order():
    params = parameters((100, 300, 7, 1000, 50, 0, 1))
    optimizer = wrap(params, bucket_bytes=1024)
    for _ in range(3):
        optimizer.zero_grad()
        loss(params).backward()
        assert reduced(params)
    assert len(optimizer._exchange._plans.buckets) > 2


def test_buckets_leave_while_backward_runs():
    params = parameters((200, 200, 200))
    optimizer = wrap(params, bucket_bytes=256)
    left = []
    for p in params:
        p.register_post_accumulate_grad_hook(lambda _: left.append(optimizer._exchange._submitted))
    for _ in range(2):
        optimizer.zero_grad()
        left.clear()
        loss(params).backward()
        assert left == [1, 2, 3]
        optimizer.step()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_both_ways(set_to_none):
    params = parameters()
    optimizer = wrap(params)
    for factor in (1, 2, 3):
        optimizer.zero_grad(set_to_none=set_to_none)
        loss(params, factor).backward()
        assert reduced(params, factor)
        optimizer.step()


def test_gradients_dropped_by_the_module():
    params = parameters()
    kept = wrap(params)
    for factor in (1, 2, 3):
        for p in params:
            p.grad = None
        loss(params, factor).backward()
        assert reduced(params, factor)  # also without a step between
    kept.step()


def test_a_step_without_zero_grad_accumulates_as_in_one_process():
    params = parameters()
    optimizer = wrap(params)
    loss(params, 1).backward()
    optimizer.step()
    loss(params, 2).backward()
    assert reduced(params, 3)
    optimizer.step()
    assert same_on_all_ranks(params)


@pytest.mark.shows("backward_passes_per_step", "torch", "eager")
@pytest.mark.parametrize("passes", [2, 3])
def test_a_window_of_several_passes_sums(passes):
    params = parameters()
    optimizer = wrap(params, backward_passes_per_step=passes)
    for _ in range(3):
        optimizer.zero_grad()
        for i in range(passes):
            loss(params, i + 1).backward()
            so_far = sum(range(1, i + 2))
            if i + 1 < passes:
                assert all(
                    torch.equal(p.grad, gradient(p, factor=so_far)) for p in params
                )  # this rank's alone
        assert reduced(params, sum(range(1, passes + 1)))
        assert in_views(optimizer)
        optimizer.step()


@pytest.mark.parametrize("how", ["step", "synchronize"])
def test_fewer_passes_than_a_window(how):
    params = parameters()
    optimizer = wrap(params, backward_passes_per_step=3)
    before = [p.detach().clone() for p in params]
    loss(params).backward()
    getattr(optimizer, how)()
    assert reduced(params)
    moved = any(not torch.equal(p, b) for p, b in zip(params, before, strict=True))
    assert moved == (how == "step")


def test_a_window_left_without_step_does_not_disturb_the_next():
    params = parameters()
    optimizer = wrap(params, backward_passes_per_step=2)
    loss(params, 5).backward()
    for _ in range(2):
        optimizer.zero_grad()
        loss(params, 1).backward()
        loss(params, 2).backward()
        assert reduced(params, 3)
        optimizer.step()


def test_a_window_left_without_step_goes_on():
    params = parameters()
    optimizer = wrap(params, backward_passes_per_step=2)
    for _ in range(2):
        loss(params, 1).backward()  # the last pass of an epoch
        assert all(torch.equal(p.grad, gradient(p)) for p in params)
        loss(params, 2).backward()  # the first of the next
        assert reduced(params, 3)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("passes", [1, 2])
def test_more_passes_than_a_window_exchange_only_what_is_new(passes):
    params = parameters()
    optimizer = wrap(params, op=hvd.Sum, backward_passes_per_step=passes)  # a sum exchanged twice would show
    for _ in range(2):
        optimizer.zero_grad()
        for factor in (1, 2, 4):
            loss(params, factor).backward()
        optimizer.synchronize()
        assert all(torch.equal(p.grad, hvd.size() * average(p, 7)) for p in params)
        optimizer.step()


def test_synchronize_twice_and_step_exchange_once():
    params = parameters()
    optimizer = wrap(params, op=hvd.Sum)
    before = [p.detach().clone() for p in params]
    loss(params).backward()
    optimizer.synchronize()
    optimizer.synchronize()
    optimizer.step()
    for p, b in zip(params, before, strict=True):
        assert torch.equal(p, b - 0.5 * hvd.size() * average(p))


def test_clipping_between_synchronize_and_step():
    params = parameters()
    optimizer = wrap(params)
    before = [p.detach().clone() for p in params]
    loss(params).backward()
    optimizer.synchronize()
    for p in params:
        p.grad.clamp_(max=4.0)
    with optimizer.skip_synchronize():
        optimizer.step()
    for p, b in zip(params, before, strict=True):
        assert torch.equal(p, b - 0.5 * average(p).clamp(max=4.0))


def test_two_losses_that_share_parameters():
    params = parameters()
    optimizer = wrap(params)
    for _ in range(3):
        optimizer.zero_grad()
        loss(params[1:], 1).backward()  # the last buckets' parameters have left when the second pass comes
        loss(params, 2).backward()
        optimizer.synchronize()
        assert torch.equal(params[0].grad, average(params[0], 2))
        assert all(torch.equal(p.grad, average(p, 3)) for p in params[1:])
        optimizer.step()


@pytest.mark.parametrize("bytes_", [16, 1 << 20])
def test_a_gradient_after_its_bucket_has_left(bytes_):
    params = parameters()
    optimizer = wrap(params, bucket_bytes=bytes_, op=hvd.Sum)
    for _ in range(3):
        optimizer.zero_grad()
        loss(params[2:], 1).backward()
        loss(params[1:], 2).backward()
        loss(params[2:], 4).backward()
        optimizer.step()
        assert params[0].grad is None
        assert torch.equal(params[1].grad, hvd.size() * average(params[1], 2))
        assert torch.equal(params[2].grad, hvd.size() * average(params[2], 7))


def test_retain_graph():
    params = parameters()
    optimizer = wrap(params, backward_passes_per_step=2)
    value = loss(params)
    value.backward(retain_graph=True)
    value.backward()
    assert reduced(params, 2)
    optimizer.step()


def test_tied_weights():
    torch.manual_seed(0)
    tied = torch.nn.Parameter(torch.ones(4))
    other = torch.nn.Parameter(torch.ones(4))
    optimizer = wrap([tied, other])
    for _ in range(2):
        optimizer.zero_grad()
        (loss([tied]) + loss([tied, other], 2)).backward()
        assert torch.equal(tied.grad, average(tied, 3)) and torch.equal(other.grad, average(other, 2))
        optimizer.step()


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("outer", [True, False])
def test_activation_checkpointing(reentrant, passes, outer):
    params = parameters((4, 4, 4))
    optimizer = wrap(params, backward_passes_per_step=passes)

    def segment(p):
        return lambda x: x + p * gradient(p)

    for _ in range(3):
        optimizer.zero_grad()
        for _ in range(passes):
            x = torch.zeros(4, requires_grad=True)
            for p in params[1:] if outer else params:
                x = checkpoint(segment(p), x, use_reentrant=reentrant)
            (segment(params[0])(x) if outer else x).sum().backward()
        assert reduced(params, passes)
        optimizer.step()


def test_reentrant_checkpoints_that_share_a_parameter():
    params = parameters((4, 4))
    optimizer = wrap(params, op=hvd.Sum)
    for _ in range(3):
        optimizer.zero_grad()
        x = torch.zeros(4, requires_grad=True)
        for _ in range(2):
            for p in params:
                x = checkpoint(lambda x, p=p: x + p * gradient(p), x, use_reentrant=True)
        x.sum().backward()
        optimizer.synchronize()
        assert all(torch.equal(p.grad, hvd.size() * average(p, 2)) for p in params)
        optimizer.step()


def test_create_graph_leaves_gradients_that_can_be_differentiated():
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = wrap([p], lr=1.0)
    factor = gradient(p)
    for _ in range(2):
        optimizer.zero_grad()
        (p.square() * factor / 2).sum().backward(create_graph=True)
        mean = average(p)
        assert torch.equal(p.grad, mean * p)
        assert p.grad.data_ptr() == slots(optimizer)[0].view.data_ptr()
        penalty = p.grad.square().sum()  # derivative 2 g g' with g = mean p, g' = mean
        penalty.backward()
        assert torch.equal(p.grad.detach(), mean * p + 2 * mean * p * mean)
    optimizer.zero_grad(set_to_none=False)
    assert torch.equal(p.grad, torch.zeros(3))


def test_autograd_grad_touches_no_gradient():
    params = parameters()
    optimizer = wrap(params)
    loss(params).backward()
    torch.autograd.grad(loss(params, 3), params)
    assert reduced(params)
    optimizer.step()


def test_gradients_set_by_hand_are_exchanged():
    params = parameters()
    optimizer = wrap(params)
    for factor in (1, 2):
        optimizer.zero_grad()
        for p in params:
            p.grad = gradient(p, factor=factor)
        optimizer.step()
        assert reduced(params, factor)


def test_two_optimizers_whose_backwards_meet():
    """As a GAN trains: the generator's loss runs through the discriminator."""
    g, d = parameters((3, 4)), parameters((5, 2))
    of_g, of_d = wrap(g), wrap(d)
    for _ in range(3):
        of_d.zero_grad()
        loss(d, 1).backward()
        assert reduced(d, 1)
        of_d.step()
        of_g.zero_grad()
        loss(g + d, 2).backward()
        assert reduced(g, 2)
        of_g.step()
        assert reduced(d, 3)  # accumulated, as in one process: nobody has cleared it
    assert same_on_all_ranks(g + d)


def test_a_window_is_dropped_alike_where_one_rank_lacks_a_gradient():
    params = parameters()
    optimizer = wrap(params)
    for factor in (1, 2):
        mine = params if hvd.rank() == 0 else params[:2]
        loss(mine, 7).backward()
        optimizer.zero_grad()
        loss(params, factor).backward()
        assert reduced(params, factor)
        optimizer.step()
        optimizer.zero_grad()


def test_closures_that_step_many_times():
    p = torch.nn.Parameter(torch.zeros(4))
    target = gradient(p)
    optimizer = wrap([p], optimizer=torch.optim.LBFGS, lr=1.0)

    def closure():
        optimizer.zero_grad()
        value = (p - target).square().sum()
        value.backward()
        return value

    for _ in range(4):
        optimizer.step(closure)
    assert same_on_all_ranks([p])
    assert torch.allclose(p, average(p), rtol=1e-4)


def test_a_closure_returns_the_average_loss():
    p = torch.nn.Parameter(torch.zeros(1))
    optimizer = wrap([p])

    def closure():
        (p * gradient(p)).sum().backward()
        return float(hvd.size() * hvd.rank())

    assert optimizer.step(closure) == sum(range(hvd.size()))
    assert torch.equal(p.detach(), -0.5 * average(p))


def test_an_exception_in_backward_leaves_the_optimizer_usable():
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise ArithmeticError("on purpose")

    params = parameters()
    optimizer = wrap(params)
    for factor in (1, 2):
        with pytest.raises(ArithmeticError):
            (loss(params[1:], 5) + Fails.apply(params[0]).sum()).backward()
        optimizer.zero_grad()
        loss(params, factor).backward()
        assert reduced(params, factor)
        optimizer.step()
        optimizer.zero_grad()
