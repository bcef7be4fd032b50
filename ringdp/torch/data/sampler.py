"""A sampler that deals the samples out to the ranks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sized

import torch.utils.data

from ringdp.errors import UsageError
from ringdp.process_sets import ProcessSet, global_process_set


class DistributedSampler(torch.utils.data.Sampler):
    """Deals a dataset out to the ranks: rank r takes every size()-th sample of the epoch's order, from the r-th on.

    As torch's sampler of this name, in the same order (`torch.randperm` of seed + epoch), but without
    torch.distributed: ranks come from ringdp, and are asked for at each iteration. Call `set_epoch` before each epoch.

    Args:
        dataset: anything with a length.
        num_replicas, rank: default those of `process_set`.
        shuffle: if False, in the order of the dataset.
        seed: the same on all ranks.
        drop_last: leave out the last samples where the dataset does not divide evenly.
        pad: otherwise take some from the beginning twice, so that all ranks have as many; if False, the first ranks
            have one more than the others, every sample is taken exactly once, and the ranks may differ by one in their
            number of batches (see `join()`; `BalancedBatchSampler` always gives all ranks as many batches).
        process_set: the ranks that the dataset is dealt out to.
    """

    def __init__(
        self,
        dataset: Sized,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        *,
        pad: bool = True,
        process_set: ProcessSet = global_process_set,
    ) -> None:
        self.dataset = dataset
        self._place = Place(num_replicas, rank, process_set)
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.pad = pad
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Another random order."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        total = len(self.dataset)
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            order = torch.randperm(total, generator=generator).tolist()
        else:
            order = list(range(total))
        rank, ranks = self._place.now()
        stop = ranks * len(self) if self.drop_last or self.pad else total
        return itertools.islice(itertools.cycle(order), rank, stop, ranks)

    def __len__(self) -> int:
        """This rank's samples of an epoch."""
        rank, ranks = self._place.now()
        each, more = divmod(len(self.dataset), ranks)
        if self.drop_last:
            return each
        return each + (more > 0 if self.pad else rank < more)


class Place:
    """For whom a sampler draws: given numbers, or those of a process set at the time."""

    def __init__(self, num_replicas: int | None, rank: int | None, process_set: ProcessSet) -> None:
        if (num_replicas is None) != (rank is None):
            raise UsageError("give num_replicas and rank, or neither")
        if num_replicas is not None and rank is not None and not 0 <= rank < num_replicas:
            raise UsageError(f"rank must be 0 to {num_replicas - 1}, not {rank}")
        self.given = None if num_replicas is None or rank is None else (rank, num_replicas)
        self.process_set = process_set

    def now(self) -> tuple[int, int]:
        """(rank, number of ranks)."""
        if self.given is not None:
            return self.given
        rank = self.process_set.rank()
        if rank is None:
            raise UsageError(
                f"this rank is none of {self.process_set!r}, which the sampler deals the samples out to"
            )
        return rank, self.process_set.size()
