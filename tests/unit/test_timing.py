"""Virtual time (csrc/collectives/timing.h): schedules over a described cluster, without any rank running."""

from __future__ import annotations

from typing import Any

import pytest

from ringdp import _core
from ringdp.errors import UsageError

s: Any = _core.schedules
LATENCY, BANDWIDTH = 2.0**-18, 2.0**33  # powers of two: their sums and products are exact
FREE = float("inf")


def cluster(**changes: Any) -> Any:
    """One rank a host, small and large messages alike."""
    c = s.Cluster()
    c.between = s.Link(LATENCY, BANDWIDTH)
    c.inside = s.Link(LATENCY / 4, 4 * BANDWIDTH)
    c.eager = FREE
    for name, value in changes.items():
        setattr(c, name, value)
    return c


def ring(ranks: int, count: int, segment: int = 1 << 20, depth: int = 8) -> Any:
    return s.case(s.Collective.allreduce, ranks, [count], segment, depth, in_place=True)


def finished(case: Any, c: Any, period: int = 0, ready: list[float] | None = None) -> list[float]:
    return list(s.virtual_time(case, 4, c, period, ready or []).finished)


def header(c: Any) -> float:
    return float(c.between.latency + 64 / c.between.bandwidth)


def test_an_eager_ring_of_whole_chunks_takes_exactly_what_the_formula_says() -> None:
    for ranks in (2, 3, 8, 17):
        chunk = 1 << 14
        times = finished(ring(ranks, chunk * ranks), cluster())
        hop = LATENCY + 4 * chunk / BANDWIDTH
        assert times == [header(cluster()) + 2 * (ranks - 1) * hop] * ranks


def test_a_large_message_asks_first_and_costs_two_more_latencies() -> None:
    chunk = 1 << 14
    [one, _] = finished(ring(2, 2 * chunk), cluster(eager=0))
    assert one == header(cluster()) + 2 * (3 * LATENCY + 4 * chunk / BANDWIDTH)


def test_segments_keep_the_link_full_until_the_last_one() -> None:
    """A segment is forwarded while the next one comes: only one segment of each hop is not hidden."""
    ranks, segments, segment = 8, 32, 1 << 12
    [time, *_] = finished(ring(ranks, ranks * segments * segment, segment), cluster())
    busy = 2 * (ranks - 1) * segments * 4 * segment / BANDWIDTH
    assert busy <= time - header(cluster()) <= busy + 2 * (ranks - 1) * LATENCY


def test_arithmetic_is_added_where_it_is_not_hidden() -> None:
    chunk, speed = 1 << 14, 2.0**32
    [one, two] = finished(ring(2, 2 * chunk), cluster(arithmetic=speed))
    assert one == two == finished(ring(2, 2 * chunk), cluster())[0] + 4 * chunk / speed


def test_ranks_of_a_host_share_its_link_and_not_that_of_another() -> None:
    """Every rank sends to every other: of two hosts of two, each link carries four messages one after the other."""
    count = 1 << 16
    case = s.case(s.Collective.alltoall, 4, [count] * 16, count)
    apart = max(finished(case, cluster()))
    together = max(finished(case, cluster(ranks_per_host=2)))
    message = 4 * count / BANDWIDTH
    assert 3 * message <= apart < 4 * message
    assert 4 * message <= together < 5 * message


def test_all_wait_for_a_late_rank_and_no_longer() -> None:
    ranks, chunk = 8, 1 << 10
    case = ring(ranks, ranks * chunk)
    late = [0.0] * ranks
    late[3] = 1.0
    times = finished(case, cluster(), 0, late)
    hop = LATENCY + 4 * chunk / BANDWIDTH
    assert min(times) >= 1.0 + (ranks - 1) * hop  # its contribution comes around
    assert max(times) == pytest.approx(1.0 + finished(case, cluster())[0], abs=1e-12)


def test_cores_that_ranks_share_make_their_arithmetic_wait() -> None:
    chunk, speed = 1 << 16, 2.0**30
    host: dict[str, Any] = {"ranks_per_host": 4, "arithmetic": speed}
    free, two, one = (max(finished(ring(4, 4 * chunk), cluster(**host, cores=cores))) for cores in (4, 2, 1))
    work = 3 * 4 * chunk / speed  # of each rank
    assert free >= work
    assert two >= 2 * work
    assert one >= 4 * work
    assert free < two < one


def test_jitter_repeats_with_its_seed_and_only_delays() -> None:
    case = ring(16, 16 << 12)
    a, b, other = (finished(case, cluster(jitter=LATENCY, seed=seed)) for seed in (1, 1, 2))
    assert a == b != other
    assert min(a) > max(finished(case, cluster()))


# --- one period of ranks stands for all -----------------------------------------------------------------------------

HARD = {"arithmetic": 5e9, "per_message": 1e-6, "eager": 4096.0, "inside_by_rank": True, "cores": 2}


@pytest.mark.parametrize("hosts", [{}, HARD], ids=["links", "cores and copies"])
@pytest.mark.parametrize(("ranks", "per_host"), [(2, 1), (64, 1), (256, 1), (64, 4), (48, 6), (252, 6)])
def test_symmetry_gives_exactly_what_all_ranks_give(ranks: int, per_host: int, hosts: dict[str, Any]) -> None:
    case = ring(ranks, ranks * 8192, 4096)
    c = cluster(ranks_per_host=per_host, **hosts)
    assert finished(case, c) == finished(case, c, per_host) * (ranks // per_host)


def test_a_hundred_thousand_ranks() -> None:
    ranks, chunk = 100_000, 160
    [time] = finished(ring(ranks, ranks * chunk), cluster(), 1)
    assert time == pytest.approx(2 * (ranks - 1) * (LATENCY + 4 * chunk / BANDWIDTH), rel=1e-3)


def test_what_is_not_symmetric_is_refused() -> None:
    tree = s.case(s.Collective.broadcast, 8, [100], 10)
    with pytest.raises(UsageError, match="does not do what rank 0 does"):
        finished(tree, cluster(), 1)
    with pytest.raises(UsageError, match="does not do what rank 0 does"):
        finished(ring(8, 81), cluster(), 1)  # chunks of different length
    with pytest.raises(UsageError, match="does not divide"):
        finished(ring(8, 80), cluster(), 3)
    with pytest.raises(UsageError, match="no whole number of hosts"):
        finished(ring(8, 80), cluster(ranks_per_host=4), 2)
    with pytest.raises(UsageError, match="the period must be all ranks"):
        finished(ring(8, 80), cluster(jitter=1e-6), 1)


@pytest.mark.parametrize(
    "wrong", [{"arithmetic": 0.0}, {"per_message": -1.0}, {"cores": -1}, {"jitter": FREE}]
)
def test_a_cluster_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        finished(ring(4, 40), cluster(**wrong))
    with pytest.raises(UsageError, match="2 ready times for 4 ranks"):
        finished(ring(4, 40), cluster(), 0, [0.0, 0.0])


@pytest.mark.parametrize("ranks", [1, 2, 5, 16])
def test_every_collective_comes_to_its_end(ranks: int) -> None:
    for collective, counts in [
        (s.Collective.allreduce, [77]),
        (s.Collective.reduce_scatter, [7] * ranks),
        (s.Collective.allgather, [7] * ranks),
        (s.Collective.broadcast, [77]),
        (s.Collective.alltoall, [3] * ranks**2),
    ]:
        case = s.case(collective, ranks, counts, 2, 1)
        assert len(finished(case, cluster(arithmetic=1e9, per_message=1e-6, eager=4.0))) == ranks
