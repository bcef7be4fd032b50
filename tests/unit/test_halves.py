"""The halves of an all-reduce in place, proved by simulation: what each leaves where; they add as the whole does."""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import Any

import pytest
from happens_before import Accesses, Order
from shared_cases import HOSTS, TWO_LEVELS

from ringdp import _core

s = _core.schedules
Algorithm, Collective, Half, Kind, Place, Sharing = (
    s.Algorithm,
    s.Collective,
    s.Half,
    s.Kind,
    s.Place,
    s.Sharing,
)
HALVES = [Half.reduce_scatter, Half.all_gather]
# How the ranks reach each other, those of the two levels on several hosts; or an algorithm of messages.
WAYS = [Algorithm.ring, Algorithm.halving_doubling, Sharing.direct, Sharing.staged, *TWO_LEVELS]


def name(value: Any) -> str | None:
    return getattr(value, "name", None)


def half(which: Any, way: Any, count: int, segment: int, depth: int = 2, **how: Any) -> Any:
    ranks = how.pop("ranks", None) or len(how["host_of"])
    how = {"in_place": True, "half": which, **named(way), **how}
    return s.case(Collective.allreduce, ranks, [count], segment, depth, **how)


def named(way: Any) -> dict[str, Any]:
    return {"algorithm" if isinstance(way, Algorithm) else "sharing": way}


def layouts(way: Any) -> list[dict[str, Any]]:
    if way in TWO_LEVELS:
        return [{"host_of": hosts} for hosts in (*HOSTS, [0, 0, 1, 1, 2, 2])]
    powers = way is Algorithm.halving_doubling
    return [{"ranks": ranks} for ranks in ((2, 4, 8, 16) if powers else (2, 3, 4, 5, 8))]


@pytest.mark.parametrize("which", HALVES, ids=name)
@pytest.mark.parametrize("way", WAYS, ids=name)
def test_every_small_case_is_right_in_a_random_order(way: Any, which: Any) -> None:
    variants = 4 if which is Half.reduce_scatter else 1  # scaled, finished
    for layout in layouts(way):
        ranks = layout.get("ranks") or len(layout["host_of"])
        cases = s.sweep(
            *(
                Collective.allreduce,
                named(way).get("algorithm", Algorithm.ring),
                ranks,
                30,
                [1, 3, 64],
                [1, 2, 8],
            ),
            sharing=named(way).get("sharing", Sharing.none),
            host_of=layout.get("host_of", []),
            half=which,
        )
        assert 31 * 3 * variants <= cases <= 31 * 9 * variants


@pytest.mark.parametrize("way", WAYS, ids=name)
def test_many_random_orders_and_no_order_can_make_a_difference(way: Any) -> None:
    for layout, which, depth in product(layouts(way)[:4], HALVES, (1, 2)):
        scaled = which is Half.reduce_scatter
        case = half(which, way, 13, 1, depth, prescale=scaled, finish=scaled, **layout)
        schedules = s.schedules_of(case)
        s.check(case, schedules, first_seed=5_000, seeds=100)
        assert Accesses(schedules, True).are_safe(Order(schedules, case.host_of)), case


@pytest.mark.parametrize("way", WAYS, ids=name)
def test_the_first_half_adds_in_the_order_of_the_whole(way: Any) -> None:
    for layout, segment, prescale in product(layouts(way), (1, 4, 64), (False, True)):
        whole = half(Half.both, way, 30, segment, prescale=prescale, **layout)
        first = half(Half.reduce_scatter, way, 30, segment, prescale=prescale, **layout)
        wanted = s.sums(whole, 0)
        owned = []
        for rank in range(whole.ranks):
            begin, end = s.own_chunk(first, rank)
            assert s.sums(first, rank)[begin:end] == wanted[begin:end]
            owned += range(begin, end)
        assert sorted(owned) == list(range(30))


@pytest.mark.parametrize("way", WAYS, ids=name)
def test_both_together_send_and_add_what_the_whole_does(way: Any) -> None:
    """Of the shared memory of a host, they copy no more either."""

    def work(which: Any, layout: dict[str, Any]) -> Counter[Any]:
        elements: Counter[Any] = Counter()
        for schedule in s.schedules_of(half(which, way, 240, 10, **layout)):
            for move in schedule.moves:
                if move.kind not in (Kind.signal, Kind.await_):
                    elements[move.kind] += move.count
        return elements

    for layout in layouts(way):
        first, second = work(Half.reduce_scatter, layout), work(Half.all_gather, layout)
        assert first + second == work(Half.both, layout)
        assert second[Kind.reduce] == second[Kind.finish] == 0


def test_what_has_no_halves() -> None:
    for how, message in (
        ({"in_place": False}, "no all-reduce in place that has halves"),
        ({"algorithm": Algorithm.double_tree}, "no all-reduce in place that has halves"),
        ({"algorithm": Algorithm.halving_doubling}, "no all-reduce in place that has halves"),
        ({"half": Half.all_gather, "finish": True}, "second half has no arithmetic"),
    ):
        case = half(Half.reduce_scatter, Algorithm.ring, 9, 2, **{"ranks": 3, **how})
        with pytest.raises(Exception, match=message):
            s.schedules_of(case)
