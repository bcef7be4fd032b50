"""Cases of all collectives that are small enough to run under many seeds, and the search for a seed that fails."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from ringdp import _core

s = _core.schedules
ALGORITHMS = list(s.Algorithm)  # of all-reduce
# Ranks, count, segment. Without chunks fewer segments do.
RING = ((2, 7, 1), (3, 20, 2), (4, 10, 1), (5, 6, 2))
OTHERS = ((2, 7, 1), (3, 5, 2), (4, 5, 1), (6, 6, 2))


def small_cases() -> Iterator[Any]:
    """Several segments a chunk, uneven chunks and reused slots."""
    for depth, prescale, finish in product((1, 2, 3), (False, True), (False, True)):
        options = {"prescale": prescale, "finish": finish}
        for algorithm, in_place in product(ALGORITHMS, (False, True)):
            how = {"in_place": in_place, "algorithm": algorithm, **options}
            for ranks, count, segment in RING if algorithm is s.Algorithm.ring else OTHERS:
                yield s.case(s.Collective.allreduce, ranks, [count], segment, depth, **how)
        for counts in ([5, 4], [3, 3, 3], [7, 0, 2], [9, 1, 5, 2], [2] * 5):
            yield s.case(s.Collective.reduce_scatter, len(counts), counts, 1, depth, **options)
    for depth in (1, 2, 3):
        for counts in ([5, 4], [3, 3, 3], [7, 0, 2], [9, 1, 5, 2]):
            yield s.case(s.Collective.allgather, len(counts), counts, 1, depth)
        for ranks in (2, 3, 5, 8):
            yield s.case(s.Collective.broadcast, ranks, [6], 1, depth, root=ranks // 2, in_place=ranks == 3)
        for ranks in (2, 3, 4):
            yield s.case(s.Collective.alltoall, ranks, [i * 7 % 5 for i in range(ranks * ranks)], 1, depth)


def found(case: Any, schedules: list[Any], seeds: int = 20_000) -> bool:
    """Whether one of the random orders shows that the schedules are wrong."""
    for first in range(0, seeds, 20):
        try:
            s.check(case, schedules, first, 20)
        except Exception as error:
            assert "simulation: " in str(error)
            return True
    return False
