"""What is ordered in a set of schedules, whatever is slow: found by reasoning, as a check on the simulator.

Each move has a start and an end. A move starts after the ends of those it names in `after` and after the start of the
message before it on its channel; a receive ends after the start of its send, an await after the starts of the signals
that it is for. Two accesses to one element, one of which writes, must be ordered by that; so must an access to another
rank's memory and that rank's last end. If they are, no order of events gives another result than any other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ringdp import _core

s = _core.schedules
Kind, Place = s.Kind, s.Place

Node = tuple[int, int]  # rank, index of the move


class Accesses:
    """Who reads and writes which element: what does not change when a schedule loses a name in `after`."""

    def __init__(self, schedules: list[Any], in_place: bool) -> None:
        self.elements: dict[Any, list[tuple[Node, bool]]] = defaultdict(list)
        self.of_others: set[tuple[Node, int]] = set()
        self.in_place = in_place
        for rank, schedule in enumerate(schedules):
            for i, move in enumerate(schedule.moves):
                for region, writes in _regions(move):
                    self._add((rank, i), region, move.count, writes)

    def _add(self, node: Node, region: Any, count: int, writes: bool) -> None:
        owner = node[0] if region.owner < 0 else region.owner
        if owner != node[0]:
            self.of_others.add((node, owner))
        place = Place.output if self.in_place and region.place is Place.input else region.place
        for at in range(region.offset, region.offset + count):
            self.elements[place, owner, at].append((node, writes))

    def are_safe(self, order: Order) -> bool:
        """Whether conflicting accesses are ordered, what is read was written, and no rank is touched after its end."""
        return all(self._is_safe(key[0], uses, order) for key, uses in self.elements.items()) and all(
            order.before_the_end_of(owner, node) for node, owner in self.of_others
        )

    def _is_safe(self, place: Any, uses: list[tuple[Node, bool]], order: Order) -> bool:
        given = place is Place.input or (self.in_place and place is Place.output)
        for i, (a, a_writes) in enumerate(uses):
            for b, b_writes in uses[:i]:
                if a != b and (a_writes or b_writes) and not (order.ended(a, b) or order.ended(b, a)):
                    return False
            if not a_writes and not given and not any(w and order.ended(b, a) for b, w in uses):
                return False
        return True


class Order:
    """Which moves have ended when another one starts, and when a rank ends."""

    def __init__(self, schedules: list[Any], host_of: Sequence[int] = ()) -> None:
        """host_of: by rank, whose signals its awaits are for; empty: all ranks are of one host."""
        self._host_of = host_of or [0] * len(schedules)
        self._moves = [schedule.moves for schedule in schedules]
        self._first = [sum(map(len, self._moves[:rank])) for rank in range(len(self._moves))]
        self._before: dict[Node, int] = {}  # as bits: what has ended when it starts
        self._causes = self._starts_before_ends()
        self._previous = {b: a for channel in self._channels.values() for a, b in pairwise(channel)}
        waiting = [(rank, i) for rank, moves in enumerate(self._moves) for i in range(len(moves))]
        while waiting:
            later = [node for node in waiting if not self._start(node)]
            assert len(later) < len(waiting), "deadlock"
            waiting = later
        self._ends = [
            self._any_end((rank, i) for i in range(len(moves))) for rank, moves in enumerate(self._moves)
        ]

    def ended(self, a: Node, b: Node) -> bool:
        """Whether a has always ended when b starts."""
        return bool(self._before[b] >> self._bit(a) & 1)

    def before_the_end_of(self, rank: int, node: Node) -> bool:
        return bool(self._ends[rank] >> self._bit(node) & 1)

    def _bit(self, node: Node) -> int:
        return self._first[node[0]] + node[1]

    def _starts_before_ends(self) -> dict[Node, list[Node]]:
        """By receive and await: the send, the signals."""
        channels: dict[Any, list[Node]] = defaultdict(list)
        signals: dict[tuple[int, int], list[Node]] = defaultdict(list)
        for rank, moves in enumerate(self._moves):
            for i, move in enumerate(moves):
                if move.kind in (Kind.send, Kind.receive):
                    channels[move.kind, rank, move.peer].append((rank, i))
                if move.kind is Kind.signal:
                    signals[rank, move.line].append((rank, i))
        self._channels = channels
        causes: dict[Node, list[Node]] = {}
        for (kind, rank, peer), messages in channels.items():
            if kind is Kind.receive:
                for receive, send in zip(messages, channels[Kind.send, peer, rank], strict=True):
                    causes[receive] = [send]
        for rank, moves in enumerate(self._moves):
            for i, move in enumerate(moves):
                if move.kind is Kind.await_:
                    others = [
                        r for r, host in enumerate(self._host_of) if host == self._host_of[rank] and r != rank
                    ]
                    causes[rank, i] = [signals[other, move.line][move.count - 1] for other in others]
        return causes

    def _start(self, node: Node) -> bool:
        """False if it is not known yet what is before it."""
        rank, i = node
        after = [(rank, a) for a in self._moves[rank][i].after if a >= 0]
        previous = [self._previous[node]] if node in self._previous else []
        needed = [*previous, *after, *(cause for a in after for cause in self._causes.get(a, ()))]
        if not all(n in self._before for n in needed):
            return False
        self._before[node] = self._any_end(after)
        for n in previous:
            self._before[node] |= self._before[n]
        return True

    def _any_end(self, nodes: Any) -> int:
        """As bits: what has ended when these have."""
        bits = 0
        for node in nodes:
            bits |= self._before[node] | 1 << self._bit(node)
            for cause in self._causes.get(node, ()):
                bits |= self._before[cause]
        return bits


def _regions(move: Any) -> list[tuple[Any, bool]]:
    """The regions with whether they are written; none of a token."""
    return {
        Kind.send: lambda: [(move.from_, False)],
        Kind.receive: lambda: [(move.to, True)],
        Kind.reduce: lambda: [(move.from_, False), (move.with_, False), (move.to, True)],
        Kind.copy: lambda: [(move.from_, False), (move.to, True)],
        Kind.finish: lambda: [(move.from_, False), (move.to, True)],
    }.get(move.kind, list)()
