"""`ringdp bench --write-profile FILE`: the constants of the cost model, measured where the ranks are."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from time import perf_counter
from typing import Any

from ringdp import link, profile
from ringdp.cli import forced


def measured_profile(comm: Any, hosts: Sequence[int], name: str) -> tuple[Any, list[str]]:
    """The current profile with what can be measured here, and a line about each value. Collective.

    Args:
        comm: all ranks of the job; ringdp is not initialised.
        hosts: the host of each rank.
        name: of the new profile.
    """
    found = profile.current()
    found.name = name
    notes = [*_links(comm, hosts, found), _additions(comm, found), _overhead(comm, hosts, found)]
    return found, [*notes, f"shared: not measured; kept from {profile.described()}"]


def _links(comm: Any, hosts: Sequence[int], found: Any) -> list[str]:
    neighbours = next(((i, j) for j in range(comm.size) for i in range(j) if hosts[i] == hosts[j]), None)
    strangers = next(((0, j) for j in range(comm.size) if hosts[j] != hosts[0]), None)
    notes = []
    for what, pair, of in (("host", neighbours, found.host), ("net", strangers, found.net)):
        if pair is None:
            notes.append(f"{what}: not measured, no two ranks are placed so; kept from {profile.described()}")
            continue
        measured = link.measure(comm, *pair, 4 << 20, 20) if comm.rank in pair else None
        of.latency, of.bandwidth = comm.bcast(measured, pair[0])
        notes.append(
            f"{what}: {of.latency * 1e6:.2f} us, {of.bandwidth / 1e9:.3f} GB/s, ranks {pair[0]} and {pair[1]}"
        )
    return notes


def _additions(comm: Any, found: Any) -> str:
    import numpy as np

    from ringdp import _core
    from ringdp.constants import Dtype, Sum

    a, b = np.ones(4 << 20, np.float32), np.ones(4 << 20, np.float32)
    taken = []
    for _ in range(10):
        start = perf_counter()
        _core.kernels.reduce(Dtype.float32, Sum, a.ctypes.data, a.ctypes.data, b.ctypes.data, a.size)
        taken.append(perf_counter() - start)
    found.reduce = min(comm.allgather(a.nbytes / median(taken)))
    return f"reduce: {found.reduce / 1e9:.2f} GB/s, every rank at once"


def _overhead(comm: Any, hosts: Sequence[int], found: Any) -> str:
    """What an all-reduce of one number takes beyond its messages."""
    from ringdp import _core
    from ringdp.constants import Dtype

    with forced.algorithm("ring"):
        seconds = forced.microseconds(comm, 4, 50) / 1e6
    costs = dict(_core.costs(*link.placement(hosts), False, 4, Dtype.float32, found))
    found.overhead = max(1e-6, seconds - (costs["ring"] - found.overhead))
    return f"overhead: {found.overhead * 1e6:.1f} us, of an all-reduce of 4 bytes"
