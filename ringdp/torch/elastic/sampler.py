"""A sampler that knows which samples of the epoch were processed, and deals out the rest after a reset."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sized
from typing import Any

import torch.utils.data

from ringdp import world


class ElasticSampler(torch.utils.data.Sampler):
    """Deals the samples of an epoch that are not yet processed out to all ranks, as `DistributedSampler` does.

    Put it into the `TorchState`, call `record_batch` after each batch, and `set_epoch` at the *end* of each epoch.

    The order is that of Horovod 0.28.1: `random.Random(seed + epoch).shuffle(range(n))`; rank r takes every size()-th
    of what remains, from the r-th on; samples from the beginning are taken twice where it does not divide evenly.

    Args:
        dataset: anything with a length, which stays the same.
        shuffle: if False, in the order of the dataset.
        seed: the same on all ranks.
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int = 0) -> None:
        self.dataset = dataset
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        self.processed_num = 0  # of the epoch's order, from its beginning
        self._recorded: set[int] = set()  # one by one, by record_indices()
        self.indices: list[int] = []  # this rank's, of the last iteration
        self.reset()

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch: another order, nothing processed."""
        self.epoch = epoch
        self.processed_num = 0
        self._recorded = set()
        self.reset()

    def record_batch(self, batch_idx: int, batch_size: int) -> None:
        """Every rank has processed a batch of this size: so many samples of what remained, times size(), are done."""
        self._counted += batch_size * self.num_replicas
        if self._counted <= len(self._places):
            self.processed_num = self._places[self._counted - 1] + 1 if self._counted else self.processed_num
        else:  # samples that were taken twice
            self.processed_num = len(self._order) + self._counted - len(self._places)

    def record_indices(self, indices: Iterable[int]) -> None:
        """These samples are processed: for batches that were not taken in the sampler's order. `TorchState.sync()` puts
        together what all ranks have recorded.
        """
        self._recorded.update(int(i) for i in indices)

    def get_indices(self, batch_idx: int, batch_size: int) -> list[int]:
        """This rank's samples of a batch of the iteration that is under way."""
        return self.indices[batch_idx * batch_size : (batch_idx + 1) * batch_size]

    @property
    def processed_indices(self) -> set[int]:
        """The samples that are done in this epoch, on all ranks, as far as this rank knows."""
        return {*self._order[: self.processed_num], *self._recorded}

    def state_dict(self) -> dict[str, Any]:
        """Of Horovod's form; `processed_indices` is there only if `record_indices` was used."""
        state: dict[str, Any] = {"epoch": self.epoch, "processed_num": self.processed_num}
        if self._recorded:
            state["processed_indices"] = set(self._recorded)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Also takes what releases of Horovod before 0.23 saved, which have `processed_indices` alone."""
        self.epoch = state_dict["epoch"]
        self.processed_num = state_dict.get("processed_num", 0)
        self._recorded = set(state_dict.get("processed_indices", ()))
        self.reset()

    def dealt(self) -> dict[str, Any]:
        """What `deal_again` takes: what remained when it was dealt out, and how much of that is done. Plain data."""
        processed, recorded = self._remained
        return {
            "epoch": self.epoch,
            "processed_num": processed,
            "recorded": sorted(recorded),
            "counted": self._counted,
        }

    def deal_again(self, dealt: dict[str, Any]) -> None:
        """Go on in the midst of an iteration that another process began, with as many ranks and the same number: this
        rank gets the samples that were left there, and the same ones twice."""
        self.epoch = dealt["epoch"]
        self.processed_num, self._recorded = dealt["processed_num"], set(dealt["recorded"])
        self.reset()
        if dealt["counted"]:
            self.record_batch(0, dealt["counted"] // self.num_replicas)
        self._done = self._counted // self.num_replicas

    def reset(self) -> None:
        """Deal out what remains anew, to the ranks that there are now."""
        self.num_replicas, self.rank = world.size(), world.rank()
        self._order = list(range(len(self.dataset)))
        if self.shuffle:
            random.Random(self.seed + self.epoch).shuffle(self._order)
        self._remained = self.processed_num, frozenset(self._recorded)
        self._counted = 0  # samples recorded since
        self._done = 0  # of them, this rank's that no iteration takes again
        self._places = [
            place
            for place in range(self.processed_num, len(self._order))
            if self._order[place] not in self._recorded
        ]
        self.remaining_indices = [self._order[place] for place in self._places]
        self.num_samples = -(-len(self._places) // self.num_replicas)
        self.total_size = self.num_samples * self.num_replicas

    def __iter__(self) -> Iterator[int]:
        dealt = itertools.islice(
            itertools.cycle(self.remaining_indices), self.rank, self.total_size, self.num_replicas
        )
        self.indices = list(dealt)[self._done :]
        return iter(self.indices)

    def __len__(self) -> int:
        return self.num_samples - self._done
