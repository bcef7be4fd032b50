"""Processes that take the places of lost ranks (`ringdp run --elastic --spares S`, docs/elastic.md).

They are started with the ranks, and are no ranks: `init()` keeps them waiting, asleep but for a look at MPI now and
then. When ranks are lost, all that live come together, spares too, and the first of them, as many as there were ranks,
are the ranks of the next generation. So a spare comes in at the end, and the ranks of before keep their order.

A process that has taken a place is *new* until `elastic.run` has given it the state. The ranks that live are in the
midst of that: so outside of it there is nobody whom a new one, or any rank that a new one is to be like, may meet.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ringdp import processes, signals, watch
from ringdp.errors import InitError, PeerError, UsageError

VARIABLE = "RINGDP_SPARES"  # set by `ringdp run --spares`: how many of those that it has started
NAME = "ringdp-spare"  # of the main thread, while it waits: `ringdp run` looks for it

_TAG = 1  # of the message that there is nothing to wait for any more
_LOOK = 0.05  # seconds between two looks of a spare that waits

_told = False  # this rank has told the spares that the job is over


@dataclass(frozen=True)
class Process:
    """One that was started, as its host knows it."""

    host: tuple[str, int]  # with the space in which its number counts
    pid: int
    born: int

    @staticmethod
    def mine() -> Process:
        found = processes.find(os.getpid())
        return Process((socket.gethostname(), processes.space()), os.getpid(), found.born if found else 0)

    def seen(self, here: tuple[str, int]) -> processes.Process | None:
        """As it is now; None if it has gone, or is of another host than `here`."""
        found = processes.find(self.pid) if self.host == here else None
        return found if found is not None and found.born == self.born and not found.has_ended else None

    def has_gone(self, here: tuple[str, int]) -> bool:
        """For sure: it was of this host."""
        return self.host == here and self.seen(here) is None

    def kill(self, here: tuple[str, int]) -> None:
        """By a pidfd: another process that has got its number is not meant."""
        with contextlib.suppress(OSError):
            fd = os.pidfd_open(self.pid)
            try:
                if self.seen(here) is not None:
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
            finally:
                os.close(fd)


@dataclass(frozen=True)
class Living:
    """All that were started and live, by communicators that nothing else uses.

    Attributes:
        everyone: ranks and spares: where some are lost, those that live find each other by it.
        ranks: those of the generation, by which they agree; None on a spare. The same as `everyone` where no spares
            are left.
        size: the number of ranks.
        full: what it was when the job began.
        processes: by number in `everyone`; none where there never were spares.
    """

    everyone: Any
    ranks: Any
    size: int
    full: int
    processes: Sequence[Process] = ()

    def spares(self) -> Sequence[Process]:
        """Those that wait."""
        return self.processes[self.size :]

    def without_lost(self, everyone: Any, numbers: Mapping[int, int]) -> Living:
        """`everyone` is who is left, by their numbers of before. Collective over them."""
        left = [one for number, one in enumerate(self.processes) if number in numbers]
        return divided(everyone, self.full, left)


def wanted() -> int:
    """How many there are, as `ringdp run` says."""
    text = os.environ.get(VARIABLE) or "0"
    return int(text) if text.isdecimal() else 0


def divided(everyone: Any, full: int, of: Sequence[Process]) -> Living:
    """The ranks of a generation: the first of all, in order. Collective."""
    size = min(full, everyone.Get_size())
    if everyone.Get_size() == size:
        return Living(everyone, everyone, size, full, of)
    from mpi4py import MPI

    is_rank = everyone.Get_rank() < size
    ranks = everyone.Split(0 if is_rank else MPI.UNDEFINED, everyone.Get_rank())
    if is_rank:
        ranks.Set_errhandler(MPI.ERRORS_RETURN)
    return Living(everyone, ranks if is_rank else None, size, full, of)


def first(everyone: Any) -> Living:
    """Of a job that begins. Collective over all that were started."""
    count = wanted()
    if count >= everyone.Get_size():
        raise InitError(
            f"{VARIABLE}={count}, but only {everyone.Get_size()} processes were started: no rank is left. `ringdp run "
            "--elastic --spares S` starts S more than -n says"
        )
    all_of_them: list[Process] = everyone.allgather(Process.mine()) if count else []
    return divided(everyone, everyone.Get_size() - count, all_of_them)


def refuse(comm: Any) -> None:
    """Raise InitError if `init(comm)` cannot be in a job with spares: `comm` is given; or they have been told that the
    job is over, and would be missing."""
    from ringdp import recovery

    if comm is not None and wanted() and recovery.is_wanted(os.environ):
        raise InitError(
            "ringdp.init(comm=...) cannot be in a job with spares (`ringdp run --spares`): all that were started are "
            "its ranks, but for the spares"
        )
    if _told:
        raise InitError(
            "ringdp.init() after ringdp.shutdown(): with `ringdp run --spares` the job ends with shutdown(), and the "
            "spares have ended. Leave out shutdown(), or --spares"
        )


# --- waiting ----------------------------------------------------------------------------------------------------------


def wait(living: Living) -> None:
    """Until ranks are lost. Where the job is over instead, this process ends, with exit code 0.

    Raises:
        PeerError: all ranks are gone, without a word.
    """
    from mpi4py import MPI

    here = Process.mine().host
    gone: set[int] = set()
    with _named(NAME), _ignoring_wishes():
        while True:
            for rank in range(living.size):
                try:
                    if living.everyone.Iprobe(rank, _TAG):
                        living.everyone.recv(source=rank, tag=_TAG)
                        raise SystemExit(0)
                except MPI.Exception as error:
                    if error.Get_error_class() == MPI.ERR_REVOKED:
                        return
                    gone.add(rank)
            if living.everyone.Is_revoked():
                return
            if all(rank in gone or living.processes[rank].has_gone(here) for rank in range(living.size)):
                raise PeerError(
                    f"a spare (process {os.getpid()}): all {living.size} ranks are gone, and with them the state: "
                    "there is no job to go on with"
                )
            time.sleep(_LOOK)


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """The main thread, for `ringdp run` and for people who look at processes."""
    path = f"/proc/self/task/{os.getpid()}/comm"
    try:
        with open(path, "r+") as file:
            before = file.read()
            file.write(name)
    except OSError:  # only its name
        before = ""
    try:
        yield
    finally:
        with contextlib.suppress(OSError), open(path, "w") as file:
            file.write(before or "python")


@contextlib.contextmanager
def _ignoring_wishes() -> Iterator[None]:
    """That the job stop after its step: the ranks hear it, too. (SIGTERM ends a spare, which has nothing to save.)"""
    theirs: list[signal.Signals] = [one for one in signals.wanted(os.environ) if one != signal.SIGTERM]
    signals.install(theirs, lambda number: True)
    try:
        yield
    finally:
        signals.restore()


# --- the end ----------------------------------------------------------------------------------------------------------


@watch.guarded("MPI_Send, to the spares,")
def dismiss(living: Living) -> int:
    """The job is over, or this rank leaves it at least: spares need not wait for it. By each rank.

    One that is stopped is killed by the ranks of its host: MPI_Finalize would wait for it.

    Returns:
        How many spares are dead, as far as this rank sees.
    """
    from mpi4py import MPI

    global _told
    _told = True
    here, dead = Process.mine().host, 0
    for number, spare in enumerate(living.spares(), living.size):
        try:
            living.everyone.send(None, dest=number, tag=_TAG)
            dead += spare.has_gone(here)
        except MPI.Exception:
            dead += 1
            continue
        found = spare.seen(here)
        if found is not None and found.is_stopped:
            say(f"killing a spare (process {spare.pid}): it is stopped, and the job is over")
            spare.kill(here)
            dead += 1
    return dead


# --- what stands outside of elastic.run -------------------------------------------------------------------------------


class _NotOpened:
    """In place of an operation of the core's."""

    def memory_in_use(self) -> bool:
        return False


class Barred:
    """The engine of a rank before `elastic.run`, in a job with spares: it exchanges nothing. For all else it is the
    engine."""

    _EXCHANGES = ("submit", "submit_group", "allreduce", "barrier", "submit_bucket", "vote", "wait_for_end")

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def open_plan(self, *plan: Any) -> _NotOpened:
        """Optimizers may be made here: they plan again when they are used."""
        return _NotOpened()

    def __getattr__(self, name: str) -> Any:
        if name in self._EXCHANGES:
            raise UsageError(
                f"rank {_rank()}: an exchange before elastic.run: in a job with spares (`ringdp run --spares`) a "
                "process that takes a lost rank's place comes to it alone, while the others are in elastic.run, and "
                "would wait for ever. Move it into the function that elastic.run calls (what all are to have alike, "
                "such as parameters, belongs into its state)"
            )
        return getattr(self.engine, name)


def say(text: str) -> None:
    """On stderr."""
    print(f"ringdp: {text}", file=sys.stderr, flush=True)


def _rank() -> int:
    from ringdp import world

    return world.rank()
