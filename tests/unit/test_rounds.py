"""The agreement on named operations (csrc/agree/rounds.h): all its interleavings for three ranks and three names.

csrc/agree/explore.cc goes through every order of events on all ranks and checks that they decide the same in the same
order and keep the same table, that every name ends exactly once, and that nothing waits for ever. The tests below ask
for scenarios, see that what they are about has happened, and that a protocol without one of its rules is caught.
Beyond what can be exhausted, the last ones take random orders for more ranks and many names.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from ringdp import _core

a = _core.agreement
Broken = a.Broken


def proved(**scenario: Any) -> Any:
    outcome = a.explore(**scenario)
    assert outcome.violation == "", "\n".join([outcome.violation, *outcome.path])
    assert outcome.ends > 0
    return outcome


# --- every interleaving ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hears_neighbour_only", [False, True])
def test_three_names_on_three_ranks_in_every_order(hears_neighbour_only: bool) -> None:
    outcome = proved(hears_neighbour_only=hears_neighbour_only)
    assert outcome.states > 100_000
    assert outcome.mismatches == outcome.peers_left == 0


def test_more_new_names_than_one_instance_holds() -> None:
    proved(names_at_once=1)


@pytest.mark.parametrize("different", [[(1, 1)], [(0, 0), (2, 2)]], ids=str)
def test_different_signatures_fail_once_on_every_rank_and_the_other_names_run(
    different: list[tuple[int, int]],
) -> None:
    outcome = proved(different=different)  # proves that names fail exactly where signatures differ
    assert outcome.mismatches > 0 and outcome.runs > 0


def test_a_name_goes_on_after_a_mismatch() -> None:
    outcome = proved(names=2, times=2, different=[(2, 0)])
    assert outcome.mismatches > 0 and outcome.runs > 0


@pytest.mark.parametrize("names_kept", [1, 2])
@pytest.mark.parametrize("names_at_once", [1, 2])
def test_ids_are_reused(names_kept: int, names_at_once: int) -> None:
    proved(names=2, times=2, names_kept=names_kept, names_at_once=names_at_once)


def test_ids_are_reused_for_a_third_name() -> None:
    proved(names=3, names_kept=1)


@pytest.mark.parametrize("leave_early", [[0], [1], [2], [0, 1, 2]], ids=str)
def test_a_rank_leaves_at_any_time(leave_early: list[int]) -> None:
    outcome = proved(names=2, leave_early=leave_early)
    assert outcome.peers_left > 0 and outcome.runs > 0


def test_a_rank_leaves_while_signatures_differ_and_ids_are_reused() -> None:
    outcome = proved(names=2, times=2, names_kept=1, leave_early=[1], different=[(0, 1)])
    assert outcome.peers_left > 0 and outcome.mismatches > 0


def test_leaving_one_after_another_when_all_is_done() -> None:
    outcome = proved(names=1, times=2, leave_early=[0], hears_neighbour_only=True)
    assert outcome.runs > 0


# --- the exploration itself -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("leave_early", [[], [1]], ids=str)
def test_leaving_out_orders_of_independent_events_loses_no_end(leave_early: list[int]) -> None:
    scenario = {"names": 2, "leave_early": leave_early}
    less, all_orders = proved(**scenario), proved(**scenario, every_order=True)
    assert less.ends == all_orders.ends
    assert less.states < all_orders.states


@pytest.mark.slow
def test_three_names_without_leaving_out_any_order() -> None:
    assert proved(every_order=True).ends == proved().ends


@pytest.mark.slow
def test_a_rank_leaves_among_three_names() -> None:
    proved(leave_early=[1])


@pytest.mark.parametrize(
    ("broken", "scenario", "violation"),
    [
        (Broken.forgets_changes_inside, {}, "deadlock: rank 0 waits for a name"),
        (Broken.submission_order, {}, "two ranks have decided differently in the same instance"),
        (Broken.keeps_reused_id, {"names": 2, "times": 2, "names_kept": 1}, "deadlock"),
        (Broken.never_compares, {"different": [(1, 1)]}, "different signatures ran"),
        (Broken.leaves_in_silence, {"names": 2, "leave_early": [1]}, "never closes"),
    ],
    ids=lambda v: getattr(v, "name", None),
)
def test_a_protocol_without_one_of_its_rules_is_caught(
    broken: Any, scenario: dict[str, Any], violation: str
) -> None:
    proved(**scenario)
    outcome = a.explore(broken=broken, **scenario)
    assert violation in outcome.violation
    assert outcome.path  # the events that lead there


def test_the_exploration_ends_at_its_limit() -> None:
    assert "more states than were allowed" in a.explore(most_states=1000).violation


# --- random orders, more ranks and names ----------------------------------------------------------------------------


class Ranks:
    """Ranks that run the protocol under random orders of events; every name is submitted `times` times by each."""

    def __init__(self, size: int, names: list[int], times: int, seed: int, **kept: int) -> None:
        self.random = random.Random(seed)
        self.rounds = [a.Rounds(r, size, **kept) for r in range(size)]
        self.left = [dict.fromkeys(names, times) for _ in range(size)]  # submissions still to come
        self.in_flight: list[set[int]] = [set() for _ in range(size)]
        self.instance = [0] * size
        self.words: list[Any] = [None] * size  # contributions of who is inside, None of the others
        self.ready: list[bool] = [False] * size
        self.ran: list[list[tuple[str, int, int]]] = [[] for _ in range(size)]

    def events(self) -> list[tuple[str, int]]:
        found = []
        for r, rounds in enumerate(self.rounds):
            if set(self.left[r]) - self.in_flight[r]:
                found.append(("submit", r))
            before = r - 1  # who is heard: the rank before, when it is in this instance or beyond
            heard = self.instance[before] > self.instance[r] or (
                self.instance[before] == self.instance[r] and self.words[before] is not None
            )
            if self.words[r] is None and (rounds.wants_to_enter() or heard):
                found.append(("enter", r))
            if self.ready[r]:
                found.append(("complete", r))
        return found

    def submit(self, r: int) -> None:
        name = self.random.choice(sorted(set(self.left[r]) - self.in_flight[r]))
        self.in_flight[r].add(name)
        self.left[r][name] -= 1
        if self.left[r][name] == 0:
            del self.left[r][name]
        self.rounds[r].submit(name, 7, name)

    def enter(self, r: int) -> None:
        self.words[r] = self.rounds[r].contribution()
        assert len(self.words[r]) == self.rounds[r].words()
        if any(w is None for w in self.words) or len(set(self.instance)) > 1 or any(self.ready):
            return
        merged = self.words[0]
        for words in self.words[1:]:
            merged = self.rounds[r].merge(merged, words)
        self.words = [merged] * len(self.words)
        self.ready = [True] * len(self.words)

    def complete(self, r: int) -> None:
        for kind, token, sequence in self.rounds[r].complete(self.words[r]):
            self.ran[r].append((kind, token, sequence))
            self.in_flight[r].remove(token)
        self.words[r], self.ready[r] = None, False
        self.instance[r] += 1

    def run(self) -> None:
        while events := self.events():
            kind, r = self.random.choice(events)
            getattr(self, kind)(r)


@pytest.mark.parametrize("kept", [{}, {"names_kept": 8}, {"names_kept": 1, "names_at_once": 3}], ids=str)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_many_names_in_random_orders(size: int, kept: dict[str, int]) -> None:
    names = random.Random(size).sample(range(1, 2**63), 100)  # more than one names instance holds
    for seed in range(3):
        ranks = Ranks(size, names, times=2, seed=seed, **kept)
        ranks.run()
        ran = ranks.ran[0]
        assert all(other == ran for other in ranks.ran)
        assert sorted(token for _, token, _ in ran) == sorted(names * 2)
        assert {kind for kind, _, _ in ran} == {"run"}
        assert [sequence for _, _, sequence in ran] == list(range(200))
        assert len({tuple(rounds.shared_state()) for rounds in ranks.rounds}) == 1
        assert not any(rounds.pending() for rounds in ranks.rounds)
