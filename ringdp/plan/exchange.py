"""How long one bucket's all-reduce takes on a cluster: ringdp's own schedules, executed in virtual time.

How a time was found out is part of the answer:

executed      the schedules of all ranks, move by move
by symmetry   one period of ranks stands for all of them (csrc/collectives/timing.h); exact
doubled       the schedules of LARGE / 4 and of LARGE ranks, or thereabouts, are executed; each further doubling of the
              ranks is taken to cost half of what came in between. Trees and doubling algorithms grow by one level with
              it. An approximation, used beyond LARGE ranks where there is no symmetry; some 10 % off (docs/scale.md)
composed      two levels: inside the host and between hosts, each executed, overlapped in OVERLAP segments
formula       shared memory inside a host, which is no schedule of messages: by the core's cost function
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

from ringdp import _core
from ringdp.constants import Dtype
from ringdp.plan.cluster import INFINITE, Cluster

LARGE = 1024  # ranks whose schedules are executed one by one
SEGMENT_BYTES = 256 << 10  # RINGDP_SEGMENT_BYTES as these fast links want it; the default suits TCP
DEPTH = 8  # RINGDP_DEPTH, likewise
MOST_SEGMENTS = 64  # of a chunk: beyond, longer segments stand for several; only the last one's share changes
TREE_SEGMENTS, TREE_SEGMENT_BYTES = 16, 4096  # of each half of a double tree: csrc/collectives/cost.h
OVERLAP = 4  # segments in which two levels overlap
PREFER_RING = 1.1  # within 10 % of the cheapest, the ring is taken: csrc/collectives/choice.cc

_core_: Any = _core
_s: Any = _core.schedules


@dataclass(frozen=True)
class Exchange:
    """seconds of one all-reduce, by which algorithm, and how that was found out."""

    algorithm: str
    seconds: float
    how: str


def algorithms() -> list[str]:
    """The all-reduce algorithms that this build has schedules for, and their composition in two levels."""
    return [*(a.name for a in _s.Algorithm), "two_level"]


def allreduce(cluster: Cluster, ranks: int, count: int, element_bytes: int, algorithm: str) -> Exchange:
    """The all-reduce of `count` elements over `ranks` ranks (a whole number of hosts, or one host in part)."""
    if ranks == 1 or count == 0:
        return Exchange(algorithm, 0.0, "executed")
    if algorithm == "two_level":
        return _two_level(_network(cluster), ranks, count, element_bytes)
    if algorithm == "shared_memory":
        return Exchange(
            algorithm, _costs(cluster, ranks, count * element_bytes, element_bytes)[algorithm], "formula"
        )
    return _one_level(_network(cluster), ranks, count, element_bytes, algorithm)


def fastest(cluster: Cluster, ranks: int, count: int, element_bytes: int) -> Exchange:
    """The algorithm with the least time, but the ring where it is within 10 % of that."""
    if ranks == 1:
        return Exchange("ring", 0.0, "executed")
    return _fastest(_network(cluster), ranks, count, element_bytes)


def chosen(cluster: Cluster, ranks: int, count: int, element_bytes: int) -> str:
    """The algorithm that ringdp's core takes there: by its cost functions (csrc/collectives/choice.h), not by executing
    anything. It need not be the fastest."""
    if ranks == 1:
        return "ring"
    return str(_core_.choose(*_placed(cluster, ranks, count * element_bytes, element_bytes)))


def _costs(cluster: Cluster, ranks: int, nbytes: int, element_bytes: int) -> dict[str, float]:
    """Seconds of each algorithm that can run there, by the core's cost functions."""
    return dict(_core_.costs(*_placed(cluster, ranks, nbytes, element_bytes)))


def _placed(cluster: Cluster, ranks: int, nbytes: int, element_bytes: int) -> tuple[Any, ...]:
    """What the core's choice and its cost functions take."""
    per_host, hosts = min(cluster.ranks_per_host, ranks), cluster.hosts(ranks)
    profile = _core_.profile(_core_.built_in_profiles()[0])
    profile.overhead, profile.reduce = cluster.operation, cluster.arithmetic
    for link, here in ((profile.host, cluster.inside), (profile.net, cluster.between)):
        link.latency, link.bandwidth = here.latency, here.bandwidth
    # All ranks of a host together: as a ring inside it, which moves the tensor twice over each rank's link.
    profile.shared.latency = cluster.inside.latency
    profile.shared.bandwidth = per_host * cluster.inside.bandwidth
    dtype = Dtype.float16 if element_bytes == 2 else Dtype.float32
    return ranks, hosts, per_host, cluster.shares_memory and hosts == 1, nbytes, dtype, profile


def _network(cluster: Cluster) -> Cluster:
    """What an exchange depends on: clusters that differ in nothing else share what was executed for one of them."""
    return replace(cluster, name="", control=0.0, spread=0.0, jitter=0.0, stragglers=0, slowdown=1.0, seed=0)


@functools.lru_cache(maxsize=4096)
def _fastest(cluster: Cluster, ranks: int, count: int, element_bytes: int) -> Exchange:
    names = sorted(
        algorithms(), key=lambda a: ("two_level", "ring").index(a) if a in ("two_level", "ring") else 2
    )
    best, ring = Exchange("none", math.inf, "executed"), None
    for name in names:
        if name == "two_level" and not 1 < cluster.ranks_per_host < ranks:
            continue
        if _at_least(cluster, ranks, count * element_bytes, name) > PREFER_RING * best.seconds:
            continue  # not worth executing
        found = allreduce(cluster, ranks, count, element_bytes, name)
        ring = found if name == "ring" else ring
        best = min(best, found, key=lambda e: e.seconds)
    return ring if ring is not None and ring.seconds <= PREFER_RING * best.seconds else best


def _at_least(cluster: Cluster, ranks: int, nbytes: int, algorithm: str) -> float:
    """Seconds that no execution of the algorithm can stay below."""
    per_host = min(cluster.ranks_per_host, ranks)
    latency = min(cluster.inside.latency, cluster.between.latency if ranks > per_host else INFINITE)
    if algorithm == "ring":
        return 2 * (ranks - 1) * latency
    if (
        algorithm == "recursive_doubling" and ranks > per_host
    ):  # all ranks of a host send at once, the whole tensor
        return math.floor(math.log2(ranks / per_host)) * per_host * nbytes / cluster.between.bandwidth
    return 0.0


@functools.lru_cache(maxsize=4096)
def _one_level(cluster: Cluster, ranks: int, count: int, element_bytes: int, algorithm: str) -> Exchange:
    per_host = cluster.ranks_per_host if cluster.ranks_per_host < ranks else ranks
    period = _period(algorithm, ranks, per_host, ranks <= count <= SEGMENT_BYTES // element_bytes)
    if period < ranks:
        seconds = _execute(cluster, ranks, per_host, count, element_bytes, algorithm, period)
        how = "by symmetry"
    elif ranks <= LARGE:
        seconds, how = _execute(cluster, ranks, per_host, count, element_bytes, algorithm, ranks), "executed"
    else:
        seconds, how = _doubled(cluster, ranks, per_host, count, element_bytes, algorithm), "doubled"
    return Exchange(algorithm, cluster.operation + seconds, how)


def _period(algorithm: str, ranks: int, per_host: int, one_segment: bool) -> int:
    """How many ranks stand for all: a host's where every host does the same, otherwise all of them. In halving-doubling
    the order in which a rank sends what it has depends on where that lies, unless it is all one segment."""
    power_of_two = ranks & (ranks - 1) == 0 and per_host & (per_host - 1) == 0
    symmetric = {
        "ring": ranks % per_host == 0,
        "recursive_doubling": power_of_two,
        "halving_doubling": power_of_two and one_segment,
    }
    return per_host if symmetric.get(algorithm, False) else ranks


def _execute(
    cluster: Cluster, ranks: int, per_host: int, count: int, element_bytes: int, algorithm: str, period: int
) -> float:
    chunk = -(-count // ranks)
    segment = _segment(algorithm, chunk if algorithm == "ring" else count, element_bytes)
    if period < ranks and algorithm != "recursive_doubling":
        count = chunk * ranks  # symmetry wants equal chunks
    named = _s.Algorithm[algorithm]
    case = _s.case(_s.Collective.allreduce, ranks, [count], segment, DEPTH, in_place=True, algorithm=named)
    return max(_s.virtual_time(case, element_bytes, cluster.native(per_host), period).finished)


def _segment(algorithm: str, elements: int, element_bytes: int) -> int:
    """As the engine cuts (Operation::pipeline_of), but into fewer segments where there would be very many."""
    if algorithm == "double_tree":
        half = elements // 2
        longest = max(SEGMENT_BYTES // element_bytes, half // MOST_SEGMENTS)
        return max(1, min(longest, max(TREE_SEGMENT_BYTES // element_bytes, half // TREE_SEGMENTS)))
    return max(SEGMENT_BYTES // element_bytes, -(-elements // MOST_SEGMENTS))


def _doubled(
    cluster: Cluster, ranks: int, per_host: int, count: int, element_bytes: int, algorithm: str
) -> float:
    # A number that is no power of two stays none: doubling algorithms pair some ranks then.
    unit = per_host if ranks & (ranks - 1) == 0 or per_host & (per_host - 1) else 3 * per_host
    large = unit << int(math.log2(LARGE / unit))
    quarter, whole = (
        _one_level(cluster, n, count, element_bytes, algorithm).seconds - cluster.operation
        for n in (large // 4, large)
    )
    return whole + math.log2(ranks / large) * max(0.0, whole - quarter) / 2


def _two_level(cluster: Cluster, ranks: int, count: int, element_bytes: int) -> Exchange:
    """Inside the host a ring over its ranks; between hosts one ring per rank of a host, each with its part of the
    elements and of the link. The longer of the two hides the other but for one segment."""
    per_host = cluster.ranks_per_host
    bare = replace(cluster, operation=0.0)
    inside = _one_level(replace(bare, between=bare.inside), per_host, count, element_bytes, "ring").seconds
    share = replace(
        bare,
        ranks_per_host=1,
        cores=0,
        between=replace(bare.between, bandwidth=bare.between.bandwidth / per_host),
    )
    hosts = cluster.hosts(ranks)
    between = (
        _one_level(share, hosts, -(-count // per_host), element_bytes, "ring").seconds if hosts > 1 else 0.0
    )
    seconds = max(inside, between) + min(inside, between) / OVERLAP
    return Exchange("two_level", cluster.operation + seconds, "composed")
