"""Whether all ranks have the same parameters: a hash of them in the vote, and names where it differs.

One number for all parameters of a rank travels with the vote, so a check that finds nothing costs one pass over the
parameters and no message. Where the numbers differ, the ranks show each other one hash for each parameter.

Parameters alone: buffers (BatchNorm's statistics) are each rank's own between two broadcasts. Bits are compared: 0 and
-0 differ, and equal NaNs are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ringdp import _core
from ringdp.errors import ReplicaError
from ringdp.torch.checks.hashes import hash_of
from ringdp.torch.ops import operations
from ringdp.torch.slot import Slot
from ringdp.torch.wire import Wire
from ringdp.words import ranks_in_words

NONE = (1 << 64) - 1  # in a vote: not computed


def hashes_of(slots: Sequence[Slot]) -> list[int]:
    """One of each parameter. Its place is the seed: parameters that have changed places differ."""
    return [hash_of(slot.param, slot.index) for slot in slots]


def together(hashes: Sequence[int]) -> int:
    """One hash of all, and never NONE."""
    row = np.array(hashes, np.uint64)
    return _core.kernels.hash(row.ctypes.data, row.nbytes, len(row)) % NONE


@dataclass(frozen=True)
class Difference:
    """What the rows of hashes say. Ranks by their number among the rows."""

    groups: list[list[int]]  # ranks with the same parameters, the largest group first
    is_tie: bool  # another group is as large as the first
    first: int  # the first parameter in which any two differ
    count: int  # so many do

    @property
    def minority(self) -> list[int]:
        """The ranks outside the largest group; empty if there is no largest."""
        return [] if self.is_tie else sorted(rank for group in self.groups[1:] for rank in group)


def difference(rows: Sequence[Sequence[int]], ranks: Sequence[int]) -> Difference | None:
    """Of `ranks`, by their hashes; None if all are the same."""
    by_row: dict[tuple[int, ...], list[int]] = {}
    for rank in ranks:
        by_row.setdefault(tuple(rows[rank]), []).append(rank)
    if len(by_row) < 2:
        return None
    groups = sorted(by_row.values(), key=lambda group: (-len(group), group))
    columns = list(zip(*by_row, strict=True))
    differ = [i for i, column in enumerate(columns) if len(set(column)) > 1]
    return Difference(groups, len(groups[0]) == len(groups[1]), differ[0], len(differ))


def name_the_minority(wire: Wire, slots: Sequence[Slot], hashes: Sequence[int], step: int) -> ReplicaError:
    """What all ranks are to raise. Collective. `hashes`: those of the vote; empty on a rank that has joined."""
    mine = np.array([bool(hashes), *(hashes or [0] * len(slots))], np.uint64).view(np.int64)
    rows = operations.allgather(
        torch.tensor(mine.tolist()).unsqueeze(0), f"{wire.name}.replicas", wire.options.process_set
    ).tolist()
    found = difference([row[1:] for row in rows], [rank for rank, row in enumerate(rows) if row[0]])
    where = f"{wire.name}, step {step}"
    if found is None:
        return ReplicaError(f"{where}: the ranks' hashes of all parameters differed, those of each do not")
    job = wire.options.process_set.ranks or ()
    groups = [[job[rank] for rank in group] for group in found.groups]
    slot = slots[found.first]
    others = f" ({found.count} parameters differ)" if found.count > 1 else ""
    first = f"the first that differs is {slot.entry().line()}{others}"
    if found.is_tie:
        parts = "; ".join(ranks_in_words(group) for group in groups[:8])
        text = f"the ranks' parameters differ, and no group of equal ones is the largest: {parts}"
    else:
        minority = [job[rank] for rank in found.minority]
        others_have = "those" if len(groups) == 2 else "their own, different from those"
        text = f"the parameters of {ranks_in_words(minority)} differ from {others_have} of {ranks_in_words(groups[0])}"
    error = ReplicaError(f"{where}: {text}; {first}. This step has changed no parameter yet")
    error.ranks = [job[rank] for rank in found.minority]
    error.groups, error.parameter, error.step = groups, slot.name, step
    return error
