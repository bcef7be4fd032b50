"""Samplers, with the ranks given: nothing is exchanged."""

import numpy as np
import pytest
import torch

import ringdp.torch as hvd
from ringdp.torch.data import BalancedBatchSampler, DistributedSampler, imbalance

RANKS = [1, 2, 3, 4, 7]


def lengths(samples=1024):
    return np.random.RandomState(1).lognormal(4, 1, samples).clip(1, 512).round()


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("samples", [0, 5, 21, 100])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
def test_the_order_is_that_of_torch(ranks, samples, shuffle, drop_last):
    if not samples:
        drop_last = False  # torch's own fails
    for rank in range(ranks):
        arguments = (range(samples), ranks, rank, shuffle, 3, drop_last)
        ours, theirs = DistributedSampler(*arguments), torch.utils.data.DistributedSampler(*arguments)
        for epoch in range(2):
            ours.set_epoch(epoch)
            theirs.set_epoch(epoch)
            assert list(ours) == list(theirs) and len(ours) == len(theirs)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("samples", [0, 5, 21, 100])
def test_without_padding_every_sample_is_dealt_out_once(ranks, samples):
    shares = []
    for rank in range(ranks):
        sampler = DistributedSampler(range(samples), ranks, rank, pad=False)
        shares.append(list(sampler))
        assert len(shares[-1]) == len(sampler)
    assert sorted(i for share in shares for i in share) == list(range(samples))
    assert len(shares[0]) - len(shares[-1]) in (0, 1)


def test_ranks_that_cannot_be():
    with pytest.raises(hvd.UsageError, match="num_replicas and rank, or neither"):
        DistributedSampler(range(3), 2)
    with pytest.raises(hvd.UsageError, match="rank must be 0 to 1, not 2"):
        DistributedSampler(range(3), 2, 2)


def balanced(rank, ranks, costs, **options):
    return BalancedBatchSampler(None, costs, num_replicas=ranks, rank=rank, **options)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("options", [{"batch_size": 8}, {"max_cost": 2048}], ids=["batch_size", "max_cost"])
def test_balanced_batches_are_the_dataset(ranks, options):
    costs = lengths()
    samplers = [balanced(rank, ranks, costs, **options) for rank in range(ranks)]
    for epoch in range(2):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        batches = [list(sampler) for sampler in samplers]
        assert len({len(b) for b in batches}) == 1 and len(batches[0]) == len(samplers[0])
        assert sorted(i for b in batches for batch in b for i in batch) == list(range(1024))


def test_balanced_batches_leave_less_to_wait_for():
    costs, ranks = lengths(), 4
    shares = [list(DistributedSampler(costs, ranks, rank)) for rank in range(ranks)]
    naive = imbalance(np.array([costs[s].reshape(-1, 8).sum(axis=1) for s in shares]).T)
    left = balanced(0, ranks, costs, batch_size=8).imbalance()
    padded = balanced(0, ranks, costs, batch_size=8, padded=True).imbalance()
    tokens = balanced(0, ranks, costs, max_cost=2048).imbalance()
    found = [f"{x.mean_ratio:.3f} {x.idle_fraction:.4f}" for x in (naive, left, padded, tokens)]
    assert found == ["1.398 0.2930", "1.002 0.0009", "1.004 0.0064", "1.001 0.0009"]
    assert (left.steps, tokens.steps) == (32, 14)


def test_costs_by_a_function_and_batches_for_a_loader():
    dataset = [torch.zeros(n) for n in (3, 1, 4, 1, 5, 9, 2, 6)]
    sampler = BalancedBatchSampler(dataset, len, batch_size=2, num_replicas=2, rank=1, shuffle=False)
    assert sampler.steps() == [[[5, 2], [7, 4]], [[6, 1], [0, 3]]]
    loader = torch.utils.data.DataLoader(
        dataset, batch_sampler=sampler, collate_fn=lambda samples: [len(s) for s in samples]
    )
    assert list(loader) == [[6, 5], [3, 1]] and len(loader) == 2


def test_costs_that_are_refused():
    with pytest.raises(hvd.UsageError, match="there are 2 costs for 3 samples"):
        BalancedBatchSampler(range(3), [1, 2], batch_size=1, num_replicas=1, rank=0)
    with pytest.raises(hvd.UsageError, match="give the dataset too"):
        balanced(0, 1, len, batch_size=1)
    with pytest.raises(hvd.UsageError, match="pool must be 0 or more samples, not -1"):
        balanced(0, 1, [1], batch_size=1, pool=-1)
