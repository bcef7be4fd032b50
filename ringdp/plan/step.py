"""One training step of a cluster, by two ways of agreeing on what is exchanged when.

Both run the same workload on the same cluster with the same all-reduce, the one that ringdp's core chooses, bucket
after bucket, while backward goes on. The slowest rank sets the pace: its gradients are ready later by its factor, and
nobody's exchange ends before.

planned      ringdp: the buckets are agreed once and leave in order as soon as they are full. After the last one, one
             vote by dissemination: ceil(log2 N) exchanges of a few words.
negotiated   Horovod with its response cache: every `cycle` seconds all ranks AND a bit vector of what is ready, by an
             all-reduce of a few words in ceil(log2 N) exchanges; what all have runs then, fused into buffers that are
             copied in and out. Where a cycle begins within a step is chance: the mean over PHASES of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ringdp.plan.cluster import Cluster
from ringdp.plan.exchange import Exchange, allreduce, chosen
from ringdp.plan.workload import Bucket, Workload

PHASES = 16


@dataclass(frozen=True)
class Negotiation:
    """Horovod's settings: seconds between cycles, bytes of a fusion buffer, bytes copied into or out of it a second."""

    cycle: float
    fusion_bytes: int
    copy_bandwidth: float


@dataclass(frozen=True)
class Step:
    """All in seconds. alone: one rank's step. compute: the slowest rank's. exchange, control: what is not hidden behind
    its backward, of the all-reduces and of agreeing on them."""

    ranks: int
    alone: float
    compute: float
    exchange: float
    control: float
    last: Exchange  # the all-reduce of the last full bucket

    @property
    def seconds(self) -> float:
        return self.compute + self.exchange + self.control

    @property
    def efficiency(self) -> float:
        """t(1) / t(N), each rank having the same amount of work at any N."""
        return self.alone / self.seconds

    @property
    def of_the_library(self) -> float:
        """The part of it that is the library's: what is left if all ranks were as slow as the slowest."""
        return self.compute / self.seconds


def planned(cluster: Cluster, workload: Workload, ranks: int) -> Step:
    """A step of ringdp's."""
    slow = cluster.slowest(ranks)
    buckets = workload.buckets()
    times = [_exchange(cluster, workload, ranks, b.bytes) for b in buckets]
    end = 0.0
    for bucket, exchange in zip(buckets, times, strict=True):
        end = max(end, slow * bucket.ready) + exchange.seconds
    compute = slow * workload.compute
    return Step(
        ranks,
        workload.compute,
        compute,
        max(0.0, end - compute),
        _vote(cluster, ranks),
        _last(buckets, times),
    )


def negotiated(cluster: Cluster, workload: Workload, ranks: int, how: Negotiation) -> Step:
    """A step of Horovod's, its tensors grouped so that each group fills a fusion buffer."""
    slow = cluster.slowest(ranks)
    groups = workload.buckets(how.fusion_bytes, how.fusion_bytes)
    times = [_exchange(cluster, workload, ranks, g.bytes) for g in groups]
    compute = slow * workload.compute
    exchange = control = 0.0
    for phase in range(PHASES):
        first = how.cycle * (phase + 0.5) / PHASES
        waited = _negotiate(cluster, ranks, how, [slow * g.ready for g in groups], times, groups, first)
        unhindered = _negotiate(cluster, 1, how, [slow * g.ready for g in groups], times, groups, None)
        exchange += max(0.0, unhindered - compute) / PHASES
        control += (waited - max(unhindered, compute)) / PHASES
    return Step(ranks, workload.compute, compute, exchange, control, _last(groups, times))


def _negotiate(
    cluster: Cluster,
    ranks: int,
    how: Negotiation,
    ready: list[float],
    times: list[Exchange],
    groups: list[Bucket],
    first: float | None,
) -> float:
    """When the last group is out of its buffer; first: when the first cycle begins, None: agreeing takes no time."""
    end = 0.0
    agreeing = _agree(cluster, ranks)
    cycle = max(how.cycle, agreeing)
    for at, exchange, group in zip(ready, times, groups, strict=True):
        agreed = at
        if first is not None and ranks > 1:
            agreed = first + cycle * max(0, math.ceil((at - first) / cycle)) + agreeing
        copies = 2 * group.bytes / how.copy_bandwidth if ranks > 1 else 0.0
        end = max(end, agreed) + exchange.seconds + copies
    return end


def _vote(cluster: Cluster, ranks: int) -> float:
    """Recursive doubling: log2 N exchanges, two more where N is no power of two (csrc/agree/doubling.h)."""
    levels = ranks.bit_length() - 1
    return cluster.control * (levels if ranks == 1 << levels else levels + 2)


def _agree(cluster: Cluster, ranks: int) -> float:
    """A few words from all ranks to all ranks: each hears of twice as many in each of ceil(log2 N) exchanges."""
    return cluster.control * math.ceil(math.log2(ranks)) if ranks > 1 else 0.0


def _exchange(cluster: Cluster, workload: Workload, ranks: int, nbytes: int) -> Exchange:
    count, element_bytes = nbytes // workload.element_bytes, workload.element_bytes
    return allreduce(cluster, ranks, count, element_bytes, chosen(cluster, ranks, count, element_bytes))


def _last(buckets: list[Bucket], times: list[Exchange]) -> Exchange:
    return max(zip(buckets, times, strict=True), key=lambda pair: pair[0].bytes)[1]
