"""Does the simulator see what is wrong with a schedule of shared memory? Right ones are broken in every way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from happens_before import Accesses, Order
from schedule_cases import found, shared_cases

from ringdp import _core

s = _core.schedules
Collective, Kind, Place, Sharing = s.Collective, s.Kind, s.Place, s.Sharing


def staged(ranks: int = 3, count: int = 7, segment: int = 1, **how: Any) -> Any:
    return s.case(Collective.allreduce, ranks, [count], segment, sharing=Sharing.staged, **how)


def direct(ranks: int = 3, count: int = 7, segment: int = 1, **how: Any) -> Any:
    how = {"in_place": True, **how}
    return s.case(Collective.allreduce, ranks, [count], segment, sharing=Sharing.direct, **how)


def places(moves: list[Any], kind: Any) -> list[int]:
    return [i for i, move in enumerate(moves) if move.kind is kind]


def edited(case: Any, rank: int, i: int, **changes: Any) -> list[Any]:
    """The case's schedules with some fields of one move changed; those of a region by its name, as in to_owner."""
    schedules = s.schedules_of(case)
    moves = schedules[rank].moves
    for field, value in changes.items():
        role, _, part = field.rpartition("_")
        if part in ("owner", "offset", "place"):
            region = getattr(moves[i], role)
            setattr(region, part, value)
            setattr(moves[i], role, region)
        else:
            setattr(moves[i], field, value)
    schedules[rank].moves = moves
    return schedules


def without(case: Any, rank: int, gone: int) -> list[Any]:
    """The case's schedules without one move; who named it names nothing in its place."""
    schedules = s.schedules_of(case)
    moves = schedules[rank].moves
    for move in moves:
        move.after = [-1 if a == gone else a - (a > gone) for a in move.after]
    schedules[rank].moves = moves[:gone] + moves[gone + 1 :]
    return schedules


def refused(match: str, case: Any, schedules: list[Any], seeds: int = 100) -> None:
    with pytest.raises(Exception, match=match):
        s.check(case, schedules, 0, seeds)


# --- what orders the ranks ------------------------------------------------------------------------------------------


def is_safe(case: Any, schedules: list[Any]) -> bool:
    return Accesses(schedules, case.in_place).are_safe(Order(schedules, case.host_of))


def names(schedules: list[Any]) -> Iterator[tuple[int, int, int, int]]:
    """(rank, move, place in `after`, what it names) but that a signal names the one before, which it always must."""
    for rank, schedule in enumerate(schedules):
        moves = schedule.moves
        for i, move in enumerate(moves):
            for place, a in enumerate(move.after):
                if a >= 0 and not (move.kind is moves[a].kind is Kind.signal):
                    yield rank, i, place, a


def test_a_missing_dependency_is_found_exactly_if_it_is_needed() -> None:
    """Found by random orders if reasoning says that something can go wrong without it, and else never."""
    harmful = harmless = 0
    for case in shared_cases():
        schedules = s.schedules_of(case)
        accesses = Accesses(schedules, case.in_place)
        for rank, i, place, a in names(schedules):
            right = schedules[rank].moves
            moves = schedules[rank].moves
            moves[i].after = [*moves[i].after[:place], -1, *moves[i].after[place + 1 :]]
            schedules[rank].moves = moves
            safe = accesses.are_safe(Order(schedules, case.host_of))
            wrong = found(case, schedules, 100 if safe else 20_000)
            assert wrong != safe, f"{case}: rank {rank} move {i} without {a}"
            schedules[rank].moves = right
            harmful, harmless = harmful + wrong, harmless + safe
    assert harmful > 1000 and harmless > 300


def test_a_missing_await_is_found_exactly_if_it_is_needed() -> None:
    """Removed, or for the signal before."""
    harmful = 0
    for case in shared_cases():
        for rank, schedule in enumerate(s.schedules_of(case)):
            awaits = places(schedule.moves, Kind.await_)
            for i in awaits:
                variants = [without(case, rank, i)]
                if schedule.moves[i].count > 1:
                    variants.append(edited(case, rank, i, count=schedule.moves[i].count - 1))
                for broken in variants:
                    safe = is_safe(case, broken)
                    assert found(case, broken, 100 if safe else 20_000) != safe, (
                        f"{case}: rank {rank} await {i}"
                    )
                    harmful += not safe
            if rank == 0:  # its chunk is the longest: others are at it until the end
                assert not is_safe(case, without(case, 0, awaits[-1]))
    assert harmful > 100


def test_a_signal_before_the_copy_that_it_tells_of_is_found() -> None:
    for case in shared_cases():
        for rank in range(case.ranks):
            schedules = s.schedules_of(case)
            moves = schedules[rank].moves
            signal = places(moves, Kind.signal)[0]
            copied = signal - 1
            assert copied in moves[signal].after
            for move in moves:
                move.after = [{copied: signal, signal: copied}.get(a, a) for a in move.after]
            moves[signal].after = moves[copied].after
            moves[copied], moves[signal] = moves[signal], moves[copied]
            schedules[rank].moves = moves
            assert not is_safe(case, schedules)
            assert found(case, schedules), f"{case}: rank {rank}"


def with_turns(case: Any, turns: int, piece: int) -> list[Any]:
    """The staged schedules with areas of another number of turns."""
    schedules = s.schedules_of(case)
    for schedule in schedules:
        moves = schedule.moves
        turn = 0
        for move in moves:
            turn += move.kind is Kind.await_
            taken = move.kind is Kind.copy and move.from_.place is Place.area
            copied = move.kind is Kind.copy and move.from_.place is Place.input
            for role in ("to", "from_", "with_"):
                region = getattr(move, role)
                if move.kind in (Kind.signal, Kind.await_) or region.place is not Place.area:
                    continue
                chunk = region.offset // piece % case.ranks
                of_turn = turn - (0 if copied else 2 if taken else 1)
                region.offset = (of_turn % turns * case.ranks + chunk) * piece
                setattr(move, role, region)
        schedule.area = turns * case.ranks * piece
        schedule.moves = moves
    return schedules


def test_a_piece_of_an_area_that_is_used_again_a_turn_too_early_is_found() -> None:
    for piece in (1, 2):
        for ranks in (2, 3, 4):
            case = staged(ranks, 6 * ranks * piece, piece)
            moves = [repr(schedule.moves) for schedule in s.schedules_of(case)]
            assert [repr(schedule.moves) for schedule in with_turns(case, 3, piece)] == moves
            s.check(case, with_turns(case, 4, piece), 0, 300)
            for turns in (1, 2):
                broken = with_turns(case, turns, piece)
                assert not is_safe(case, broken)
                assert found(case, broken)


# --- tokens ---------------------------------------------------------------------------------------------------------


def test_a_signal_that_never_comes_is_named() -> None:
    case = staged()
    moves = s.schedules_of(case)[1].moves
    signals = places(moves, Kind.signal)
    assert len(signals) == 5
    refused(
        r"in shared memory, staged on 3 ranks.*rank 0, move \d+ \(await 5\): rank 1 never comes to signal 5",
        case,
        without(case, 1, signals[-1]),
    )


def test_signals_rise_by_one_and_name_the_one_before() -> None:
    case = staged()
    moves = s.schedules_of(case)[2].moves
    first, second = places(moves, Kind.signal)[:2]
    refused(
        r"rank 2, move \d+ \(signal 3\): is the rank's signal 2: they rise by one",
        case,
        edited(case, 2, second, count=3),
    )
    refused(r"\(signal 0\): is the rank's signal 1", case, edited(case, 2, first, count=0))
    refused(r"\(await 0\): has no number", case, edited(case, 2, places(moves, Kind.await_)[0], count=0))
    after = [-1 if a == first else a for a in moves[second].after]
    refused(
        r"rank 2, move \d+ \(signal 2\): does not name the signal before it: rank 2, move \d+ \(signal 1\)",
        case,
        edited(case, 2, second, after=after),
    )


def test_ranks_that_all_await_before_they_signal_are_a_deadlock() -> None:
    case = direct(2, 2)
    schedules = s.schedules_of(case)
    for schedule in schedules:
        *others, signal, wait = schedule.moves
        wait.after = signal.after
        signal.after = [len(others), -1, -1, -1]
        schedule.moves = [*others, wait, signal]
    for seed in range(20):
        with pytest.raises(
            Exception, match=r"deadlock; .*\s+rank 0, move 2 \(await 1\)\s+rank 1, move 2 \(await 1\)"
        ):
            s.check(case, schedules, seed)


# --- memory ---------------------------------------------------------------------------------------------------------


def test_memory_out_of_reach_is_named() -> None:
    case = staged()
    moves = s.schedules_of(case)[0].moves
    reads = next(i for i, move in enumerate(moves) if move.kind is Kind.reduce)
    assert repr(moves[reads]) == "reduce 1 element, scratch 0 = rank 2's area 0 op rank 1's area 0"

    def wrong(match: str, **changes: Any) -> None:
        refused(rf"rank 0, move {reads} .*: {match}", case, edited(case, 0, reads, **changes))

    wrong("`from` lies with rank 3, which there is not", from__owner=3)
    wrong("`with` does not say whose area it is", with__owner=-1)
    wrong("`from` is no memory that ranks share", from__place=Place.input)
    wrong("`from` is no memory that ranks share", from__place=Place.scratch)
    wrong("`from` lies in an output, and these are not shared", from__place=Place.output)
    wrong("`from` is beyond the end of area, which has 9 elements", from__offset=9)
    short = s.schedules_of(case)
    short[2].area = 6
    refused(
        "rank 0, move .*rank 2's area 6.*: `.*` is beyond the end of area, which has 6 elements", case, short
    )


def test_another_hosts_memory_is_out_of_reach() -> None:
    for way in (staged, direct):
        case = way(4, 8, host_of=[0, 0, 1, 1])
        refused(
            r"hosts 0 0 1 1, .*rank 0, move \d .*rank 2's .* lies on another host", case, s.schedules_of(case)
        )
        with pytest.raises(Exception, match="needs a host for each rank"):
            s.schedules_of(way(4, 8, host_of=[0, 0, 1]))
        s.check(case := way(4, 8, host_of=[5, 5, 5, 5]), s.schedules_of(case), 0, 20)


def test_memory_of_a_rank_that_has_ended_is_not_touched() -> None:
    def last_await(case: Any) -> int:
        return places(s.schedules_of(case)[0].moves, Kind.await_)[-1]

    case = staged()
    refused(
        r"rank \d.*: reads rank 0's area after rank 0 has ended", case, without(case, 0, last_await(case))
    )
    case = direct()
    refused(
        r"rank \d.*: (reads|writes) rank 0's output after rank 0 has ended",
        case,
        without(case, 0, last_await(case)),
    )


def test_a_case_that_cannot_be_is_refused() -> None:
    with pytest.raises(Exception, match="direct means in place"):
        s.schedules_of(direct(in_place=False))
    with pytest.raises(Exception, match="only all-reduce has schedules of shared memory"):
        s.schedules_of(s.case(Collective.broadcast, 2, [3], 1, sharing=Sharing.staged))
    with pytest.raises(Exception, match="virtual time knows messages, not shared memory"):
        s.virtual_time(staged(), 4.0, s.Cluster())
