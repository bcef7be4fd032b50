"""With which ranks does this one share memory? Proved by reading back a token, never assumed from a host's name.

Two ranks of one machine need not share: each may live in a container of its own. So each rank makes a heap
(csrc/shared/heap.h), tells the others of its host how to map it, and tries to map theirs. Ranks that can all map one
another form a group.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import Any

from ringdp.errors import InitError, TransportError

VARIABLE = "RINGDP_SHARED_MEMORY"
KINDS = {"auto": ("memfd", "file"), "memfd": ("memfd",), "file": ("file",), "off": ()}


@dataclass
class Neighbourhood:
    """The ranks that share memory with this one."""

    host: Any = None  # ringdp._core.Host; None: nothing is shared
    kind: str = ""  # of its heap: memfd or file
    members: list[int] = field(default_factory=list)  # in order, this rank included
    mail: list[int] = field(default_factory=list)  # where each one's part of the mail lies in its heap


def wanted_kinds() -> tuple[str, ...]:
    """The kinds of heap to try, in order.

    Raises:
        InitError: RINGDP_SHARED_MEMORY has another value than those there are.
    """
    value = os.environ.get(VARIABLE) or "auto"
    if value not in KINDS:
        raise InitError(f"{VARIABLE}={value} is not one of {', '.join(KINDS)}")
    return KINDS[value]


def find_neighbours(comm: Any, rank: int) -> Neighbourhood:
    """Make this rank's heap, and map those of the ranks that share memory with it. Collective over `comm`.

    Args:
        comm: an mpi4py communicator of the ranks that may share memory: those of one host, by its name.
        rank: this rank's number in the job.
    """
    best = Neighbourhood()
    for kind in wanted_kinds():
        found = _try_kind(comm, rank, kind)
        sizes = comm.allgather((len(best.members), len(found.members)))
        if sum(new for _, new in sizes) > sum(old for old, _ in sizes):
            best = found
        if all(new == comm.Get_size() for _, new in sizes):
            break
    return best


def _try_kind(comm: Any, rank: int, kind: str) -> Neighbourhood:
    from ringdp import _core

    try:
        host = _core.Host(rank, kind)
        card: bytes | None = host.card()
    except TransportError as error:
        print(
            f"ringdp: rank {rank}: {error}; its host's ranks exchange through MPI",
            file=sys.stderr,
            flush=True,
        )
        host, card = None, None
    cards: list[tuple[int, bytes | None]] = comm.allgather((rank, card))
    reached = {rank} if host is not None else set()
    for other, theirs in cards:
        if host is not None and theirs is not None and other != rank and host.attach(other, theirs) == "":
            reached.add(other)
    everyone = dict(comm.allgather((rank, reached)))
    if host is not None:
        host.unlink()
    members = group_of(rank, everyone)
    mail = host.make_mail(len(members)) if host is not None and members else _core.NOWHERE
    offsets = dict(comm.allgather((rank, mail)))
    if not members or any(offsets[member] == _core.NOWHERE for member in members):
        return Neighbourhood()
    return Neighbourhood(host, kind, members, [offsets[member] for member in members])


def group_of(rank: int, reached: dict[int, set[int]]) -> list[int]:
    """The ranks of this one's group, in order: each reaches each. The same groups on every rank.

    Args:
        rank: this one.
        reached: for each rank of the host the ranks whose heap it could map, itself included; empty: it has none.
    """
    groups: list[list[int]] = []
    for newcomer in sorted(r for r in reached if reached[r]):
        for group in groups:
            if all(newcomer in reached[m] and m in reached[newcomer] for m in group):
                group.append(newcomer)
                break
        else:
            groups.append([newcomer])
    return next((group for group in groups if rank in group), [])


class Lender:
    """Gives arrays memory that the ranks of the host share; says once where there is none left.

    Args:
        found: with whom this rank shares memory; a rank that shares it with nobody needs none.
        rank: this one.
    """

    def __init__(self, found: Neighbourhood, rank: int) -> None:
        self._heap = found.host
        self._host = found.host if len(found.members) > 1 else None
        self._kind = found.kind
        self._rank = rank
        self._has_warned = False

    def bytes(self, count: int) -> Any:
        """A NumPy array of so many bytes, with anything in them; None where none is to be had. They live as long as
        the last array on them.
        """
        block = self._host.allocate(count) if self._host is not None else None
        if block is None and self._host is not None and not self._has_warned:
            self._has_warned = True
            free = available_bytes(self._kind)
            print(
                f"ringdp: rank {self._rank}: {count} bytes of shared memory wanted, {free} bytes free on this host: "
                "ordinary memory is used instead, which is slower",
                file=sys.stderr,
                flush=True,
            )
        return block

    def passing(self, count: int) -> Any:
        """The same for what lives as long as one operation, also on a rank that shares memory with no other: the heap
        gives memory again that was used before, where the system would have to clear new pages.
        """
        return self.bytes(count) if self._heap is self._host else self._heap.allocate(count)


def available_bytes(kind: str) -> int:
    """What the system has left for a heap of this kind: a file lies under /dev/shm, a memfd in memory alone."""
    if kind == "file":
        status = os.statvfs("/dev/shm")
        return status.f_bavail * status.f_frsize
    with open("/proc/meminfo") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 0
