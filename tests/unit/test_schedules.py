"""The schedules of all collectives, proved by simulation (csrc/collectives/simulate.h).

A simulation checks every element of every rank: where it ends, that it is in its sum exactly once, scaled and finished
once or not at all; that nobody touches memory another move owns; that nobody waits for ever.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, product
from typing import Any

import pytest
from schedule_cases import ALGORITHMS, small_cases

from ringdp import _core

s = _core.schedules
Algorithm, Collective, Kind, Place = s.Algorithm, s.Collective, s.Kind, s.Place

RANKS = range(1, 17)
COUNTS = range(65)
SEGMENTS = [1, 2, 3, 7, 64]
DEPTHS = [1, 2, 8]
COLLECTIVES = [
    Collective.allreduce,
    Collective.reduce_scatter,
    Collective.allgather,
    Collective.broadcast,
    Collective.alltoall,
]
# Every collective, and all-reduce by every algorithm.
EACH = [(Collective.allreduce, a) for a in ALGORITHMS] + [(c, Algorithm.ring) for c in COLLECTIVES[1:]]


def name(value: Any) -> str | None:
    return getattr(value, "name", None)


def name_of_each(value: tuple[Any, Any]) -> str:
    collective, algorithm = value
    return f"{name(collective)}-{name(algorithm)}" if collective is Collective.allreduce else collective.name


# --- all of them, once each -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("each", EACH, ids=name_of_each)
def test_every_small_case_is_right_in_a_random_order(each: tuple[Any, Any]) -> None:
    collective, algorithm = each

    def sweep(ranks: int) -> int:
        return s.sweep(collective, algorithm, ranks, COUNTS[-1], SEGMENTS, DEPTHS, seed=1_000_003 * ranks)

    with ThreadPoolExecutor(2) as pool:  # the sweep releases the GIL; the long ones first
        done = dict(zip(reversed(RANKS), pool.map(sweep, reversed(RANKS)), strict=True))
    # How often a count and segment are run: depths, in place, prescale, finish, even and uneven; roots at one depth.
    variants = {
        "allreduce": lambda ranks: 3 * 8,
        "reduce_scatter": lambda ranks: 3 * 4 * 2,
        "allgather": lambda ranks: 3 * 2,
        "broadcast": lambda ranks: 2 * 2 + 2 * ranks,
        "alltoall": lambda ranks: 3 * 2,
    }[name(collective)]
    for ranks in RANKS:  # at least one segment each; segments that cut alike are run once
        assert len(COUNTS) * variants(ranks) <= done[ranks] <= len(COUNTS) * variants(ranks) * len(SEGMENTS)


def test_many_random_orders() -> None:
    for case in small_cases():
        s.check(case, s.schedules_of(case), first_seed=10_000, seeds=100)


# --- the order of addition ------------------------------------------------------------------------------------------


def ring_sum(ranks: int, chunk: int) -> str:
    """The contributions of a chunk in the order of the ring: from the owner's successor to the owner."""
    text = str((chunk + 1) % ranks)
    for hop in range(2, ranks + 1):
        text = f"({(chunk + hop) % ranks}+{text})"
    return text


@pytest.mark.parametrize(("segment", "depth", "seed"), [*product(SEGMENTS, DEPTHS, (0, 1))])
def test_the_order_of_addition_depends_on_neither_segment_nor_depth_nor_arrival(
    segment: int, depth: int, seed: int
) -> None:
    ranks, count = 4, 30  # chunks of 8 8 7 7
    expected = [ring_sum(ranks, chunk) for chunk, n in enumerate((8, 8, 7, 7)) for _ in range(n)]
    case = s.case(Collective.allreduce, ranks, [count], segment, depth)
    assert [s.sums(case, rank, seed) for rank in range(ranks)] == [expected] * ranks
    case = s.case(Collective.reduce_scatter, ranks, [8, 8, 7, 7], segment, depth, prescale=True)
    assert [e for rank in range(ranks) for e in s.sums(case, rank, seed)] == expected


def doubling_sum(ranks: int) -> str:
    """Pairs of the first ranks until a power of two is left, then pairs of pairs: lower ranks on the left."""
    power = 1 << (ranks.bit_length() - 1)
    extra = ranks - power
    sums = [f"({2 * i}+{2 * i + 1})" for i in range(extra)] + [str(r) for r in range(2 * extra, ranks)]
    while len(sums) > 1:
        sums = [f"({a}+{b})" for a, b in zip(sums[::2], sums[1::2], strict=True)]
    return sums[0]


def tree_sum(numbers: list[int]) -> str:
    """A tree that is in order from left to right; its root has the largest power of two in its number (from 1)."""
    root = 1 << (len(numbers).bit_length() - 1)
    left, right = numbers[: root - 1], numbers[root:]
    text = f"({tree_sum(left)}+{numbers[root - 1]})" if left else str(numbers[root - 1])
    return f"({text}+{tree_sum(right)})" if right else text


def tree_sums(ranks: int, count: int) -> list[str]:
    first = list(range(ranks))
    second = first[::-1] if ranks % 2 == 0 else [ranks - 1, *first[:-1]]
    return [tree_sum(first)] * (count - count // 2) + [tree_sum(second)] * (count // 2)


@pytest.mark.parametrize("ranks", [2, 3, 4, 5, 6, 7, 8, 11, 13, 16])
def test_the_order_of_addition_of_each_algorithm_on_every_rank(ranks: int) -> None:
    count = 11
    wanted = {
        Algorithm.ring: [
            ring_sum(ranks, i) for i in range(ranks) for _ in range(chunk_length(count, ranks, i))
        ],
        Algorithm.recursive_doubling: [doubling_sum(ranks)] * count,
        Algorithm.halving_doubling: [doubling_sum(ranks)] * count,
        Algorithm.double_tree: tree_sums(ranks, count),
    }
    assert list(wanted) == ALGORITHMS
    for algorithm, sums in wanted.items():
        for segment, depth, in_place, prescale in (
            (1, 1, False, False),
            (3, 2, True, True),
            (64, 8, True, False),
        ):
            how = {"in_place": in_place, "prescale": prescale, "algorithm": algorithm}
            case = s.case(Collective.allreduce, ranks, [count], segment, depth, **how)
            for seed in (0, 1):
                assert [s.sums(case, rank, seed) for rank in range(ranks)] == [sums] * ranks, case


def chunk_length(count: int, ranks: int, i: int) -> int:
    return count // ranks + (i < count % ranks)


def test_the_drawings_of_the_trees() -> None:
    assert doubling_sum(4) == "((0+1)+(2+3))"
    assert doubling_sum(6) == "(((0+1)+(2+3))+(4+5))"
    assert tree_sums(6, 2) == ["((((0+1)+2)+3)+(4+5))", "((((5+4)+3)+2)+(1+0))"]
    assert tree_sums(3, 2) == ["((0+1)+2)", "((2+0)+1)"]


def test_the_drawing_of_the_ring() -> None:
    assert [ring_sum(4, chunk) for chunk in range(4)] == [
        "(0+(3+(2+1)))",
        "(1+(0+(3+2)))",
        "(2+(1+(0+3)))",
        "(3+(2+(1+0)))",
    ]


# --- what moves and what does not -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("ranks", "in_place", "finish"), [*product((2, 3, 5), (False, True), (False, True))])
def test_the_ring_copies_nothing_without_prescale(ranks: int, in_place: bool, finish: bool) -> None:
    segments = 4  # in each chunk
    case = s.case(Collective.allreduce, ranks, [ranks * segments * 3], 3, finish=finish, in_place=in_place)
    for schedule in s.schedules_of(case):
        kinds = Counter(move.kind for move in schedule.moves)
        hops = (ranks - 1) * segments
        wanted = {
            Kind.send: 2 * hops,
            Kind.receive: 2 * hops,
            Kind.reduce: hops,
            Kind.finish: finish * segments,
        }
        assert kinds == +Counter(wanted)
        sends = [move for move in schedule.moves if move.kind is Kind.send]
        assert [move.from_.place for move in sends] == [Place.input] * segments + [Place.output] * (
            2 * hops - segments
        )
        for move in schedule.moves:
            if move.kind is Kind.reduce:
                places = (move.to.place, move.from_.place, move.with_.place)
                assert places == (Place.output, Place.input, Place.scratch)


def test_a_segment_is_sent_on_as_soon_as_it_is_reduced_or_received() -> None:
    for finish in (False, True):
        case = s.case(Collective.allreduce, 4, [40], 3, 2, finish=finish)
        for schedule in s.schedules_of(case):
            moves = schedule.moves
            for move in moves:
                if move.kind is Kind.send and move.from_.place is Place.output:
                    (ready,) = (moves[i] for i in move.after if i >= 0)
                    assert ready.kind in (Kind.reduce, Kind.finish, Kind.receive)
                    assert (ready.to.offset, ready.count) == (move.from_.offset, move.count)


def test_one_rank_moves_only_what_must_be() -> None:
    def kinds(collective: Any, **options: bool) -> list[Any]:
        (schedule,) = s.schedules_of(s.case(collective, 1, [5], 2, **options))
        assert schedule.scratch == 0
        return [move.kind for move in schedule.moves]

    assert kinds(Collective.allreduce, in_place=True) == []
    assert kinds(Collective.allreduce) == [Kind.copy] * 3
    assert kinds(Collective.allreduce, finish=True) == [Kind.finish] * 3
    assert kinds(Collective.allreduce, prescale=True, in_place=True) == [Kind.copy] * 3
    assert kinds(Collective.reduce_scatter, prescale=True, finish=True) == [Kind.copy, Kind.finish] * 3
    assert kinds(Collective.broadcast, in_place=True) == []
    assert kinds(Collective.alltoall) == [Kind.copy] * 3


@pytest.mark.parametrize("each", EACH, ids=name_of_each)
def test_no_elements_no_moves(each: tuple[Any, Any]) -> None:
    collective, algorithm = each
    counts = {"reduce_scatter": [0] * 3, "allgather": [0] * 3, "alltoall": [0] * 9}.get(name(collective), [0])
    for schedule in s.schedules_of(s.case(collective, 3, counts, 4, algorithm=algorithm)):
        assert (len(schedule), schedule.scratch) == (0, 0)


def test_scratch_is_bounded_by_the_depth_and_by_what_is_received() -> None:
    def scratch(collective: Any, counts: list[int], segment: int, depth: int, **options: bool) -> set[int]:
        case = s.case(collective, 4, counts, segment, depth, **options)
        return {schedule.scratch for schedule in s.schedules_of(case)}

    assert scratch(Collective.allreduce, [4000], 10, 8) == {80}
    assert scratch(Collective.allreduce, [40], 1000, 8) == {30}  # three receives of a whole chunk
    # On seven ranks three hand their tensor over, and one is a leaf in both trees: they receive no sums.
    without = {Algorithm.ring: 0, Algorithm.recursive_doubling: 3, Algorithm.halving_doubling: 3}
    for algorithm in ALGORITHMS:
        case = s.case(Collective.allreduce, 7, [4000], 10, 8, algorithm=algorithm)
        none = without.get(algorithm, 1)
        assert sorted(schedule.scratch for schedule in s.schedules_of(case)) == [0] * none + [80] * (7 - none)
    assert scratch(Collective.reduce_scatter, [1000] * 4, 10, 8) == {160}
    assert scratch(Collective.reduce_scatter, [1000] * 4, 10, 8, prescale=True) == {240}
    assert scratch(Collective.allgather, [1000] * 4, 10, 8) == {0}
    assert scratch(Collective.broadcast, [1000], 10, 8) == {0}
    assert scratch(Collective.alltoall, [1000] * 16, 10, 8) == {0}


# --- large counts ---------------------------------------------------------------------------------------------------

GIB = 2**30


@pytest.mark.parametrize("each", EACH, ids=name_of_each)
def test_counts_beyond_32_bits_give_the_small_schedule_times_the_segment(each: tuple[Any, Any]) -> None:
    collective, algorithm = each
    counts = {"reduce_scatter": [4, 0, 5], "allgather": [4, 0, 5], "alltoall": [3, 1, 4, 1, 5, 2, 6, 0, 5]}
    small = counts.get(name(collective), [12])
    options = {"prescale": True, "finish": True} if "reduce" in name(collective) else {}
    if collective is Collective.allreduce:
        options["algorithm"] = algorithm
    large = s.case(collective, 3, [n * GIB for n in small], GIB, 2, **options)
    schedules = s.schedules_of(s.case(collective, 3, small, 1, 2, **options)), s.schedules_of(large)
    for one, other in zip(*schedules, strict=True):
        assert len(one) > 0
        assert fields(one, GIB) == fields(other, 1)
        assert one.scratch * GIB == other.scratch


def fields(schedule: Any, scale: int) -> list[tuple[Any, ...]]:
    def region(r: Any) -> tuple:
        return r.place, r.offset * scale

    return [
        (m.kind, m.prescale, m.peer, m.count * scale, region(m.to), region(m.from_), region(m.with_), m.after)
        for m in schedule.moves
    ]


@pytest.mark.parametrize("count", [2**31 + 1, 2**32 - 1, 2**33 + 5])
def test_large_counts_that_divide_by_nothing_are_covered_exactly_once(count: int) -> None:
    ranks, segment = 3, 100_000_007
    schedules = s.schedules_of(s.case(Collective.allreduce, ranks, [count], segment, finish=True))
    for rank, schedule in enumerate(schedules):
        received, finished, sent = [], [], 0
        for move in schedule.moves:
            assert 0 < move.count <= segment
            if move.kind is Kind.receive and move.to.place is Place.output:
                received.append((move.to.offset, move.count))
            if move.kind is Kind.finish:
                finished.append((move.to.offset, move.count))
            if move.kind is Kind.send:
                sent += move.count
        parts = sorted(received + finished)
        assert parts[0][0] == 0
        assert all(begin + n == after for (begin, n), (after, _) in pairwise(parts))
        assert sum(parts[-1]) == count
        chunk = [count // ranks + (i < count % ranks) for i in range(ranks)]
        assert sum(n for _, n in finished) == chunk[rank]
        assert sent == 2 * count - chunk[rank] - chunk[(rank + 1) % ranks]


# --- bad parameters -------------------------------------------------------------------------------------------------


def test_bad_parameters_are_refused() -> None:
    with pytest.raises(Exception, match="a segment has at least one element"):
        s.schedules_of(s.case(Collective.allreduce, 2, [5], 0))
    with pytest.raises(Exception, match="depth 0: at least one receive must be in flight"):
        s.schedules_of(s.case(Collective.allgather, 2, [5, 5], 1, 0))
    with pytest.raises(Exception, match="rank 2 is not one of 2"):
        s.schedules_of(s.case(Collective.broadcast, 2, [5], 1, root=2))
    with pytest.raises(Exception, match="needs 9 counts"):
        s.schedules_of(s.case(Collective.alltoall, 3, [5], 1))
