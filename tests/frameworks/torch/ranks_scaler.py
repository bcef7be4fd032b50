"""GradScaler: an overflow on one rank makes all ranks skip and lowers all scales alike; nothing is called for it."""

import pytest
import torch
from frameworks.torch.helpers import gradient, loss, parameters, reduced, same_on_all_ranks, slots, wrap

import ringdp.torch as hvd
from ringdp.torch.ops import operations

INF = float("inf")


def scaler():
    return torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1000)


def last():
    return hvd.rank() == hvd.size() - 1


def sign_only(_, bucket):
    """Hides every overflow, and says nothing of it."""
    return operations.allreduce_async(bucket.buffer().sign().nan_to_num(), name=bucket.name())


def looks_itself(_, bucket):
    if not bucket.buffer().isfinite().all():
        bucket.report_not_finite()
    return sign_only(_, bucket)


looks_itself.tests_finite = True


class HidesOverflows:
    @staticmethod
    def compress(tensor):
        return tensor.nan_to_num(0, 0, 0), None

    @staticmethod
    def decompress(tensor, context):
        return tensor


WAYS = {
    "average": {},
    "sum_fp16": {"op": hvd.Sum, "compression": hvd.Compression.fp16},
    "min": {"op": hvd.Min},
    "max": {"op": hvd.Max},
    "product": {"op": hvd.Product},
    "own_compression": {"compression": HidesOverflows},
    "hook": {"hook": sign_only},
    "hook_that_tests": {"hook": looks_itself},
}


@pytest.mark.shows("overflow on one rank: all skip", "torch", "eager")
@pytest.mark.parametrize("bad", [INF, -INF, float("nan")], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_an_overflow_on_one_rank(way, bad):
    options = dict(WAYS[way])
    hook = options.pop("hook", None)
    params = parameters()
    optimizer = wrap(params, **options)
    if hook:
        optimizer.register_comm_hook(None, hook)
    scale = scaler()
    for overflow in (False, True, False):
        before = [p.detach().clone() for p in params]
        optimizer.zero_grad()
        value = loss(params)
        if overflow and last():
            value = value + params[1][3] * bad
        scale.scale(value).backward()
        scale.step(optimizer)
        scale.update()
        moved = [not torch.equal(p, b) for p, b in zip(params, before, strict=True)]
        assert any(moved) == (not overflow)
    assert set(hvd.allgather_object(scale.get_scale())) == {4.0}
    assert same_on_all_ranks(params)


def test_nobody_looks_where_sums_carry_it(monkeypatch):
    from ringdp.torch import sending

    monkeypatch.setattr(sending, "is_finite", lambda _: pytest.fail("looked"))
    params = parameters()
    optimizer = wrap(params)
    loss(params).backward()
    assert reduced(params)
    optimizer.step()


@pytest.mark.parametrize("op", [hvd.Average, hvd.Min], ids=["average", "min"])
@pytest.mark.parametrize("overflow_in", [0, 1, None])
def test_accumulation(op, overflow_in):
    params = parameters()
    optimizer = wrap(params, op=op, backward_passes_per_step=2)
    scale = scaler()
    for bad in (False, True, False):
        before = [p.detach().clone() for p in params]
        optimizer.zero_grad()
        for i in range(2):
            value = loss(params)
            if bad and i == overflow_in and last():
                value = value * INF
            scale.scale(value).backward()
        scale.step(optimizer)
        scale.update()
        skipped = all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
        assert skipped == (bad and overflow_in is not None)
    assert scale.get_scale() == (8.0 if overflow_in is None else 4.0)
    assert same_on_all_ranks(params)


def amp_reference(make, steps, clip):
    """One process on all ranks' contributions."""
    params = parameters()
    optimizer, scale = make(params), scaler()
    for bad in steps:
        optimizer.zero_grad()
        mean = sum(
            sum((p * gradient(p, rank)).sum() for p in params)
            * (INF if bad and rank == hvd.size() - 1 else 1)
            for rank in range(hvd.size())
        )
        scale.scale(mean / hvd.size()).backward()
        if clip:
            scale.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(params, 1.0)
        scale.step(optimizer)
        scale.update()
    return params, scale.get_scale()


MAKE = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.5),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "foreach": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True),
    "fused_sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
}


@pytest.mark.parametrize("clip", [False, True], ids=["", "clipped"])
@pytest.mark.parametrize("kind", MAKE)
def test_equal_to_one_process(kind, clip):
    steps = (False, False, True, False, True, False)
    params = parameters()
    optimizer, scale = hvd.DistributedOptimizer(MAKE[kind](params)), scaler()
    for bad in steps:
        optimizer.zero_grad()
        scale.scale(loss(params) * (INF if bad and last() else 1)).backward()
        if clip:
            scale.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(params, 1.0)
        scale.step(optimizer)
        scale.update()
    reference, their_scale = amp_reference(MAKE[kind], steps, clip)
    assert scale.get_scale() == their_scale == 2.0
    for p, q in zip(params, reference, strict=True):
        assert torch.allclose(p, q, rtol=1e-6, atol=1e-6)
    assert same_on_all_ranks(params)


@pytest.mark.parametrize("which", [0, 1])
def test_several_optimizers_on_one_scaler(which):
    first, second = parameters((3, 4)), parameters((5, 2))
    optimizers = [wrap(first), wrap(second, op=hvd.Min)]
    scale = scaler()
    for bad in (False, True, False):
        before = [[p.detach().clone() for p in params] for params in (first, second)]
        for optimizer in optimizers:
            optimizer.zero_grad()
        value = loss(first) + loss(second)
        if bad and last():
            value = value + (first, second)[which][1][0] * INF
        scale.scale(value).backward()
        for optimizer in optimizers:
            scale.step(optimizer)
        scale.update()
        for number, params in enumerate((first, second)):
            moved = any(not torch.equal(p, b) for p, b in zip(params, before[number], strict=True))
            assert moved == (not bad or number != which)
    assert set(hvd.allgather_object(scale.get_scale())) == {4.0}
    assert same_on_all_ranks(first + second)


@pytest.mark.parametrize("where", ["set", "outside", "all"])
def test_parameters_of_one_process_set(where):
    """One scaler over parameters of all ranks, and over some that only the first ranks share."""
    some = hvd.add_process_set(range(max(hvd.size() - 1, 1)))
    shared, theirs = parameters((3, 4)), parameters((5, 2))
    over_all, over_some = wrap(shared), wrap(theirs, process_set=some)
    scale = scaler()
    rank = {"set": 0, "outside": hvd.size() - 1, "all": 0}[where]
    for bad in (False, True, False):
        before = [p.detach().clone() for p in shared + theirs]
        over_all.zero_grad()
        over_some.zero_grad()
        value = loss(shared) + loss(theirs)
        if bad and hvd.rank() == rank:
            value = value + (shared if where == "all" else theirs)[1][0] * INF
        scale.scale(value).backward()
        scale.step(over_all)
        scale.step(over_some)
        scale.update()
        moved = [not torch.equal(p, b) for p, b in zip(shared + theirs, before, strict=True)]
        assert any(moved[:2]) == (not bad)
        if bad and where == "set" and some.included():
            assert not any(moved)
    assert set(hvd.allgather_object(scale.get_scale())) == {4.0}
    assert same_on_all_ranks(shared)
    del over_some
    hvd.remove_process_set(some)


def test_a_gradient_that_one_rank_lacks():
    """The exchange is finished by unscale_, before GradScaler looks."""
    params = parameters()
    optimizer, scale = wrap(params, op=hvd.Min), scaler()
    for bad in (True, False):
        before = [p.detach().clone() for p in params]
        optimizer.zero_grad()
        mine = params if hvd.rank() == 0 else params[1:]
        scale.scale(loss(mine) * (INF if bad and last() else 1)).backward()
        scale.unscale_(optimizer)
        assert all(slot.reduced is not None for slot in slots(optimizer))
        scale.step(optimizer)
        scale.update()
        assert all(torch.equal(p, b) for p, b in zip(params[1:], before[1:], strict=True)) == bad
    assert set(hvd.allgather_object(scale.get_scale())) == {4.0}
