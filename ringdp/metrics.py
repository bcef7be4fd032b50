"""Metrics averaged over the ranks, in one call and one all-reduce."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ringdp import world
from ringdp.constants import Sum
from ringdp.errors import MismatchError, PeerError, UsageError
from ringdp.numpy.ops import operations
from ringdp.process_sets import ProcessSet, global_process_set
from ringdp.state import allgather_object

# A digest travels in the same sum as the metrics, as words w beside their squares: by Cauchy-Schwarz the words of n
# ranks are equal if and only if n Σw² = (Σw)². With 20 bits a word all sums are exact in float64 up to 2^13 ranks.
_WORD_BITS, _WORDS = 20, 3


def average_metrics(
    metrics: Mapping[str, Any],
    weight: Any = 1,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> dict[str, float]:
    """The averages of all ranks' metrics, weighted by how many samples each rank has seen. One all-reduce for all.

    `average_metrics({"loss": loss, "accuracy": (correct, n)}, weight=n)`: the loss, a mean over this rank's n
    samples, becomes Σ nᵣ·lossᵣ / Σ nᵣ; the accuracy becomes Σ correctᵣ / Σ nᵣ.

    Args:
        metrics: by name: either a number, this rank's mean, which counts `weight` times; or a pair (sum, count).
            Numbers may be Python's, NumPy's or tensors of one element. The names must be the same on all ranks, in
            any order.
        weight: samples (or tokens) behind this rank's means. A rank of weight 0 counts for nothing, whatever its
            means are (NaN, often); so does a pair of count 0.
        name: of the operation; default "average_metrics".
        process_set: the ranks that take part; one that has joined counts for nothing.

    Returns:
        Python floats by name, in this rank's order, the same on all ranks; NaN where all ranks together have a weight
        of 0. Sums are made in float64.

    Raises:
        MismatchError: the names differ between ranks; on every rank, with the names that some lack.
        UsageError: on this rank, for a value that is no number or a negative weight; PeerError on the others.
    """
    what = f"{name}.average_metrics" if name else "average_metrics"
    metrics = {str(key): value for key, value in metrics.items()}
    names = sorted(metrics)
    pairs = dict.fromkeys(names, (0.0, 0.0))
    error: UsageError | None = None
    try:
        pairs = {key: _sum_and_count(key, value, weight) for key, value in metrics.items()}
    except UsageError as caught:  # the others wait for this rank
        error = caught
    words = _digest(names)
    numbers = [
        1,
        error is not None,
        *words,
        *(w * w for w in words),
        *(x for key in names for x in pairs[key]),
    ]
    try:
        vector = np.array(numbers, np.float64)
        sums = operations.allreduce(vector, None, what, Sum, process_set=process_set).tolist()
    except MismatchError:  # another number of names
        raise _differences(names, what, process_set) from None
    ranks, failed = sums[:2]
    of_words, of_pairs = sums[2 : 2 + 2 * _WORDS], sums[2 + 2 * _WORDS :]
    if not _same_words(of_words, int(ranks)):
        raise _differences(names, what, process_set)
    if error is not None:
        raise error
    if failed:
        raise PeerError(
            f"rank {world.rank()}: {what}: {int(failed)} of the ranks gave a value that is no number; see their errors"
        )
    averages = {k: _divide(*of_pairs[2 * i : 2 * i + 2]) for i, k in enumerate(names)}
    return {key: averages[key] for key in metrics}


def _sum_and_count(key: str, value: Any, weight: Any) -> tuple[float, float]:
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise UsageError(f"{_of(key)}: give a number or a pair (sum, count), not {len(value)} values")
        total, count = (_number(v, key) for v in value)
    else:
        mean, count = _number(value, key), _number(weight, "weight")
        total = mean * count
    if not 0 <= count < math.inf:
        raise UsageError(f"{_of(key)}: the weight must be 0 or more samples, not {count}")
    return (total, count) if count else (0.0, 0.0)


def _number(value: Any, key: str) -> float:
    try:
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: torch's, for a tensor of several elements
        shape = f" of shape {list(value.shape)}" if hasattr(value, "shape") else ""
        raise UsageError(
            f"{_of(key)}: needs a number or a tensor of one element, not a {type(value).__name__}{shape}"
        ) from None


def _of(key: str) -> str:
    return f"rank {world.rank()}: average_metrics: '{key}'"


def _divide(total: float, count: float) -> float:
    return total / count if count else math.nan


def _digest(names: Sequence[str]) -> list[int]:
    digest = int.from_bytes(hashlib.blake2b("\n".join(names).encode(), digest_size=8).digest(), "little")
    return [digest >> (_WORD_BITS * i) & ((1 << _WORD_BITS) - 1) for i in range(_WORDS)]


def _same_words(sums: Sequence[float], ranks: int) -> bool:
    words, squares = sums[:_WORDS], sums[_WORDS:]
    return all(ranks * int(s) == int(w) ** 2 for w, s in zip(words, squares, strict=True))


def _differences(names: Sequence[str], what: str, process_set: ProcessSet) -> MismatchError:
    """The error on every rank: which names which ranks lack."""
    of_ranks = allgather_object((world.rank(), list(names)), f"{what}.names", process_set)
    lines = []
    for key in sorted({key for _, theirs in of_ranks for key in theirs}):
        lacking = [str(rank) for rank, theirs in of_ranks if key not in theirs]
        if lacking:
            more = f" and {len(lacking) - 8} more" if len(lacking) > 8 else ""
            lines.append(
                f"\n  '{key}' is missing on rank{'s' * (len(lacking) > 1)} {', '.join(lacking[:8])}{more}"
            )
    return MismatchError(f"{what}: the ranks have different metrics:{''.join(lines)}")
