"""Does the simulator name what is wrong with a schedule of shared memory: its tokens, and whose memory it uses?"""

from __future__ import annotations

from typing import Any

import pytest
from shared_cases import direct, edited, places, staged, without

from ringdp import _core

s = _core.schedules
Collective, Kind, Place, Sharing = s.Collective, s.Kind, s.Place, s.Sharing


def refused(match: str, case: Any, schedules: list[Any], seeds: int = 100) -> None:
    with pytest.raises(Exception, match=match):
        s.check(case, schedules, 0, seeds)


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
        r"rank 2, move \d+ \(signal 3\): is signal 2 of its line: they rise by one",
        case,
        edited(case, 2, second, count=3),
    )
    refused(r"\(signal 0\): is signal 1 of its line", case, edited(case, 2, first, count=0))
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
