"""With whom a rank shares memory (ringdp/sharing.py): the part that needs no processes."""

import pytest

from ringdp import sharing
from ringdp.errors import InitError


def groups(reached):
    return [sharing.group_of(rank, reached) for rank in sorted(reached)]


def test_all_that_reach_one_another_are_one_group():
    assert groups({r: {2, 5, 7} for r in (2, 5, 7)}) == [[2, 5, 7]] * 3


def test_two_containers_of_one_name_are_two_groups():
    assert groups({0: {0, 1}, 1: {0, 1}, 2: {2, 3}, 3: {2, 3}}) == [[0, 1], [0, 1], [2, 3], [2, 3]]


def test_reaching_one_way_is_not_sharing():
    assert groups({0: {0, 1}, 1: {1}}) == [[0], [1]]


def test_a_rank_without_a_heap_has_no_group():
    assert groups({0: {0, 2}, 1: set(), 2: {0, 2}}) == [[0, 2], [], [0, 2]]


def test_a_value_that_is_none_names_those_there_are(monkeypatch):
    monkeypatch.setenv(sharing.VARIABLE, "sometimes")
    with pytest.raises(
        InitError, match="RINGDP_SHARED_MEMORY=sometimes is not one of auto, memfd, file, off"
    ):
        sharing.wanted_kinds()
