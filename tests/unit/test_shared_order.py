"""Does the simulator see when nothing orders two ranks that share memory? Found is what reasoning says is wrong."""

from __future__ import annotations

from typing import Any

from happens_before import Accesses, Order
from schedule_cases import found
from shared_cases import edited, names, places, shared_cases, staged, two_level_cases, with_turns, without

from ringdp import _core

s = _core.schedules
Kind = s.Kind


def cases() -> list[Any]:
    """In two levels those whose hosts take different ways: they have no window on receives, which is a rule apart."""
    mixed = [case for case in two_level_cases() if "two_level_mixed" in repr(case)]
    return [*shared_cases(), mixed[3]]


def is_safe(case: Any, schedules: list[Any]) -> bool:
    return Accesses(schedules, case.in_place).are_safe(Order(schedules, case.host_of))


def test_a_missing_dependency_is_found_exactly_if_it_is_needed() -> None:
    """Found by random orders if reasoning says that something can go wrong without it, and else never."""
    harmful = harmless = 0
    for case in cases():
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
    for case in cases():
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
            if rank == 0 and awaits:  # its chunk is the longest: others are at it until the end
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
