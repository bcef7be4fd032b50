"""What must be the same on all ranks of a job, before they exchange anything."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from typing import Any

from ringdp import profile, sharing
from ringdp.errors import InitError


def compare(comm: Any, library: str) -> None:
    """Versions, where messages are cut, and what algorithms are chosen by. Collective over `comm`.

    Args:
        comm: an mpi4py communicator.
        library: the MPI, with its version.

    Raises:
        InitError: they are not the same; on all ranks.
    """
    mine = {"versions of ringdp": _version("ringdp"), "versions of MPI": library}
    mine["versions of Python"] = sys.version.split()[0]
    mine |= {f"versions of {name}": _version(name) for name in ("numpy", "torch", "tensorflow", "jax")}
    for option in (
        "RINGDP_SEGMENT_BYTES",
        "RINGDP_SHARED_SEGMENT_BYTES",
        "RINGDP_LETTER_BYTES",
        "RINGDP_CHECKSUM",
        "RINGDP_ALGORITHM",
        "RINGDP_ELASTIC",
        sharing.VARIABLE,
    ):
        mine[f"values of {option}"] = os.environ.get(option) or "the default"
    mine["profiles (RINGDP_PROFILE)"] = profile.described()
    of_rank = comm.allgather(mine)
    for what in mine:
        found: dict[str, list[int]] = {}
        for rank, theirs in enumerate(of_rank):
            found.setdefault(theirs[what], []).append(rank)
        if len(found) > 1:
            table = "; ".join(f"{value} on rank{'s' * (len(r) > 1)} {_few(r)}" for value, r in found.items())
            raise InitError(f"the ranks have different {what}: {table}. Make them the same on all hosts")


def _few(ranks: list[int], most: int = 8) -> str:
    text = ", ".join(map(str, ranks[:most]))
    return text if len(ranks) <= most else f"{text} and {len(ranks) - most} more"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
