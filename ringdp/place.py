"""Where a rank stands: in the job, and among its hosts. Found out together in `init()`, and told to child processes."""

from __future__ import annotations

import os
import sys
from dataclasses import astuple, dataclass
from typing import Any

from ringdp import launch

# Set by init() for processes that this one starts: "pid", and then what `Place` holds.
PARENT_VARIABLE = "RINGDP_PARENT"


@dataclass(frozen=True)
class Place:
    """Where a rank stands: in the job, on its host, and among the ranks of the same local rank on other hosts."""

    rank: int
    size: int
    local_rank: int = 0
    local_size: int = 1
    cross_rank: int = 0
    cross_size: int = 1
    homogeneous: bool = True


def find(MPI: Any, base: Any) -> Place:
    """Of this rank. Collective over the communicator."""
    local = base.Split_type(MPI.COMM_TYPE_SHARED, key=base.Get_rank())
    cross = base.Split(color=local.Get_rank(), key=base.Get_rank())
    sizes = base.allgather(local.Get_size())
    place = Place(
        base.Get_rank(),
        base.Get_size(),
        local.Get_rank(),
        local.Get_size(),
        cross.Get_rank(),
        cross.Get_size(),
        homogeneous=len(set(sizes)) == 1,
    )
    local.Free()
    cross.Free()
    return place


def warn_oversubscription(base: Any, place: Place) -> None:
    """By rank 0, of all hosts that have more to do than cores. Collective over the communicator."""
    warning = launch.oversubscription_warning(
        place.local_size, launch.cores_of_host(), launch.bound_cores(), launch.threads_of_process(os.environ)
    )
    warnings = base.gather(warning, root=0)
    if place.rank == 0:
        for text in dict.fromkeys(w for w in warnings if w):
            print(f"ringdp: {text}", file=sys.stderr, flush=True)


# --- child processes --------------------------------------------------------------------------------------------------


def tell_children(place: Place) -> None:
    """Those that this process starts from now on find it in their environment."""
    os.environ[PARENT_VARIABLE] = " ".join(str(int(word)) for word in (os.getpid(), *astuple(place)))


def tell_children_nothing() -> None:
    os.environ.pop(PARENT_VARIABLE, None)


def told_by() -> tuple[int, Place] | None:
    """The process that has told its children, and its place: this one, or one that it comes from."""
    text = os.environ.get(PARENT_VARIABLE)
    if text is None:
        return None
    pid, rank, size, local_rank, local_size, cross_rank, cross_size, homogeneous = map(int, text.split())
    return pid, Place(rank, size, local_rank, local_size, cross_rank, cross_size, bool(homogeneous))
