"""The all-reduces of ranks that share memory, proved by simulation and by reasoning (tests/happens_before.py)."""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import Any

import pytest
from happens_before import Accesses, Order
from schedule_cases import small_cases
from shared_cases import HOSTS, TWO_LEVELS, shared_cases, two_level_cases

from ringdp import _core

s = _core.schedules
Algorithm, Collective, Kind, Place, Sharing = s.Algorithm, s.Collective, s.Kind, s.Place, s.Sharing

# One rank shares with nobody: no schedule of shared memory is made for it.
RANKS = range(2, 9)
COUNTS = range(41)
SEGMENTS = [1, 2, 3, 7, 64]
GIB = 2**30


def name(value: Any) -> str | None:
    return getattr(value, "name", None)


def shared_case(sharing: Any, ranks: int, count: int, segment: int, **how: bool) -> Any:
    how = {"in_place": sharing is Sharing.direct, **how}
    return s.case(Collective.allreduce, ranks, [count], segment, sharing=sharing, **how)


@pytest.mark.parametrize("sharing", [Sharing.direct, Sharing.staged], ids=name)
def test_every_small_case_is_right_in_a_random_order(sharing: Any) -> None:
    variants = 4 if sharing is Sharing.direct else 8  # scaled, finished, in place or not
    for ranks in RANKS:
        for seed in (0, 1_000_000):
            cases = s.sweep(
                Collective.allreduce, Algorithm.ring, ranks, COUNTS[-1], SEGMENTS, [1], seed, sharing=sharing
            )
            assert len(COUNTS) * variants <= cases <= len(COUNTS) * variants * len(SEGMENTS)


@pytest.mark.parametrize("sharing", TWO_LEVELS, ids=name)
def test_two_levels_are_right_in_a_random_order(sharing: Any) -> None:
    variants = 4 if sharing is Sharing.two_level_direct else 8
    for hosts in (*HOSTS, [0, 0, 1, 1, 2, 2]):
        cases = s.sweep(
            *(Collective.allreduce, Algorithm.ring, len(hosts), 24, [1, 3, 64], [1, 2, 8]),
            sharing=sharing,
            host_of=hosts,
        )
        assert 25 * 3 * variants <= cases <= 25 * 3 * 3 * variants


def test_two_levels_need_several_hosts_with_as_many_ranks() -> None:
    for hosts in ([0, 0, 0, 0], [0, 1, 2, 3], [0, 0, 0, 1], []):
        case = s.case(Collective.allreduce, 4, [9], 2, sharing=Sharing.two_level_staged, host_of=hosts)
        with pytest.raises(Exception, match="needs several hosts with as many ranks each, and more than one"):
            s.schedules_of(case)


def test_two_levels_give_the_same_sums_on_every_rank_whichever_way_each_host_takes() -> None:
    for hosts, segment in product(HOSTS, (1, 4, 64)):
        sums = []
        for sharing, seed, prescale in product(TWO_LEVELS, (0, 1), (False, True)):
            how = {"in_place": True, "prescale": prescale, "sharing": sharing, "host_of": hosts}
            case = s.case(Collective.allreduce, len(hosts), [24], segment, **how)
            sums += [s.sums(case, rank, seed) for rank in range(len(hosts))]
        assert all(one == sums[0] for one in sums)
    # Two hosts (0 1) and (2 3); part 0 is summed in the host as (0+1), then by the ring of 0 and 2.
    case = s.case(Collective.allreduce, 4, [4], 1, sharing=Sharing.two_level_staged, host_of=[0, 0, 1, 1])
    assert s.sums(case, 0) == ["((0+1)+(2+3))", "((2+3)+(0+1))", "((1+0)+(3+2))", "((3+2)+(1+0))"]


def test_many_random_orders() -> None:
    for case in [*shared_cases(), *two_level_cases()]:
        s.check(case, s.schedules_of(case), first_seed=10_000, seeds=300)


def test_no_order_of_events_can_make_a_difference() -> None:
    cases = [*shared_cases(), *two_level_cases(), *small_cases()]
    cases += [shared_case(Sharing.direct, ranks, count, 2) for ranks, count in product((2, 3, 4), range(17))]
    cases += [shared_case(Sharing.staged, ranks, count, 2) for ranks, count in product((2, 3, 4), range(17))]
    for case in cases:
        schedules = s.schedules_of(case)
        assert Accesses(schedules, case.in_place).are_safe(Order(schedules, case.host_of)), case


@pytest.mark.parametrize(
    ("ranks", "segment", "prescale"), [*product((2, 3, 4, 7), (1, 3, 64), (False, True))]
)
def test_sums_have_the_order_of_the_ring_on_every_rank(ranks: int, segment: int, prescale: bool) -> None:
    ring = s.case(Collective.allreduce, ranks, [30], segment, prescale=prescale)
    wanted = s.sums(ring, 0)
    for sharing, seed in product((Sharing.direct, Sharing.staged), (0, 1)):
        case = shared_case(sharing, ranks, 30, segment, prescale=prescale)
        assert [s.sums(case, rank, seed) for rank in range(ranks)] == [wanted] * ranks


def test_direct_copies_nothing_but_the_sums_and_needs_no_area() -> None:
    for rank, schedule in enumerate(s.schedules_of(shared_case(Sharing.direct, 4, 40, 5))):
        kinds = Counter(move.kind for move in schedule.moves)
        segments = 2
        assert kinds == {
            Kind.reduce: 3 * segments,
            Kind.copy: 3 * segments,
            Kind.signal: 1,
            Kind.await_: 1,
        }
        assert schedule.area == 0
        for move in schedule.moves:
            if move.kind is Kind.copy:
                assert move.from_.place is move.to.place is Place.output
                assert (move.from_.owner, move.from_.offset) == (-1, move.to.offset) and move.to.owner != rank


def test_staged_areas_are_three_turns_of_a_segment_for_each_chunk() -> None:
    for ranks, count, segment, piece in (
        (2, 1000, 10, 10),
        (4, 1000, 10, 10),
        (4, 20, 1000, 5),
        (3, 7, 9, 3),
    ):
        for schedule in s.schedules_of(shared_case(Sharing.staged, ranks, count, segment)):
            assert schedule.area == 3 * ranks * piece
            assert schedule.scratch == 2 * piece


@pytest.mark.parametrize("sharing", [Sharing.direct, Sharing.staged], ids=name)
def test_counts_beyond_32_bits_give_the_small_schedule_times_the_segment(sharing: Any) -> None:
    options = {"prescale": True, "finish": True}
    small = s.schedules_of(shared_case(sharing, 3, 12, 1, **options))
    large = s.schedules_of(shared_case(sharing, 3, 12 * GIB, GIB, **options))
    for one, other in zip(small, large, strict=True):
        assert len(one) > 0
        assert fields(one, GIB) == fields(other, 1)
        assert (one.scratch * GIB, one.area * GIB) == (other.scratch, other.area)


def fields(schedule: Any, scale: int) -> list[tuple[Any, ...]]:
    def region(r: Any) -> tuple:
        return r.place, r.owner, r.offset * scale

    def count(move: Any) -> int:
        return move.count if move.kind in (Kind.signal, Kind.await_) else move.count * scale

    return [
        (m.kind, m.prescale, count(m), *map(region, (m.to, m.from_, m.with_)), m.after)
        for m in schedule.moves
    ]
