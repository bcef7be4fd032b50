"""Batches of equal cost, and the imbalance left. Pure functions: no ranks."""

import numpy as np
import pytest

from ringdp import UsageError
from ringdp.balance import Limits, check_costs, plan_steps
from ringdp.imbalance import imbalance


def skewed(samples, seed=1):
    """Sequence lengths of a long tail, 1 to 512."""
    return np.random.RandomState(seed).lognormal(4, 1, samples).clip(1, 512).round()


def taken(steps):
    return sorted(i for step in steps for batch in step for i in batch)


def loads(steps, costs):
    return [[costs[batch].sum() for batch in step] for step in steps]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("samples", [56, 57, 100, 1000])
@pytest.mark.parametrize("seed", [0, None])
def test_every_sample_once_and_a_batch_for_every_rank_in_every_step(ranks, batch_size, samples, seed):
    costs = skewed(samples)
    steps = plan_steps(costs, ranks, Limits(batch_size), seed=seed)
    assert all(len(step) == ranks for step in steps)
    assert all(1 <= len(batch) <= batch_size for step in steps for batch in step)
    twice = -samples % ranks if batch_size == 1 else 0
    assert len(taken(steps)) == samples + twice
    assert set(taken(steps)) == set(range(samples))
    full = plan_steps(costs, ranks, Limits(batch_size), seed=seed, drop_last=True)
    assert all(len(batch) == batch_size for step in full for batch in step)
    assert len(full) == samples // (ranks * batch_size) and len(set(taken(full))) == len(taken(full))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("max_cost", [512, 600, 4096])
@pytest.mark.parametrize("samples", [57, 100, 1000])
def test_no_batch_costs_more_than_the_limit_padding_included(ranks, max_cost, samples):
    costs = skewed(samples)
    costs[-1] = 512
    for epoch in range(3):
        steps = plan_steps(costs, ranks, Limits(max_cost=max_cost), epoch=epoch, pool=50)
        assert all(len(step) == ranks and all(step) for step in steps)
        assert all(costs[b].max() * len(b) <= max_cost for step in steps for b in step)
        assert set(taken(steps)) == set(range(samples)) and len(taken(steps)) - samples < ranks


def test_a_last_sample_that_costs_more_than_its_step_can_bear():
    """The last pool is one sample of 8, the step before holds 16 of 1: shared out, no batch may exceed 8."""
    costs = np.array([1.0] * 16 + [8.0])
    steps = plan_steps(costs, 2, Limits(max_cost=8), seed=None, pool=16)
    assert taken(steps) == list(range(17))
    assert [sorted(map(len, step)) for step in steps] == [[1, 1], [7, 8]]
    assert all(costs[b].max() * len(b) <= 8 for step in steps for b in step)


def test_fewer_samples_than_ranks():
    assert plan_steps(np.array([3.0, 5.0]), 5, Limits(4), seed=None) == [[[1], [0], [1], [0], [1]]]
    assert plan_steps(np.zeros(0), 3, Limits(4)) == []
    assert plan_steps(np.array([3.0, 5.0]), 5, Limits(4), drop_last=True) == []


def test_costs_of_zero():
    steps = plan_steps(np.zeros(10), 3, Limits(max_cost=5))
    assert taken(steps) == list(range(10)) and [sorted(map(len, s)) for s in steps] == [[3, 3, 4]]


def test_the_costliest_go_to_who_has_the_least():
    costs = np.array([9.0, 8.0, 7.0, 3.0, 2.0, 2.0])
    assert plan_steps(costs, 3, Limits(2), seed=None) == [[[0, 5], [1, 4], [2, 3]]]
    # and the costliest one to another rank in the next step
    twice = plan_steps(np.tile(costs, 2) - np.repeat([0, 0.5], 6), 3, Limits(2), seed=None, pool=6)
    assert twice == [[[0, 5], [1, 4], [2, 3]], [[8, 9], [6, 11], [7, 10]]]


def test_the_same_everywhere_and_another_in_each_epoch():
    costs = skewed(200)
    plans = [plan_steps(costs, 4, Limits(8), seed=s, epoch=e) for s, e in [(0, 0), (0, 0), (0, 1), (1, 0)]]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2] and plans[0] != plans[3] and plans[2] != plans[3]


def test_what_is_left_of_the_imbalance():
    """1024 samples of a long tail, 4 ranks, batches of 8: as dealt out in random order, and balanced."""
    costs = skewed(1024)
    order = np.random.RandomState(0).permutation(1024).reshape(-1, 8, 4)
    naive = imbalance(costs[order].sum(axis=1))
    left = imbalance(loads(plan_steps(costs, 4, Limits(8)), costs))
    one_by_one = imbalance(loads(plan_steps(costs, 4, Limits(1)), costs))
    assert str(naive) == (
        "imbalance of cost over 32 steps on 4 ranks: slowest / mean 1.403 on average, 1.966 at worst; "
        "ranks wait 28.7 % of the time"
    )
    assert str(left) == (
        "imbalance of cost over 32 steps on 4 ranks: slowest / mean 1.002 on average, 1.016 at worst; "
        "ranks wait 0.1 % of the time"
    )
    assert str(one_by_one) == (
        "imbalance of cost over 256 steps on 4 ranks: slowest / mean 1.060 on average, 1.714 at worst; "
        "ranks wait 6.9 % of the time"
    )


def test_imbalance_of_known_loads():
    found = imbalance([[1, 3], [2, 2], [0, 0]], "seconds")
    assert (found.ranks, found.steps, found.mean_ratio, found.worst_ratio) == (2, 2, 1.25, 1.5)
    assert found.idle_fraction == 1 - 4 / 5
    assert str(found) == (
        "imbalance of seconds over 2 steps on 2 ranks: slowest / mean 1.250 on average, 1.500 at worst; "
        "ranks wait 20.0 % of the time"
    )
    assert imbalance(np.zeros((0, 4))).idle_fraction == 0
    with pytest.raises(UsageError, match=r"shape \(steps, ranks\), not \[3\]"):
        imbalance([1, 2, 3])


@pytest.mark.parametrize(
    ("costs", "limits", "text"),
    [
        ([1.0], Limits(), "either batch_size or max_cost"),
        ([1.0], Limits(2, 3.0), "either batch_size or max_cost"),
        ([1.0], Limits(0), "batch_size must be at least 1, not 0"),
        ([[1.0]], Limits(1), r"shape \[1, 1\]"),
        ([1.0, -2.0], Limits(1), r"the cost of sample 1 is -2.0"),
        ([1.0, float("nan")], Limits(1), r"the cost of sample 1 is nan"),
        ([1.0, 9.0, 10.0], Limits(max_cost=8), r"2 samples cost more than max_cost=8; the first is sample 1"),
    ],
)
def test_what_no_batch_can_be_made_of(costs, limits, text):
    with pytest.raises(UsageError, match=text):
        check_costs(np.array(costs), limits)
