"""The processes below an mpirun on this host, as /proc shows them: which are ranks, and can they stop in order."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

from ringdp.processes import children, signals
from ringdp.spares import NAME as _SPARE

_RANK_VARIABLES = (b"OMPI_COMM_WORLD_RANK=", b"PMI_RANK=", b"PMIX_RANK=")
_ENGINE = "ringdp-engine"  # the name of the thread that every initialised rank has: csrc/engine/drive.cc


def can_stop(mpirun: int, wanted: bool) -> bool:
    """Whether all ranks of this host, and spares, have called `ringdp.init()` and catch SIGUSR1; `wanted` if none is
    here.

    Any other program would die of SIGUSR1, or mean something else by it.
    """
    ranks = list(_ranks_below(mpirun))
    return all(_catches(rank) and _has_engine(rank) for rank in ranks) if ranks else wanted


def has_ranks(mpirun: int) -> bool:
    """Whether any is on this host."""
    return any(True for _ in _ranks_below(mpirun))


def _ranks_below(pid: int) -> Iterator[int]:
    for child in children(pid):
        if _is_rank(child):
            yield child
        else:
            yield from _ranks_below(child)


def _is_rank(pid: int) -> bool:
    """A launcher has told it its rank. (What it starts itself has been told, too.)"""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return False
    return any(word.startswith(_RANK_VARIABLES) for word in words)


def _catches(pid: int) -> bool:
    return signals(pid).catches(signal.SIGUSR1)


def _has_engine(pid: int) -> bool:
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/comm", encoding="utf-8", errors="replace") as file:
                if file.read().strip() in (_ENGINE, _SPARE):
                    return True
    except OSError:
        pass
    return False
