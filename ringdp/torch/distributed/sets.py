"""The ranks of a group: a process set that its members make without the others, and a communicator for messages.

torch asks for a new group only on its members, so `ringdp.add_process_set`, in which all ranks of the job take part,
would not do. Groups of the same ranks share one set, and tell their operations apart by name. A set stays until
`ringdp.shutdown()`: to destroy a group is nothing that ranks do together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from ringdp.errors import DeadlineError, UsageError
from ringdp.job import MpiJob
from ringdp.numpy.ops import operations
from ringdp.process_sets import ProcessSet, global_process_set
from ringdp.world import World

FIRST_NUMBER = 1 << 24  # ringdp.add_process_set counts from 1
TAG = 32767  # of MPI_Comm_create_group: the greatest that every MPI has


@dataclass
class Place:
    """The ranks of a group, and what connects them.

    Args:
        ranks: of the job, in order.
        process_set: in which the core knows them.
        comm: an mpi4py communicator for messages between them; None in a job without MPI.
        groups: how many have been made of them.
    """

    ranks: tuple[int, ...]
    process_set: ProcessSet
    comm: Any
    groups: int = 0


class Places:
    """The service (`World.service`) that has all of them."""

    def __init__(self, here: World) -> None:
        self._here = here
        self._places: dict[tuple[int, ...], Place] = {}
        self._next_number = FIRST_NUMBER

    def close(self) -> None:
        """The job frees the communicators."""
        self._places.clear()

    def of(self, ranks: Sequence[int], store: Any, timeout: float, group: str) -> Place:
        """The place of these ranks, for one more group. Collective over them.

        Args:
            ranks: of the job, in order.
            store: of the group: its members meet there before MPI is asked, which has no deadlines.
            timeout: seconds until they must have come.
            group: its name in torch, for the error.

        Raises:
            DeadlineError: some have not come.
        """
        key = tuple(ranks)
        if key not in self._places:
            if key == tuple(range(self._here.place.size)):
                self._places[key] = self._everybody(key)
            else:
                if len(key) > 1:
                    _meet(store, key, self._here.place.rank, timeout, group)
                self._places[key] = self._members(key)
        place = self._places[key]
        place.groups += 1
        return place

    def _everybody(self, ranks: tuple[int, ...]) -> Place:
        operations.barrier()
        job = self._here.job
        return Place(ranks, global_process_set, job.duplicate() if isinstance(job, MpiJob) else None)

    def _members(self, ranks: tuple[int, ...]) -> Place:
        job = self._here.job
        if not isinstance(job, MpiJob):
            raise UsageError("only a job over MPI has groups of some of its ranks")
        comm = job.communicator_of(ranks, TAG)
        # Unused on every member. Sets that have no rank in common may have the same number.
        number = int(comm.allreduce(self._next_number, op=job.MPI.MAX))
        self._next_number = number + 1
        messages = job.duplicate(comm)
        job.add_set_over(comm, self._here.engine, number, ranks)
        process_set = ProcessSet(ranks)
        process_set._becomes(number, sorted(ranks), self._here.place.rank)
        process_set.is_of_a_group = True
        self._here.process_sets[number] = process_set
        return Place(ranks, process_set, messages)


def _meet(store: Any, ranks: tuple[int, ...], rank: int, timeout: float, group: str) -> None:
    prefix = f"ringdp/{'.'.join(map(str, ranks)) if len(ranks) <= 8 else hash(ranks)}"
    store.set(f"{prefix}/{rank}", "1")
    if store.add(f"{prefix}/come", 1) == len(ranks):
        store.set(f"{prefix}/all", "1")
    try:
        store.wait([f"{prefix}/all"], timedelta(seconds=timeout))
    except RuntimeError as error:
        missing = [other for other in ranks if not store.check([f"{prefix}/{other}"])]
        raise DeadlineError(
            f"rank {rank}: torch.distributed group {group} needs the ranks {list(ranks)}, and {missing} have not "
            f"come to make it within {timeout:g} s"
        ) from error
