"""Ranks, and what there are many of, in words."""

from __future__ import annotations

from collections.abc import Sequence

MANY = 8  # names of a kind in one line


def ranks_in_words(ranks: Sequence[int]) -> str:
    """`rank 3`, `ranks 0, 1, 2`, `ranks 0, 1, 2 and 40 others`."""
    return f"rank{'s' if len(ranks) > 1 else ''} {some([str(rank) for rank in ranks])}"


def some(names: Sequence[str]) -> str:
    """All of a few names; of many the first."""
    rest = len(names) - MANY
    return ", ".join(names) if rest <= 0 else f"{', '.join(names[:MANY])} and {rest} others"
