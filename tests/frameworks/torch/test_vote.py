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
    merged = Vote.decode(merge(replace(MINE, replica=7), MINE, replace(MINE, replica=7)), "x")
    assert merged.replica == 7 and not merged.replicas_differ  # a rank that has joined says nothing
    for other in (8, 0, (1 << 64) - 2):
        merged = Vote.decode(merge(replace(MINE, replica=7), replace(MINE, replica=other)), "x")
        assert merged.replicas_differ and merged.replica is None


def test_who_is_at_which_step():
    words = merge(MINE, replace(MINE, step=10))
    assert Vote.steps_differ(words) and not Vote.steps_differ(merge(MINE, MINE))
    assert not Vote.steps_differ(merge(MINE, replace(MINE, joined=True)))
    with pytest.raises(
        MismatchError, match=r"differ in step \(9 to 10\): rank 0 at 9; rank 1 at 10; they must"
    ):
        Vote.decode(words, "x", "rank 0 at 9; rank 1 at 10")
