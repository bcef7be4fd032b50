"""Gradients that some ranks lack while others have them.

They count as zeros, which may be meant (a branch that is not taken) or a mistake. So each is named once, in one line
for all that are new in a step, or is an error on all ranks.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from ringdp.errors import MissingGradientError
from ringdp.torch.checks.options import RAISE
from ringdp.torch.ops import operations
from ringdp.torch.slot import Slot
from ringdp.torch.wire import Wire
from ringdp.words import MANY, ranks_in_words, some


class Missing:
    """What has been named of one optimizer's parameters."""

    def __init__(self, policy: str) -> None:
        self._raises = policy == RAISE
        self._named: set[int] = set()  # parameters whose gradients this rank lacked

    def marks(self, lacks: Sequence[bool]) -> list[bool]:
        """Of those that this rank lacks: what the others should hear, if they have it."""
        return [is_lacking and (self._raises or i not in self._named) for i, is_lacking in enumerate(lacks)]

    def tell(
        self, wire: Wire, slots: Sequence[Slot], marks: Sequence[bool], had: Sequence[bool], step: int
    ) -> MissingGradientError | None:
        """Name what is missing: `marks` of this rank, where `had` says that some rank has the gradient. Collective.

        Returns:
            What all ranks are to raise; None if they are not to.
        """
        mine = [is_marked and is_had for is_marked, is_had in zip(marks, had, strict=True)]
        self._named |= {i for i, is_missing in enumerate(mine) if is_missing}
        rows = operations.allgather(
            torch.tensor([mine], dtype=torch.uint8), f"{wire.name}.missing", wire.options.process_set
        ).tolist()
        job = wire.options.process_set.ranks or ()
        missing = {
            rank: [slot.name for slot, is_missing in zip(slots, row, strict=True) if is_missing]
            for rank, row in zip(job, rows, strict=True)
            if any(row)
        }
        text = f"{wire.name}, step {step}: {in_words(missing)}"
        if self._raises:
            error = MissingGradientError(f"{text}. No parameter was changed")
            error.missing = missing
            return error
        if wire.rank == 0:
            print(
                f'ringdp: {text}. They count as zeros; missing_gradients="raise" would make this an error',
                file=sys.stderr,
                flush=True,
            )
        return None


def in_words(missing: dict[int, list[str]]) -> str:
    """Ranks that lack the same together."""
    by_names: dict[tuple[str, ...], list[int]] = {}
    for rank, names in missing.items():
        by_names.setdefault(tuple(names), []).append(rank)
    parts = [
        f"{ranks_in_words(ranks)} {'have' if len(ranks) > 1 else 'has'} no gradient for {some(names)}"
        for names, ranks in by_names.items()
    ]
    shown = parts[:MANY] + (
        [f"and so for {len(parts) - MANY} other groups of ranks"] if len(parts) > MANY else []
    )
    return f"{'; '.join(shown)}, which other ranks have"
