"""How fast a link is: a short ping-pong between two ranks, over MPI as ringdp's own messages."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from time import perf_counter
from typing import Any

from ringdp import profile

# How far a link may be from the profile before init() says so. Wide: a few messages on a busy machine tell little.
FAR = 4.0


def ping_pong(comm: Any, first: int, second: int, size: int, rounds: int) -> float:
    """Seconds that `size` bytes take one way: the fastest of `rounds` round trips, halved; 0 on other ranks.

    Called by the ranks `first` and `second` of `comm` at least; both get the same number.
    """
    import numpy as np

    if comm.rank not in (first, second):
        return 0.0
    other = second if comm.rank == first else first
    data, best = np.zeros(size, np.uint8), float("inf")
    for _ in range(rounds):
        start = perf_counter()
        if comm.rank == first:
            comm.Send(data, other)
            comm.Recv(data, other)
        else:
            comm.Recv(data, other)
            comm.Send(data, other)
        best = min(best, (perf_counter() - start) / 2)
    theirs = comm.sendrecv(best, other, source=other)
    return float(best if comm.rank == first else theirs)


def measure(comm: Any, first: int, second: int, size: int, rounds: int) -> tuple[float, float]:
    """(latency in seconds, bytes a second) between two ranks, each of which must call it."""
    latency = ping_pong(comm, first, second, 8, rounds * 4)
    seconds = ping_pong(comm, first, second, size, rounds)
    return latency, size / max(seconds - latency, 1e-9)


def hosts_of(comm: Any, mpi: Any) -> list[int]:
    """The host of each rank, as the lowest rank that shares it. Collective."""
    local = comm.Split_type(mpi.COMM_TYPE_SHARED, key=comm.rank)
    lowest = local.bcast(comm.rank, root=0)
    local.Free()
    return list(comm.allgather(lowest))


def placement(hosts: Sequence[int]) -> tuple[int, int, int]:
    """(ranks, hosts, the most ranks on one host), from the host of each rank."""
    ranks_of = Counter(hosts)
    return len(hosts), len(ranks_of), max(ranks_of.values())


def warning(latency: float, bandwidth: float, assumed: Any) -> str | None:
    """A line when the link between hosts is far from the profile, else None."""
    off = [
        f"{what} {measured:.3g} {unit}, in the profile {wanted:.3g}"
        for what, unit, measured, wanted in (
            ("latency", "us", latency * 1e6, assumed.net.latency * 1e6),
            ("bandwidth", "GB/s", bandwidth / 1e9, assumed.net.bandwidth / 1e9),
        )
        if not 1 / FAR < measured / wanted < FAR
    ]
    if not off:
        return None
    return (
        f"the link between hosts is not what the profile {assumed.name} says ({'; '.join(off)}), so the choice of "
        "algorithms may be bad: name another in RINGDP_PROFILE, or measure one with "
        "`ringdp bench --write-profile FILE`"
    )


def warn_if_far(comm: Any, hosts: list[int]) -> None:
    """A few milliseconds between rank 0 and the first rank of another host; nothing on one host. Collective."""
    other = next((rank for rank, host in enumerate(hosts) if host != hosts[0]), None)
    if other is None or comm.rank not in (0, other):
        return
    text = warning(*measure(comm, 0, other, 128 << 10, 3), profile.current())
    if text and comm.rank == 0:
        print(f"ringdp: {text}", file=sys.stderr, flush=True)
