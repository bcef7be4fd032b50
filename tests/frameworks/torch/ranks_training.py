"""Whole trainings: against one process on the joined batch, bit for bit between ranks, with what torch has around."""

import copy
import io
import pickle

import pytest
import torch
from counting import counted
from frameworks.torch.helpers import (
    average,
    batches,
    in_views,
    loss,
    network,
    parameters,
    reduced,
    same_on_all_ranks,
    slots,
    wrap,
)

import ringdp.torch as hvd
from ringdp.torch import device

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adam_foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
}


def train(model, optimizer, steps, mine=True, wire=None):
    for x_all, y_all, x, y in batches(steps):
        optimizer.zero_grad()
        inputs, targets = (x, y) if mine else (x_all, y_all)
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()


@pytest.mark.shows(["DistributedOptimizer", "equals one process on the joined batch"], "torch", "eager")
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("bytes_", [2048, 25 << 20])
def test_training_equals_one_process_on_the_joined_batch(kind, bytes_):
    model, alone = network(), network()
    optimizer = hvd.DistributedOptimizer(
        OPTIMIZERS[kind](model.parameters()), named_parameters=model.named_parameters(), bucket_bytes=bytes_
    )
    train(model, optimizer, 20)
    train(alone, OPTIMIZERS[kind](alone.parameters()), 20, mine=False)
    for p, q in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-4, atol=2e-5)
    assert same_on_all_ranks(model.parameters())
    assert in_views(optimizer)


def train_alone(make, steps, passes=1, ranks=None):
    """One process: the mean over the ranks' losses, of each pass; the passes are summed."""
    model = network()
    optimizer = make(model.parameters())
    for x, y, _, _ in batches(steps):
        rows = len(x) // hvd.size()
        optimizer.zero_grad()
        for number in range(passes):
            part = slice(number * rows // passes, (number + 1) * rows // passes)
            for rank in ranks or range(hvd.size()):
                mine = slice(rank * rows, (rank + 1) * rows)
                value = torch.nn.functional.cross_entropy(model(x[mine][part]), y[mine][part])
                (value / len(ranks or range(hvd.size()))).backward()
        optimizer.step()
    return model


WAYS = {
    "plain": {},
    "compression": {"compression": hvd.Compression.bf16},
    "accumulation": {"backward_passes_per_step": 2},
    "process set": {},
    "GradScaler": {},
    "shards": {"shard": True},
    "shards of parameters": {"shard": "parameters"},
    "shards, accumulation, GradScaler": {"shard": True, "backward_passes_per_step": 2},
}


@pytest.mark.shows("process sets", "torch", "eager")
@pytest.mark.parametrize("way", WAYS)
def test_each_way_equals_one_process(way):
    """(torch.distributed's DDP and FSDP2 over ringdp: ranks_c10d_ddp.py, ranks_c10d_sharded.py.)"""
    options, make = dict(WAYS[way]), OPTIMIZERS["sgd"]
    passes = options.get("backward_passes_per_step", 1)
    ranks = list(range(hvd.size()))[-2:]
    process_set = hvd.add_process_set(ranks)
    if way == "process set":
        options["process_set"] = process_set
    model = network()
    optimizer = hvd.DistributedOptimizer(make(model.parameters()), **options)
    scale = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled="GradScaler" in way)
    for _, _, x, y in batches(10):
        optimizer.zero_grad()
        for x_part, y_part in zip(x.chunk(passes), y.chunk(passes), strict=True):
            scale.scale(torch.nn.functional.cross_entropy(model(x_part), y_part)).backward()
        scale.step(optimizer)
        scale.update()
    taking_part = ranks if way == "process set" else list(range(hvd.size()))
    alone = train_alone(make, 10, passes, taking_part)
    close = 0.02 if way == "compression" else 2e-5  # bfloat16 has 8 bits
    if hvd.rank() in taking_part:
        for p, q in zip(model.parameters(), alone.parameters(), strict=True):
            assert torch.allclose(p, q, rtol=10 * close, atol=close)
    moved = max((p - q).abs().max() for p, q in zip(model.parameters(), network().parameters(), strict=True))
    assert moved > 5 * close
    hvd.barrier()
    assert hvd.remove_process_set(process_set)


def test_a_steady_step_agrees_on_nothing_but_its_vote():
    model = network()
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), bucket_bytes=2048)
    train(model, optimizer, 4)
    done = counted(lambda: train(model, optimizer, 10))
    assert done["buckets"] >= 20 and done["votes"] == 10 and done["named"] == 0


def test_runs_repeat_bit_for_bit():
    results = []
    for _ in range(3):
        model = network()
        optimizer = hvd.DistributedOptimizer(OPTIMIZERS["adamw"](model.parameters()), bucket_bytes=512)
        train(model, optimizer, 10)
        results.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[2], strict=True))


def test_buckets_are_rebuilt_once_in_rank_0s_order():
    first, second, third = parameters((4, 4, 4))
    optimizer = wrap([first, second, third], bucket_bytes=16)
    digests = []
    for _ in range(4):
        optimizer.zero_grad()
        # Used in the order second, third, first: so gradients come first, third, second.
        x = torch.zeros(4, requires_grad=True)
        for p in (second, third, first):
            x = x + p * (p.detach() * 0 + average(p)) + 0 * x.sum()
        x.sum().backward()
        digests.append(optimizer._exchange._plans.plan.digest)
        optimizer.step()
    assert [bucket.slots[0].index for bucket in optimizer._exchange._plans.buckets] == [0, 2, 1]
    assert len(set(digests)) == 1 or (len(set(digests)) == 2 and len(set(digests[1:])) == 1)
    assert len(set(hvd.allgather_object(digests[-1]))) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype):
    params = parameters(dtype=dtype)
    optimizer = wrap(params)
    for _ in range(2):
        optimizer.zero_grad()
        loss(params).backward()
        assert reduced(params) and all(p.grad.dtype == dtype for p in params)
        optimizer.step()


def test_mixed_dtypes_go_to_buckets_of_their_own():
    params = parameters((3, 4)) + parameters((5, 2), torch.bfloat16)
    optimizer = wrap(params)
    for _ in range(2):
        optimizer.zero_grad()
        (loss(params[:2]) + loss(params[2:]).float()).backward()
        assert reduced(params)
        optimizer.step()
    assert {bucket.flat.dtype for bucket in optimizer._exchange._plans.buckets} == {
        torch.float32,
        torch.bfloat16,
    }


def test_a_bfloat16_network_trains():
    model = network().bfloat16()
    optimizer = hvd.DistributedOptimizer(OPTIMIZERS["sgd"](model.parameters()))
    for _, _, x, y in batches(5):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x.bfloat16()).float(), y).backward()
        optimizer.step()
    assert same_on_all_ranks(model.parameters())


def test_channels_last_gradients_keep_their_strides():
    model = network().to(memory_format=torch.channels_last)
    optimizer = hvd.DistributedOptimizer(OPTIMIZERS["sgd"](model.parameters()))
    for _, _, x, y in batches(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x.to(memory_format=torch.channels_last)), y).backward()
        optimizer.step()
    assert in_views(optimizer) and same_on_all_ranks(model.parameters())


def test_parameters_of_every_layout():
    params = [
        torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).t()),
        torch.nn.Parameter(torch.tensor(3.0)),
        torch.nn.Parameter(torch.zeros(0, 3)),
        torch.nn.Parameter(torch.arange(8.0)[::2]),
        torch.nn.Parameter(torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)),
    ]
    optimizer = wrap(params)
    for _ in range(2):
        optimizer.zero_grad()
        loss(params).backward()
        assert reduced(params)
        optimizer.step()
    assert [slots(optimizer)[i].view.stride() for i in (0, 3, 4)] == [(1, 3), (1,), params[4].stride()]


@pytest.mark.parametrize("by_hand", [False, True])
def test_large_gradients_of_every_layout(by_hand):
    """Those that are written past the caches, and their neighbours that are not."""
    params = [
        torch.nn.Parameter(torch.zeros(1024, 1024)),
        torch.nn.Parameter(torch.zeros(7)),
        torch.nn.Parameter(torch.zeros(300, 201).t()),
        torch.nn.Parameter(torch.zeros(64, 64, 3, 3).to(memory_format=torch.channels_last)),
        torch.nn.Parameter(torch.zeros(150_001)[1:]),
    ]
    optimizer = wrap(params, op=hvd.Sum)

    def part(p, rank):
        return (torch.arange(p.numel()) % 1009 + 2000 * rank).reshape(p.shape).float()

    for _ in range(3):
        optimizer.zero_grad()
        if by_hand:  # in other layouts than the parameters', or with a sign that is only noted
            for p in params:
                mine = part(p, hvd.rank())
                p.grad = torch._neg_view(-mine) if p.dim() == 1 else mine.mT.contiguous().mT
        else:
            sum((p * part(p, hvd.rank())).sum() for p in params).backward()
        optimizer.synchronize()
        passing = [False] * 5 if device.is_on_gpu(params[0]) else [True, False, True, True, True]
        assert [slot.passes_caches for slot in slots(optimizer)] == passing
        for p in params:
            assert torch.equal(p.grad, sum(part(p, rank) for rank in range(hvd.size())))
        assert in_views(optimizer)
        optimizer.step()


def test_a_compiled_model():
    model, alone = network(), network()
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = hvd.DistributedOptimizer(OPTIMIZERS["sgd"](model.parameters()))
    other = OPTIMIZERS["sgd"](alone.parameters())
    for x_all, y_all, x, y in batches(3):
        optimizer.zero_grad()
        other.zero_grad()
        torch.nn.functional.cross_entropy(compiled(x), y).backward()
        assert optimizer._exchange.finished
        torch.nn.functional.cross_entropy(alone(x_all), y_all).backward()
        optimizer.step()
        other.step()
    for p, q in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-4, atol=1e-5)


def test_sum_and_predivide():
    params = parameters()
    optimizer = wrap(params, op=hvd.Sum)
    loss(params).backward()
    assert all(torch.equal(p.grad, hvd.size() * average(p)) for p in params)
    optimizer.step()
    params = parameters()
    optimizer = wrap(params, gradient_predivide_factor=4.0)
    loss(params).backward()
    assert reduced(params)
    optimizer.step()


def test_learning_rate_schedulers_made_before_and_after():
    for before in (True, False):
        params = parameters()
        plain = torch.optim.SGD(params, lr=1.0)
        if before:
            scheduler = torch.optim.lr_scheduler.StepLR(plain, 1, gamma=0.5)
        optimizer = hvd.DistributedOptimizer(plain)
        if not before:
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        expected = [p.detach().clone() for p in params]
        for rate in (1.0, 0.5, 0.25):
            optimizer.zero_grad()
            loss(params if hvd.rank() == 0 else params[1:]).backward()  # so that step() itself must exchange
            optimizer.step()
            scheduler.step()
            expected = [e - rate * p.grad for e, p in zip(expected, params, strict=True)]
        assert all(torch.equal(p, e) for p, e in zip(params, expected, strict=True))
        assert same_on_all_ranks(params)


def test_the_optimizer_is_still_one_of_its_class():
    params = parameters()
    calls = []
    plain = torch.optim.Adam(params, lr=0.1)
    plain.register_step_pre_hook(lambda *_: calls.append([p.grad.clone() for p in params]))
    plain.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer = hvd.DistributedOptimizer(plain)
    assert isinstance(optimizer, torch.optim.Adam) and optimizer is plain
    assert type(optimizer).__name__ == "Adam" and type(optimizer) is not torch.optim.Adam
    assert repr(optimizer) == repr(torch.optim.Adam(params, lr=0.1))
    loss(params).backward()
    optimizer.step()
    assert len(calls) == 2 and calls[1] == "after"
    assert all(torch.equal(g, average(p)) for g, p in zip(calls[0], params, strict=True))
    saved = optimizer.state_dict()
    optimizer.load_state_dict(saved)
    optimizer.zero_grad()
    loss(params).backward()
    optimizer.step()
    assert len(calls) == 4  # hooks run once a step, also after load_state_dict
    with pytest.raises(hvd.UsageError, match="already"):
        hvd.DistributedOptimizer(optimizer)


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"]
)
def test_copies_are_plain_and_can_be_wrapped_again(how):
    params = parameters()
    optimizer = wrap(params, optimizer=torch.optim.Adam)
    loss(params).backward()
    optimizer.step()
    copied = how(optimizer)
    assert type(copied) is torch.optim.Adam
    theirs = copied.param_groups[0]["params"]
    again = hvd.DistributedOptimizer(copied)
    for o, ps in ((optimizer, params), (again, theirs)):
        o.zero_grad()
        loss(ps).backward()
        assert reduced(ps)
        o.step()
    assert all(torch.equal(p, q) for p, q in zip(params, theirs, strict=True))


def test_a_checkpoint_of_rank_0_goes_on_everywhere():
    model = network()
    optimizer = hvd.DistributedOptimizer(OPTIMIZERS["adamw"](model.parameters()))
    train(model, optimizer, 3)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(model, optimizer, 3)
    file.seek(0)
    saved = torch.load(file)
    resumed = network(seed=hvd.rank() + 1)
    other = hvd.DistributedOptimizer(OPTIMIZERS["adamw"](resumed.parameters()))
    if hvd.rank() == 0:
        resumed.load_state_dict(saved["model"])
        other.load_state_dict(saved["optimizer"])
    hvd.broadcast_parameters(resumed.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(other, root_rank=0)
    train(resumed, other, 3)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), resumed.parameters(), strict=True))


# --- GradScaler -----------------------------------------------------------------------------------


def scaler():
    return torch.amp.GradScaler("cpu", init_scale=8.0)


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("passes", [1, 2])
def test_infinity_on_one_rank_makes_all_ranks_skip(explicit, complete, passes):
    params = parameters()
    optimizer = wrap(params, backward_passes_per_step=passes)
    scale = scaler()
    for step, bad in enumerate([False, True, False]):
        before = [p.detach().clone() for p in params]
        optimizer.zero_grad()
        # Incomplete: one rank has no gradient for a parameter, or the window has fewer passes than it might.
        mine = params if complete or hvd.rank() == 0 else params[1:]
        value = loss(mine, 2 if bad and hvd.rank() == hvd.size() - 1 else 1)
        if bad and hvd.rank() == hvd.size() - 1:
            value = value * float("inf")
        scale.scale(value).backward()
        if explicit:
            scale.unscale_(optimizer)
            if not bad:
                assert reduced(params[1:])
                torch.nn.utils.clip_grad_norm_(params, 1e6)
        scale.step(optimizer)
        scale.update()
        moved = [not torch.equal(p, b) for p, b in zip(params, before, strict=True)]
        assert moved == [not bad] * len(params), step
        if not bad:
            assert reduced(params[1:])
        assert scale.get_scale() == (8.0 if step == 0 else 4.0)
    assert same_on_all_ranks(params)


def test_a_scaler_that_skips_where_the_module_drops_gradients():
    params = parameters()
    optimizer = wrap(params)
    scale = scaler()
    for bad in (True, True, False):
        for p in params:
            p.grad = None
        value = loss(params)
        scale.scale(value * float("inf") if bad and hvd.rank() == 0 else value).backward()
        scale.step(optimizer)
        scale.update()
    assert reduced(params) and scale.get_scale() == 2.0
    assert same_on_all_ranks(params)
