"""Batches of equal cost: which samples each rank takes in each step. Pure functions, the same on every rank.

The samples of an epoch, in random order, are cut into pools. A pool is sorted by cost and cut into steps, so that the
samples of a step are alike: there is little padding, and work is equal even with one sample in a batch. The samples of
a step are dealt out to the ranks, the costliest first, each to the rank that has the least so far: LPT of R. L. Graham,
"Bounds on Multiprocessing Timing Anomalies", SIAM J. Appl. Math. 17 (1969), with a limit on the samples of a rank. At
last the steps are shuffled.

    costs 9 8 7 | 3 2 2 ...  sorted, three ranks of two samples:   rank 0: 9 2    rank 1: 8 2    rank 2: 7 3
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ringdp.errors import UsageError

Step = list[list[int]]  # samples by rank


@dataclass(frozen=True)
class Limits:
    """How large a batch may be: `batch_size` samples, or samples × their greatest cost ≤ `max_cost`."""

    batch_size: int | None = None
    max_cost: float | None = None

    def samples(self, greatest: float) -> int:
        """The most samples in a batch whose costliest costs `greatest`."""
        if self.batch_size is not None:
            return self.batch_size
        assert self.max_cost is not None
        return max(1, int(self.max_cost // greatest)) if greatest > 0 else 1 << 30


def plan_steps(
    costs: NDArray[np.float64],
    ranks: int,
    limits: Limits,
    *,
    seed: int | None = 0,
    epoch: int = 0,
    pool: int = 0,
    drop_last: bool = False,
) -> list[Step]:
    """The steps of an epoch: for each, the samples of each rank.

    Every rank has a batch in every step. Every sample is taken exactly once; but with `drop_last` less than a step's
    samples are left out (with `max_cost` the cheapest), and without it up to ranks - 1 samples are taken twice where
    batches of one sample do not come out even. In the last step of an epoch batches may be smaller.

    Args:
        costs: of the samples, none negative.
        ranks: how many there are.
        limits: of a batch.
        seed: together with `epoch` of the random order; None: samples and steps keep the order of the costs.
        epoch: see `seed`.
        pool: samples that are sorted together; 0: what 32 steps of average cost take.
        drop_last: leave out the samples that make no full step.
    """
    random = (
        None if seed is None else np.random.RandomState([seed, epoch])
    )  # its numbers never change (NEP 19)
    order = np.arange(len(costs)) if random is None else random.permutation(len(costs))
    if drop_last and limits.batch_size is not None:
        order = order[: len(order) - len(order) % (ranks * limits.batch_size)]
    pool = pool or 32 * ranks * limits.samples(float(costs.mean()) if len(costs) else 1.0)
    groups, rest = _cut(order, costs, ranks, limits, pool)
    if not drop_last:
        groups += _ragged(groups, rest, costs, ranks, limits)
    steps = [_deal(group, costs, ranks, turn) for turn, group in enumerate(groups)]
    return steps if random is None else [steps[i] for i in random.permutation(len(steps))]


def _cut(
    order: NDArray[np.int64], costs: NDArray[np.float64], ranks: int, limits: Limits, pool: int
) -> tuple[list[list[int]], list[int]]:
    """The samples of each full step, the costliest first; and what is left. A pool's rest goes to the next."""
    groups: list[list[int]] = []
    rest: list[int] = []
    for begin in range(0, len(order), pool):
        rest = [*rest, *order[begin : begin + pool].tolist()]
        rest.sort(key=lambda i: -costs[i])  # stable: samples of equal cost keep their random order
        at = 0
        while at < len(rest):
            wanted = ranks * limits.samples(float(costs[rest[at]]))
            if at + wanted > len(rest):
                break
            groups.append(rest[at : at + wanted])
            at += wanted
        rest = rest[at:]
    return groups, rest


def _ragged(
    groups: list[list[int]], rest: list[int], costs: NDArray[np.float64], ranks: int, limits: Limits
) -> list[list[int]]:
    """Steps for the samples that make no full step. Every rank must get one at least: if they are too few, they share
    with the step before, which is taken from `groups`; if even that does not do, some are taken twice.
    """
    if not rest:
        return []
    if len(rest) < ranks and groups and len(groups[-1]) + len(rest) >= 2 * ranks:
        both = sorted([*groups.pop(), *rest], key=lambda i: -costs[i])
        # One sample each is always within max_cost. What is left is no costlier than the step before was, and less.
        first = len(both) // 2 if limits.batch_size is not None else ranks
        return [both[:first], both[first:]]
    return [rest + [rest[i % len(rest)] for i in range(ranks - len(rest))]]


def _deal(group: Sequence[int], costs: NDArray[np.float64], ranks: int, turn: int) -> Step:
    """LPT. Who gets the costliest sample changes from step to step."""
    places = -(-len(group) // ranks)
    batches: Step = [[] for _ in range(ranks)]
    loads = [
        (0.0, 0, (rank - turn) % ranks, rank) for rank in range(ranks)
    ]  # load, samples, who is first, rank
    heapq.heapify(loads)
    for sample in group:
        load, samples, first, rank = heapq.heappop(loads)
        batches[rank].append(sample)
        if samples + 1 < places:
            heapq.heappush(loads, (load + float(costs[sample]), samples + 1, first, rank))
    return batches


def check_costs(costs: NDArray[np.float64], limits: Limits) -> None:
    """Refuse what no batch can be made of.

    Raises:
        UsageError: not one number a sample, a negative or infinite one, one above `max_cost`; wrong limits.
    """
    if (limits.batch_size is None) == (limits.max_cost is None):
        raise UsageError("give either batch_size or max_cost")
    if limits.batch_size is not None and limits.batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, not {limits.batch_size}")
    if costs.ndim != 1:
        raise UsageError(f"costs must be one number for each sample; these have shape {list(costs.shape)}")
    wrong = np.flatnonzero(~((costs >= 0) & np.isfinite(costs)))
    if wrong.size:
        raise UsageError(
            f"the cost of sample {wrong[0]} is {costs[wrong[0]]}: it must be a number, 0 or more"
        )
    if limits.max_cost is not None:
        wrong = np.flatnonzero(costs > limits.max_cost)
        if wrong.size:
            raise UsageError(
                f"{wrong.size} samples cost more than max_cost={limits.max_cost:g}; the first is sample {wrong[0]}, "
                f"which costs {costs[wrong[0]]:g}: shorten them or leave them out"
            )
