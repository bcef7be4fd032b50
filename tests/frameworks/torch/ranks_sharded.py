"""The sharded optimizer (ZeRO-1): bit for bit what the optimizer without shards does, with a part of its state."""

import io

import pytest
import torch
from frameworks.torch.helpers import batches, network, same_on_all_ranks

import ringdp.torch as hvd
from ringdp.errors import UsageError
from ringdp.torch.sharded.how import ELEMENTWISE

OPTIONS = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "RMSprop": {"lr": 0.01, "momentum": 0.5, "centered": True},
    "Adam": {"lr": 0.01, "amsgrad": True},
    "Rprop": {"lr": 0.01},
}


def make(kind, params):
    return kind(params, **OPTIONS.get(kind.__name__, {"lr": 0.01}))


def wrap(model, kind=torch.optim.Adam, shard=True, **options):
    names = options.pop("named_parameters", None) or model.named_parameters()
    return hvd.DistributedOptimizer(
        make(kind, model.parameters()), named_parameters=names, shard=shard, **options
    )


def loss_of(model, x, y):
    return torch.nn.functional.cross_entropy(model(x), y)


def train(model, optimizer, steps=5, clip=None, passes=1, joined=False):
    for all_x, all_y, my_x, my_y in batches(steps, rows=6):
        x, y = (all_x, all_y) if joined else (my_x, my_y)
        optimizer.zero_grad()
        for part in range(passes):
            rows = slice(part * len(x) // passes, (part + 1) * len(x) // passes)
            (loss_of(model, x[rows], y[rows]) / passes).backward()
        if clip is not None:
            clip(optimizer, model)
        optimizer.step()
    return model


def same(model, other):
    return all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def near(model, other, atol=2e-5):
    return all(
        torch.allclose(p, q, rtol=1e-4, atol=atol)
        for p, q in zip(model.parameters(), other.parameters(), strict=True)
    )


def elements_of_state(optimizer):
    return sum(v.numel() for state in optimizer.state.values() for v in state.values() if v.dim())


@pytest.mark.parametrize("bucket_bytes", [1000, 25 << 20], ids=["small buckets", "one bucket"])
@pytest.mark.parametrize("kind", ELEMENTWISE, ids=lambda kind: kind.__name__)
def test_elementwise_optimizers_equal_those_without_shards_bit_for_bit(kind, bucket_bytes):
    whole, sharded = network(), network()
    one = wrap(whole, kind, shard=False, bucket_bytes=bucket_bytes)
    other = wrap(sharded, kind, bucket_bytes=bucket_bytes)
    train(whole, one)
    train(sharded, other)
    assert same(whole, sharded)
    assert same_on_all_ranks(sharded.parameters())
    assert not near(sharded, network())
    # Of the state, a rank has its part, and all have all of it.
    mine = elements_of_state(other)
    assert mine <= elements_of_state(one) / hvd.size() * 1.1 + 8
    total = hvd.allreduce(torch.tensor(mine), op=hvd.Sum)
    assert total == elements_of_state(one)
