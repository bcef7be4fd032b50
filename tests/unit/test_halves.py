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
# How the ranks reach each other; those of the two levels on several hosts.
FLAT = [Sharing.none, Sharing.direct, Sharing.staged]


def name(value: Any) -> str | None:
    return getattr(value, "name", None)


def half(which: Any, sharing: Any, count: int, segment: int, depth: int = 2, **how: Any) -> Any:
    ranks = how.pop("ranks", None) or len(how["host_of"])
    how = {"in_place": True, "sharing": sharing, "half": which, **how}
    return s.case(Collective.allreduce, ranks, [count], segment, depth, **how)


def layouts(sharing: Any) -> list[dict[str, Any]]:
    if sharing in TWO_LEVELS:
        return [{"host_of": hosts} for hosts in (*HOSTS, [0, 0, 1, 1, 2, 2])]
    return [{"ranks": ranks} for ranks in (2, 3, 4, 5, 8)]


@pytest.mark.parametrize("which", HALVES, ids=name)
@pytest.mark.parametrize("sharing", FLAT + TWO_LEVELS, ids=name)
def test_every_small_case_is_right_in_a_random_order(sharing: Any, which: Any) -> None:
    variants = 4 if which is Half.reduce_scatter else 1  # scaled, finished
    for layout in layouts(sharing):
        ranks = layout.get("ranks") or len(layout["host_of"])
        cases = s.sweep(
            *(Collective.allreduce, Algorithm.ring, ranks, 30, [1, 3, 64], [1, 2, 8]),
            sharing=sharing,
            host_of=layout.get("host_of", []),
            half=which,
        )
        assert 31 * 3 * variants <= cases <= 31 * 9 * variants


@pytest.mark.parametrize("sharing", FLAT + TWO_LEVELS, ids=name)
def test_many_random_orders_and_no_order_can_make_a_difference(sharing: Any) -> None:
    for layout, which, depth in product(layouts(sharing)[:4], HALVES, (1, 2)):
        scaled = which is Half.reduce_scatter
        case = half(which, sharing, 13, 1, depth, prescale=scaled, finish=scaled, **layout)
        schedules = s.schedules_of(case)
        s.check(case, schedules, first_seed=5_000, seeds=100)
        assert Accesses(schedules, True).are_safe(Order(schedules, case.host_of)), case


@pytest.mark.parametrize("sharing", FLAT + TWO_LEVELS, ids=name)
def test_the_first_half_adds_in_the_order_of_the_whole(sharing: Any) -> None:
    for layout, segment, prescale in product(layouts(sharing), (1, 4, 64), (False, True)):
        whole = half(Half.both, sharing, 30, segment, prescale=prescale, **layout)
        first = half(Half.reduce_scatter, sharing, 30, segment, prescale=prescale, **layout)
        wanted = s.sums(whole, 0)
        owned = []
        for rank in range(whole.ranks):
            begin, end = s.own_chunk(first, rank)
            assert s.sums(first, rank)[begin:end] == wanted[begin:end]
            owned += range(begin, end)
        assert sorted(owned) == list(range(30))


@pytest.mark.parametrize("sharing", FLAT + TWO_LEVELS, ids=name)
def test_both_together_send_and_add_what_the_whole_does(sharing: Any) -> None:
    """Of the shared memory of a host, they copy no more either."""

    def work(which: Any, layout: dict[str, Any]) -> Counter[Any]:
        elements: Counter[Any] = Counter()
        for schedule in s.schedules_of(half(which, sharing, 240, 10, **layout)):
            for move in schedule.moves:
                if move.kind not in (Kind.signal, Kind.await_):
                    elements[move.kind] += move.count
        return elements

    for layout in layouts(sharing):
        first, second = work(Half.reduce_scatter, layout), work(Half.all_gather, layout)
        assert first + second == work(Half.both, layout)
        assert second[Kind.reduce] == second[Kind.finish] == 0


def test_only_what_is_in_place_by_ring_or_in_shared_memory_has_halves() -> None:
    for how, message in (
        ({"in_place": False}, "only all-reduces in place"),
        ({"algorithm": Algorithm.double_tree}, "only all-reduces in place"),
        ({"half": Half.all_gather, "finish": True}, "second half has no arithmetic"),
    ):
        case = half(Half.reduce_scatter, Sharing.none, 9, 2, **{"ranks": 3, **how})
        with pytest.raises(Exception, match=message):
            s.schedules_of(case)
