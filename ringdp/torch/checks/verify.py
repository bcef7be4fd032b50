"""A bucket exchanged a second time, and compared: finds bits that flipped in a reduction, or on their way to one rank.

The second time what this rank had put in lies in memory of its own, so within a host it goes by the other way (staged,
where buckets are reduced in place). Both ways have the same order of addition, so all bits must be the same, on all
ranks and both times. Of a communication hook, which may keep state, the first time alone is compared over the ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ringdp.errors import VerificationError
from ringdp.torch.bucket import Bucket
from ringdp.torch.checks.hashes import hash_of
from ringdp.torch.ops import operations
from ringdp.torch.sending import Sent
from ringdp.torch.wire import ELEMENTS, Wire
from ringdp.words import ranks_in_words, some


@dataclass(frozen=True)
class Outcome:
    """What one rank saw of a bucket: hashes."""

    first: int | None  # of this rank's part of it; None: it has joined
    second: int | None  # of the same part, the second time; None: there was none
    whole: int | None  # of all of it, the second time


def is_due(every: int, step: int) -> bool:
    """A bucket is verified in this step."""
    return every > 0 and step % every == 0


def which(every: int, step: int, buckets: int) -> int:
    """The buckets take turns."""
    return step // every % buckets


def verify(wire: Wire, sent: Sent, bucket: Bucket, has_hook: bool, step: int) -> VerificationError | None:
    """Exchange it again, and compare. Collective; None if all is well."""
    second = whole = None
    if not has_hook:
        again = sent.kept if sent.kept is not None else bucket.nothing(wire.options.op)
        wire.submit_again(again, bucket).wait()
        second, whole = hash_of(again[wire.own_part(bucket)]), hash_of(again)
    mine = Outcome(sent.first, second if sent.first is not None else None, whole)
    words = np.array(_encoded(mine), np.uint64).view(np.int64).tolist()
    rows = operations.allgather(torch.tensor([words]), f"{wire.name}.verify", wire.options.process_set)
    outcomes = [_decoded(row) for row in np.array(rows.tolist(), np.int64).view(np.uint64).tolist()]
    text, wrong = diagnosis(outcomes, wire.options.process_set.ranks or (), wire.options.shard == ELEMENTS)
    if not text:
        return None
    names = some([slot.name for slot in bucket.slots])
    error = VerificationError(
        f"{wire.name}, step {step}: bucket {bucket.index} ({names}): {text}. No parameter was changed"
    )
    error.bucket, error.ranks = bucket.index, wrong
    return error


def diagnosis(outcomes: Sequence[Outcome], ranks: Sequence[int], is_sharded: bool) -> tuple[str, list[int]]:
    """What is wrong, and on which of `ranks`; ("", []) if nothing is.

    `is_sharded`: the first time each rank has a part of its own, so these cannot be compared with one another.
    """
    of_ranks = dict(zip(ranks, outcomes, strict=True))
    again = [rank for rank, o in of_ranks.items() if None not in (o.first, o.second) and o.first != o.second]
    seen = {
        rank: {value for value in ((o.whole,) if is_sharded else (o.first, o.whole)) if value is not None}
        for rank, o in of_ranks.items()
    }
    counts = Counter(value for values in seen.values() for value in values)
    if len(counts) > 1:
        wrong = _outside_most(seen, counts)
        if wrong:
            return f"the reduced bits on {ranks_in_words(wrong)} are not those of the others", wrong
        if all(values == set(counts) for values in seen.values()):
            return (
                "exchanged a second time it came out otherwise, alike on all ranks: some rank added wrongly",
                [],
            )
        return "the reduced bits differ between the ranks", []
    if again:
        return f"exchanged a second time, the part of {ranks_in_words(again)} came out otherwise", again
    return "", []


def _outside_most(seen: dict[int, set[int]], counts: Counter[int]) -> list[int]:
    """Ranks that have seen another value than the commonest; empty if there is none."""
    (common, most), *others = counts.most_common()
    if others[0][1] == most:
        return []
    return [rank for rank, values in seen.items() if values - {common}]


def _encoded(outcome: Outcome) -> list[int]:
    values = (outcome.first, outcome.second, outcome.whole)
    return [word for value in values for word in (value is not None, value or 0)]


def _decoded(words: Sequence[int]) -> Outcome:
    return Outcome(*(words[i + 1] if words[i] else None for i in (0, 2, 4)))
