"""Steps of a DistributedOptimizer, counted: run by test_steady_step.py, in threads or as a rank of its own."""

import sys

import torch

import ringdp.torch as hvd
from ringdp import world

WAYS = {
    "plain": {},
    "groups": {"num_groups": 3},
    "weighed": {},
    "fp16": {"compression": hvd.Compression.fp16},
    "min": {"op": hvd.Min},
    "sharded": {"shard": True},
}


def count(way, tensors, steps=4):
    """(whether the steps after the first were steady, what the core did in each of them)."""
    params = [torch.nn.Parameter(torch.zeros(n % 7 + 1)) for n in range(tensors)]
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(params, lr=0.5), bucket_bytes=1024, **WAYS[way])
    moved = 0.0

    def step(n):
        nonlocal moved
        optimizer.zero_grad()
        if way == "weighed":
            optimizer.weigh(2)
        sum((p * (hvd.rank() + n)).sum() for p in params).backward()
        want = n if way == "min" else n + (hvd.size() - 1) / 2
        optimizer.step()
        moved -= 0.5 * want
        assert all((p == moved).all() for p in params)

    for n in range(3):
        step(n)
    before = world.current().engine.counters()
    for n in range(steps):
        step(n)
    after = world.current().engine.counters()
    done = {what: (after[what] - before[what]) / steps for what in ("votes", "named", "buckets")}
    buckets = len(optimizer._exchange._plans.buckets)
    assert buckets >= 1
    sent = 2 * buckets if way == "sharded" else buckets  # by halves
    return done == {"votes": 1, "named": 0, "buckets": sent}, done


if __name__ == "__main__":
    torch.set_num_threads(1)
    hvd.init()
    for way in WAYS:
        for tensors in (1, 60):
            steady, done = count(way, tensors)
            if not steady:
                sys.exit(f"{way}, {tensors} tensors: {done}")
    print(f"rank {hvd.rank()} of {hvd.size()}: steady")
