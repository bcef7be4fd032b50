"""The vote of a step: a few 64-bit words that the core merges over all ranks by MIN.

A word whose ranks must agree travels with its complement: MIN of both are complements again iff all ranks gave
the same. A yes-or-no word is 1 where all is well, so that one rank's 0 wins.

    word  name          meaning after the merge
    0, 1  plan          digest of the plan, and complement
    2     in_plan       0: some rank met a gradient outside the plan, or has one left over
    3     commit        0: some rank does not take this step
    4     finite        0: some rank saw a gradient that is not finite (1 where nobody looks)
    5     go_on         0: some rank wants to stop after this step
    6, 7  generation    of the set of ranks, and complement
    8, 9  replica       hash of the parameters, and complement; all ones in both where it was not computed. Where ranks
                        differ, they go on to find out which
    10    submitted     so many leading buckets every rank has submitted
    11    complete      0: some rank had no gradient for a parameter of the plan, and sent zeros
    12,13 step          number of step() calls so far, and complement; all ones in both where the rank has joined
    14    joined        1: all ranks have joined, this was the last window
    15    by_all        0: some rank has joined, and averages are divided by the number of those that have not
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ringdp.errors import MismatchError

PLAN, NOT_PLAN, IN_PLAN, COMMIT, FINITE, GO_ON, GENERATION, NOT_GENERATION = range(8)
REPLICA, NOT_REPLICA, SUBMITTED, COMPLETE, STEP, NOT_STEP, JOINED, BY_ALL = range(8, 16)
WORDS = 16

ALL_ONES = (1 << 64) - 1


@dataclass(frozen=True)
class Vote:
    """What one rank says, or what all say together."""

    plan: int
    generation: int
    step: int
    submitted: int
    in_plan: bool = True
    complete: bool = True
    commit: bool = True
    finite: bool = True
    go_on: bool = True
    replica: int | None = None
    joined: bool = False
    by_all: bool = True
    replicas_differ: bool = False  # after the merge: the ranks gave different hashes, and `replica` is None

    @staticmethod
    def steps_differ(words: Sequence[int]) -> bool:
        """Ranks that have not joined are at different steps."""
        return words[STEP] ^ words[NOT_STEP] != ALL_ONES and not words[JOINED]

    def encode(self) -> list[int]:
        """The words to be merged."""
        words = [0] * WORDS
        words[PLAN], words[NOT_PLAN] = self.plan, ALL_ONES ^ self.plan
        words[GENERATION], words[NOT_GENERATION] = self.generation, ALL_ONES ^ self.generation
        words[STEP] = ALL_ONES if self.joined else self.step
        words[NOT_STEP] = ALL_ONES if self.joined else ALL_ONES ^ self.step
        words[JOINED], words[BY_ALL] = int(self.joined), int(self.by_all)
        words[IN_PLAN], words[COMMIT], words[FINITE] = int(self.in_plan), int(self.commit), int(self.finite)
        words[GO_ON], words[COMPLETE] = int(self.go_on), int(self.complete)
        words[SUBMITTED] = self.submitted
        words[REPLICA] = ALL_ONES if self.replica is None else self.replica
        words[NOT_REPLICA] = ALL_ONES if self.replica is None else ALL_ONES ^ self.replica
        return words

    @classmethod
    def decode(cls, words: Sequence[int], optimizer: str, steps: str = "") -> Vote:
        """The merged words. `steps`: which rank is at which, in words, if they differ.

        Raises:
            MismatchError: the ranks gave different plans, generations or steps. On every rank alike.
        """
        for what, here in (("plan", PLAN), ("generation", GENERATION), ("step", STEP)):
            if cls.steps_differ(words) if here == STEP else words[here] ^ words[here + 1] != ALL_ONES:
                which = f"{steps}; " if here == STEP and steps else ""
                raise MismatchError(
                    f"{optimizer}: the ranks differ in {what} ({words[here]} to {ALL_ONES ^ words[here + 1]}): {which}"
                    "they must call backward(), zero_grad() and step() alike. No parameter was changed"
                )
        is_hashed = words[NOT_REPLICA] != ALL_ONES
        differ = is_hashed and words[REPLICA] ^ words[NOT_REPLICA] != ALL_ONES
        return cls(
            plan=words[PLAN],
            generation=words[GENERATION],
            step=0 if words[JOINED] else words[STEP],
            submitted=words[SUBMITTED],
            in_plan=bool(words[IN_PLAN]),
            complete=bool(words[COMPLETE]),
            commit=bool(words[COMMIT]),
            finite=bool(words[FINITE]),
            go_on=bool(words[GO_ON]),
            replica=words[REPLICA] if is_hashed and not differ else None,
            joined=bool(words[JOINED]),
            by_all=bool(words[BY_ALL]),
            replicas_differ=differ,
        )
