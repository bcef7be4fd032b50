"""This rank's part of the data."""

from __future__ import annotations

from typing import Any

from ringdp import world
from ringdp.errors import UsageError


def shard_equally(*arrays: Any) -> Any:
    """Every size-th row of each array, beginning at this rank's: as many rows on all ranks, so as many batches.

    The last rows, fewer than there are ranks, are left out. (`ringdp.shard` gives every row to some rank.)

    Args:
        arrays: what has a length and slices (NumPy arrays, tensors), of one length.

    Returns:
        The part, or a tuple of them; views where the arrays make such.

    Raises:
        UsageError: no array, different lengths, or fewer rows than ranks.
    """
    size, rank = world.size(), world.rank()
    rows = {len(array) for array in arrays}
    if len(rows) != 1:
        raise UsageError(f"shard_equally needs arrays of one length, not of {sorted(rows)}")
    each = rows.pop() // size
    if not each:
        raise UsageError(f"shard_equally: fewer rows than the {size} ranks")
    parts = tuple(array[rank : each * size : size] for array in arrays)
    return parts[0] if len(parts) == 1 else parts
