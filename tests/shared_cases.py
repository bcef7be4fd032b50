"""All-reduces in shared memory, small enough to run under many seeds, and how to break them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from schedule_cases import RING

from ringdp import _core

s = _core.schedules
Collective, Kind, Place, Sharing = s.Collective, s.Kind, s.Place, s.Sharing


def shared_cases() -> Iterator[Any]:
    """Several turns, uneven chunks and reused areas."""
    ways = ((s.Sharing.direct, True), (s.Sharing.staged, False), (s.Sharing.staged, True))
    for (sharing, in_place), (ranks, count, segment) in product(ways, RING[:3]):
        for scaled in (False, True):
            how = {"prescale": scaled, "finish": scaled, "in_place": in_place, "sharing": sharing}
            yield s.case(s.Collective.allreduce, ranks, [count], segment, **how)


TWO_LEVELS = [
    Sharing.two_level_direct,
    Sharing.two_level_staged,
    Sharing.two_level_messages,
    Sharing.two_level_mixed,
]
HOSTS = ([0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1, 1, 1], [0, 1, 2, 2, 1, 0])  # by rank


def two_level_cases() -> Iterator[Any]:
    """The same on several hosts; depth 1 and 2 reuse the scratch of the ring."""
    for sharing, (i, hosts), in_place in product(TWO_LEVELS, enumerate(HOSTS), (False, True)):
        if sharing is Sharing.two_level_direct and not in_place:
            continue
        how = {"in_place": in_place, "prescale": i % 2 > 0, "finish": i % 2 > 0, "host_of": hosts}
        yield s.case(Collective.allreduce, len(hosts), [13], 1, 1 + i % 2, sharing=sharing, **how)


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


def names(schedules: list[Any]) -> Iterator[tuple[int, int, int, int]]:
    """(rank, move, place in `after`, what it names) but that a signal names the one before, which it always must."""
    for rank, schedule in enumerate(schedules):
        moves = schedule.moves
        for i, move in enumerate(moves):
            for place, a in enumerate(move.after):
                if a >= 0 and not (move.kind is moves[a].kind is Kind.signal and move.line == moves[a].line):
                    yield rank, i, place, a


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
