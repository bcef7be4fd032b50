"""Does the simulator see what is wrong with a schedule? Right schedules are broken in every way it must notice."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
from schedule_cases import found, small_cases

from ringdp import _core

s = _core.schedules
Collective, Kind = s.Collective, s.Kind


def name(value: Any) -> str | None:
    return getattr(value, "name", None)


def needed_edges(schedules: list[Any]) -> list[tuple[int, int, int]]:
    """(rank, move, place in `after`) of all edges that nothing else implies.

    A move's posting follows what it names, and the posting of the message before it on its channel; a receive's
    completion also follows the posting of its send. `posted` and `done` hold, as bits, the moves that are done before.
    """
    lists = [schedule.moves for schedule in schedules]
    channels: dict[tuple[bool, int, int], list[tuple[int, int]]] = {}
    for rank, moves in enumerate(lists):
        for i, move in enumerate(moves):
            if move.kind in (Kind.send, Kind.receive):
                channels.setdefault((move.kind is Kind.send, rank, move.peer), []).append((rank, i))
    previous = {b: a for channel in channels.values() for a, b in pairwise(channel)}
    sender = {
        receive: send
        for (is_send, rank, peer), channel in channels.items()
        if is_send
        for send, receive in zip(channel, channels[False, peer, rank], strict=True)
    }
    base = [sum(map(len, lists[:rank])) for rank in range(len(lists))]
    posted: dict[tuple[int, int], int] = {}

    def named(node: tuple[int, int]) -> list[int]:
        return [a for a in lists[node[0]][node[1]].after if a >= 0]

    def done(node: tuple[int, int]) -> int:
        return posted[node] | (posted[sender[node]] if node in sender else 0) | 1 << (base[node[0]] + node[1])

    def before(node: tuple[int, int], without: int = -1) -> int:
        bits = posted[previous[node]] if node in previous else 0
        for a in named(node):
            bits |= done((node[0], a)) if a != without else 0
        return bits

    waiting = [(rank, i) for rank, moves in enumerate(lists) for i in range(len(moves))]
    while waiting:
        later = []
        for node in waiting:
            inputs = [(node[0], a) for a in named(node)]
            inputs += [sender[n] for n in inputs if n in sender]
            inputs += [previous[node]] if node in previous else []
            if all(n in posted for n in inputs):
                posted[node] = before(node)
            else:
                later.append(node)
        assert len(later) < len(waiting)
        waiting = later
    return [
        (rank, i, place)
        for rank, i in posted
        for place, a in enumerate(lists[rank][i].after)
        if a >= 0 and not before((rank, i), without=a) >> (base[rank] + a) & 1
    ]


def test_every_dependency_is_needed_and_its_absence_is_found() -> None:
    edges = 0
    for case in small_cases():
        schedules = s.schedules_of(case)
        needed = needed_edges(schedules)
        all_edges = sum(a >= 0 for schedule in schedules for m in schedule.moves for a in m.after)
        # Ranks that add twice in one place name the first addition, which a slot used by both implies already.
        spare = 0.25 if re.search("by (halving_doubling|double_tree)", repr(case)) else 0
        assert (1 - spare) * all_edges <= len(needed) <= all_edges
        for rank, i, place in needed:
            right = schedules[rank].moves
            moves = schedules[rank].moves
            after = moves[i].after
            after[place] = -1
            moves[i].after = after
            schedules[rank].moves = moves
            assert found(case, schedules), f"{case}: rank {rank} move {i} without {right[i].after[place]}"
            schedules[rank].moves = right
        edges += len(needed)
    assert edges > 10_000


@pytest.mark.parametrize("kind", [Kind.send, Kind.receive], ids=name)
def test_swapped_messages_are_found(kind: Any) -> None:
    swapped = 0
    for case in small_cases():
        schedules = s.schedules_of(case)
        for rank in range(case.ranks):
            right = schedules[rank].moves
            messages = [i for i, move in enumerate(right) if move.kind is kind]
            for a, b in list(pairwise(messages))[::3]:
                if right[a].peer != right[b].peer or repr(right[a]) == repr(right[b]):
                    continue  # another channel, or a slot used twice
                moves = schedules[rank].moves
                moves[a].from_, moves[b].from_ = right[b].from_, right[a].from_
                moves[a].to, moves[b].to = right[b].to, right[a].to
                moves[a].count, moves[b].count = right[b].count, right[a].count
                schedules[rank].moves = moves
                assert found(case, schedules), f"{case}: rank {rank} moves {a} and {b} swapped"
                swapped += 1
            schedules[rank].moves = right
    assert swapped > 500


def regions(move: Any) -> list[str]:
    return {
        Kind.send: ["from_"],
        Kind.receive: ["to"],
        Kind.reduce: ["to", "from_", "with_"],
        Kind.copy: ["to", "from_"],
        Kind.finish: ["to", "from_"],
    }[move.kind]


@pytest.mark.parametrize("shift", [-1, 1])
def test_shifted_regions_are_found(shift: int) -> None:
    shifted = 0
    for case in small_cases():
        schedules = s.schedules_of(case)
        for rank in range(case.ranks):
            right = schedules[rank].moves
            for i in range(rank, len(right), 7):
                for role in regions(right[i]):
                    moves = schedules[rank].moves
                    region = getattr(moves[i], role)
                    if region.offset + shift < 0:
                        continue
                    region.offset += shift
                    setattr(moves[i], role, region)
                    schedules[rank].moves = moves
                    assert found(case, schedules), f"{case}: rank {rank} move {i}, {role} shifted by {shift}"
                    shifted += 1
            schedules[rank].moves = right
    assert shifted > 500


def edited(case: Any, rank: int, i: int, **changes: Any) -> list[Any]:
    """The case's schedules with some fields of one move changed."""
    schedules = s.schedules_of(case)
    moves = schedules[rank].moves
    for field, value in changes.items():
        setattr(moves[i], field, value)
    schedules[rank].moves = moves
    return schedules


def test_errors_name_rank_and_move() -> None:
    case = s.case(Collective.allreduce, 2, [4], 1, 2, finish=True)
    schedules = s.schedules_of(case)
    texts = [repr(move) for move in schedules[1].moves]
    assert texts[:5] == [
        "send 1 element, input 0 to rank 0",
        "send 1 element, input 1 to rank 0",
        "receive 1 element, rank 0 to scratch 0",
        "reduce 1 element, output 2 = input 2 op scratch 0",
        "finish 1 element, output 2 to output 2",
    ]

    def refused(match: str, schedules: list[Any], seeds: int = 100) -> None:
        with pytest.raises(Exception, match=match):
            s.check(case, schedules, 0, seeds)

    waits_for_itself = edited(case, 1, 4, after=[4, -1, -1, -1])
    refused(
        r"allreduce by ring on 2 ranks.*rank 1, move 4 \(finish.*waits for move 4, which is not before it",
        waits_for_itself,
    )
    refused("rank 1, move 0 .*has no such peer", edited(case, 1, 0, peer=2))
    refused("rank 1, move 0 .*has no elements", edited(case, 1, 0, count=0))
    refused("rank 0, move 2 .*of another length", edited(case, 1, 0, count=2))
    writes_input = edited(case, 1, 3, to=schedules[1].moves[0].from_)
    refused("rank 1, move 3 .*writes to the input", writes_input)
    far = schedules[1].moves[0].from_
    far.offset = 4
    refused(
        "rank 1, move 0 .*`from` is beyond the end of input, which has 4 elements",
        edited(case, 1, 0, from_=far),
    )
    twice = edited(case, 1, 3, with_=schedules[1].moves[3].from_)
    refused("rank 1, move 3 .*adds a contribution twice to element 2", twice)
    refused(
        "rank 1, move 4 .*before its sum is complete", edited(case, 1, 4, from_=schedules[1].moves[3].from_)
    )

    moves = schedules[1].moves
    schedules[1].moves = moves[:-1]
    refused("rank 0, move .*rank 1 has no receive for it", schedules)
    schedules[1].moves = [*moves, moves[-1]]
    refused("rank 1, move .*rank 0 has no send for it", schedules)


def test_a_deadlock_is_found_whatever_the_order() -> None:
    """Both ranks send only when they have received."""
    case = s.case(Collective.allgather, 2, [1, 1], 1)
    schedules = s.schedules_of(case)
    for schedule in schedules:
        send, copy, receive = schedule.moves
        send.after = [0, -1, -1, -1]
        schedule.moves = [receive, send, copy]
    for seed in range(20):
        with pytest.raises(
            Exception, match=r"deadlock; the first move that is not done, by rank:\s+rank 0, move 0"
        ):
            s.check(case, schedules, seed)
