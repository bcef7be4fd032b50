"""The fields of a step's vote, merged here as the core does: MIN, word by word."""

from dataclasses import replace

import pytest

from ringdp.errors import MismatchError
from ringdp.torch.vote import WORDS, Vote

MINE = Vote(plan=0xFEED_FACE_CAFE_BEEF, generation=3, step=9, submitted=4)


def merge(*votes):
    return [min(words) for words in zip(*(vote.encode() for vote in votes), strict=True)]


def test_a_vote_survives_encoding():
    for vote in (
        MINE,
        replace(MINE, replica=5, in_plan=False, complete=False, commit=False, finite=False, go_on=False),
    ):
        words = vote.encode()
        assert len(words) == WORDS and all(0 <= word < 1 << 64 for word in words)
        assert Vote.decode(words, "x") == vote


@pytest.mark.parametrize("field", ["in_plan", "complete", "commit", "finite", "go_on"])
def test_one_rank_that_says_no_wins(field):
    merged = Vote.decode(merge(MINE, replace(MINE, **{field: False}), MINE), "x")
    assert merged == replace(MINE, **{field: False})


def test_the_least_that_was_submitted():
    votes = [replace(MINE, submitted=n) for n in (4, 2, 3)]
    assert Vote.decode(merge(*votes), "x").submitted == 2


@pytest.mark.parametrize("field", ["plan", "generation", "step"])
@pytest.mark.parametrize("other", [0, 1, (1 << 64) - 1])
def test_a_disagreement_is_seen_whoever_is_greater(field, other):
    with pytest.raises(
        MismatchError, match=f"optimizer.0: the ranks differ in {field} .*No parameter was changed"
    ):
        Vote.decode(merge(MINE, replace(MINE, **{field: other})), "optimizer.0")


def test_replica_hashes():
    assert Vote.decode(merge(replace(MINE, replica=7), replace(MINE, replica=7)), "x").replica == 7
    assert Vote.decode(merge(MINE, MINE), "x").replica is None
    with pytest.raises(MismatchError, match="the parameters differ"):
        Vote.decode(merge(replace(MINE, replica=7), replace(MINE, replica=8)), "x")
