"""Batches of equal cost, so that the ranks finish together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch.utils.data
from numpy.typing import NDArray

from ringdp.balance import Limits, Step, check_costs, plan_steps
from ringdp.errors import UsageError
from ringdp.imbalance import Imbalance, imbalance
from ringdp.process_sets import ProcessSet, global_process_set
from ringdp.state import agree
from ringdp.torch.data.sampler import Place


class BalancedBatchSampler(torch.utils.data.Sampler):
    """Batches whose costs (sequence lengths, usually) are nearly the same on all ranks in each step.

        sampler = BalancedBatchSampler(dataset, lengths, batch_size=16)
        loader = torch.utils.data.DataLoader(dataset, batch_sampler=sampler)
        sampler.set_epoch(epoch)   # before each epoch

    All ranks have the same number of batches, and which samples are in them is a pure function of (costs, number of
    ranks, options, seed, epoch): `ringdp.balance` has the algorithm. Together the ranks take every sample once (see
    `drop_last`).

    Args:
        dataset: the samples; None if `costs` is a sequence.
        costs: a number for each sample; or a function of a sample, called once for all of `dataset`.
        batch_size: samples in a batch.
        max_cost: instead of it, the most that (samples in a batch × the greatest cost among them) may be: tokens, with
            padding.
        shuffle: if False, samples are taken in the order of the dataset, pool by pool.
        seed: the same on all ranks.
        drop_last: leave out the samples that make no full step. Otherwise the batches of one step may be smaller, and
            with batches of one sample up to num_replicas - 1 samples are taken twice.
        pool: so many samples are sorted by cost together; more: less padding and imbalance, but less random. Default:
            32 steps.
        padded: the cost of a batch, in `imbalance()`, is its number of samples × the greatest cost, instead of the sum.
        num_replicas, rank: default those of `process_set`. Then making the sampler is collective: the ranks compare
            costs and options.
        process_set: the ranks that the batches are made for.

    Raises:
        UsageError: costs or limits of which no batches can be made.
        MismatchError: the ranks have other costs or options.
    """

    def __init__(
        self,
        dataset: Any,
        costs: Any,
        *,
        batch_size: int | None = None,
        max_cost: float | None = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        pool: int = 0,
        padded: bool = False,
        num_replicas: int | None = None,
        rank: int | None = None,
        process_set: ProcessSet = global_process_set,
    ) -> None:
        self._costs = _costs_of(dataset, costs)
        self._limits = Limits(batch_size, max_cost)
        check_costs(self._costs, self._limits)
        if pool < 0:
            raise UsageError(f"pool must be 0 or more samples, not {pool}")
        self._place = Place(num_replicas, rank, process_set)
        self._options: dict[str, Any] = {
            "seed": seed if shuffle else None,
            "pool": pool,
            "drop_last": drop_last,
        }
        self._padded = padded
        self.epoch = 0
        self._planned: tuple[tuple[int, int], list[Step]] | None = None
        if self._place.given is None:
            digest = hashlib.blake2b(self._costs.tobytes(), digest_size=8).hexdigest()
            lines = [f"{len(self._costs)} costs of digest {digest}", f"{self._limits}, {self._options}"]
            agree(lines, "BalancedBatchSampler", process_set)

    def set_epoch(self, epoch: int) -> None:
        """Other random batches."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        rank, _ = self._place.now()
        return iter([list(step[rank]) for step in self.steps()])

    def __len__(self) -> int:
        """The batches of this epoch, the same on all ranks; with `max_cost` it may differ between epochs."""
        return len(self.steps())

    def steps(self) -> list[Step]:
        """The batches of all ranks, step by step, in this epoch."""
        _, ranks = self._place.now()
        key = (self.epoch, ranks)
        if self._planned is None or self._planned[0] != key:
            self._planned = (
                key,
                plan_steps(self._costs, ranks, self._limits, epoch=self.epoch, **self._options),
            )
        return self._planned[1]

    def imbalance(self) -> Imbalance:
        """What is left in this epoch, computed from the costs. `print(sampler.imbalance())` gives a line."""
        _, ranks = self._place.now()
        loads = [[self._cost_of(batch) for batch in step] for step in self.steps()]
        return imbalance(np.array(loads, np.float64).reshape(-1, ranks))

    def _cost_of(self, batch: list[int]) -> float:
        costs = self._costs[batch]
        return float(costs.max() * costs.size if self._padded else costs.sum())


def _costs_of(dataset: Any, costs: Any) -> NDArray[np.float64]:
    if callable(costs):
        if dataset is None:
            raise UsageError("costs is a function: give the dataset too")
        costs = [float(costs(dataset[i])) for i in range(len(dataset))]
    found = np.asarray(costs, np.float64)
    if dataset is not None and len(found) != len(dataset):
        raise UsageError(f"there are {len(found)} costs for {len(dataset)} samples")
    return found
