"""Parts of data: how long it is, where it is cut, and the cut itself. Pure functions, for `ringdp.mapreduce`."""

from __future__ import annotations

from typing import Any

import numpy as np

from ringdp.errors import UsageError

Bounds = list[tuple[int, int]]  # of each part: its first item, and the one behind its last
Node = tuple[int, int]  # of a tree over parts: the range of those below it


def is_table(data: Any) -> bool:
    """A tuple or dict of arrays, which are cut alike."""
    members = list(data.values()) if isinstance(data, dict) else data if isinstance(data, tuple) else []
    return len(members) > 0 and all(hasattr(member, "shape") for member in members)


def length(data: Any) -> int:
    """The number of items.

    Raises:
        UsageError: it has none, or the arrays of a tuple or dict differ in it.
    """
    if not is_table(data):
        if isinstance(data, (dict, set, frozenset)) or not hasattr(data, "__getitem__"):
            kind = f"{type(data).__module__}.{type(data).__qualname__}"
            raise UsageError(
                f"a {kind} cannot be cut: give a sequence, an array, or a tuple or dict of arrays"
            )
        return _rows(data)
    members = data if isinstance(data, dict) else dict(enumerate(data))
    rows = {key: _rows(member) for key, member in members.items()}
    if len(set(rows.values())) > 1:
        told = ", ".join(f"{key}: {n}" for key, n in rows.items())
        raise UsageError(f"the arrays have different numbers of rows: {told}")
    return next(iter(rows.values()))


def _rows(data: Any) -> int:
    try:
        return len(data)
    except TypeError as error:
        raise UsageError(f"data without a length cannot be cut: {error}") from None


def cut(data: Any, begin: int, end: int) -> Any:
    """The items from `begin` to before `end`."""
    if not is_table(data):
        return data[begin:end]
    if isinstance(data, dict):
        return {key: member[begin:end] for key, member in data.items()}
    members = [member[begin:end] for member in data]
    return type(data)(*members) if hasattr(data, "_fields") else tuple(members)


def bounds(count: int, number: int, weights: Any = None) -> Bounds:
    """Where `count` items are cut into `number` parts: of equal numbers, or of about equal weight.

    The first parts have an item more where that does not divide evenly. By weight, an item belongs to the part in which
    the middle of its weight lies.

    Raises:
        UsageError: not as many weights as items, or one that is negative or not finite.
    """
    if weights is None:
        base, extra = divmod(count, number)
        cuts = [i * base + min(i, extra) for i in range(number + 1)]
        return list(zip(cuts, cuts[1:], strict=False))
    costs = np.asarray(weights, np.float64)
    if costs.shape != (count,):
        raise UsageError(f"{count} items need as many weights, not {list(costs.shape)}")
    if not (np.isfinite(costs).all() and (costs >= 0).all()):
        raise UsageError("weights must not be negative, nor infinite or NaN")
    ends = np.cumsum(costs)
    if count == 0 or ends[-1] == 0:
        return bounds(count, number)
    middles = ends - costs / 2
    inner = np.searchsorted(middles, ends[-1] / number * np.arange(1, number)).tolist()
    cuts = [0, *inner, count]
    return list(zip(cuts, cuts[1:], strict=False))


# --- a tree over parts, ((0 1) (2 (3 4))), by which results are combined ---------------------------


def halves(node: Node) -> tuple[Node, Node]:
    """The two nodes below one of several parts."""
    middle = (node[0] + node[1]) // 2
    return (node[0], middle), (middle, node[1])


def cover(node: Node, own: Node) -> list[Node]:
    """The largest nodes, from `node` down, all of whose parts are in the range `own`: few, and in order."""
    if own[1] <= node[0] or node[1] <= own[0] or own[0] == own[1]:
        return []
    if own[0] <= node[0] and node[1] <= own[1]:
        return [node]
    return [found for half in halves(node) for found in cover(half, own)]


def owners(blocks: Bounds, number: int, weights: Any = None) -> Bounds:
    """Which blocks each of `number` ranks takes, by the weight of their items."""
    if weights is None:
        return bounds(len(blocks), number)
    costs = np.asarray(weights, np.float64)
    return bounds(len(blocks), number, [costs[begin:end].sum() for begin, end in blocks])
