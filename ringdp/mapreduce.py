"""The data-parallel pattern for programs that are not networks: cut the data, apply a function, combine what it gives.

    def sums(points):                             # of a part of the data
        return {"total": points.sum(0), "count": len(points)}

    found = ringdp.map_reduce(sums, points)       # of all of it, the same on every rank

Small results are gathered, and every rank combines them in the same tree; large ones are all-reduced.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ringdp import dtypes, parts, world
from ringdp.constants import Average, Max, Min, Product, ReduceOp, Sum
from ringdp.errors import MismatchError, PeerError, UsageError
from ringdp.numpy.grouped import groups
from ringdp.process_sets import ProcessSet, global_process_set
from ringdp.state import allgather_object
from ringdp.structures import Leaves, take_apart
from ringdp.words import ranks_in_words

Combine = Callable[[Any, Any], Any]

FUNCTIONS: dict[ReduceOp, Combine] = {
    Sum: np.add,
    Average: np.add,  # of results times the items that they are of
    Min: np.minimum,
    Max: np.maximum,
    Product: np.multiply,
}
GATHERED = 64 << 10  # bytes of a result up to which all ranks' results are gathered


def shard(data: Any, weights: Any = None, process_set: ProcessSet = global_process_set) -> Any:
    """This rank's part of data that all ranks have: the parts follow each other in rank order.

    Args:
        data: a sequence (list, range, string …) or an array, which is cut along its first dimension; or a tuple or dict
            of arrays of the same length, each of which is. Of an array the part is a view.
        weights: what each item costs, as many as there are items: then parts of about equal cost. Default: equal
            numbers of items, the first ranks one more where that does not divide evenly.
        process_set: the ranks among which it is cut.

    Returns:
        What `data` is, with fewer items; with none where there are more ranks than items.

    Raises:
        UsageError: data that cannot be cut, arrays of different lengths, weights that are negative or not as many as
            the items; or this rank is not in the process set.
    """
    rank = _rank_in(process_set, "shard")
    bounds = parts.bounds(parts.length(data), process_set.size(), weights)
    return parts.cut(data, *bounds[rank])


def map_reduce(
    function: Callable[[Any], Any],
    data: Any,
    reduce: ReduceOp | Combine = Sum,
    *,
    weights: Any = None,
    blocks: int | None = None,
    sharded: bool = False,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Any:
    """Apply a function to parts of the data, each rank to its own, and combine the results: the same bits on all ranks.

    Args:
        function: of a part of the data (see `shard`). Gives a number, an array, or a dict, list or tuple of such, which
            looks the same for all parts; if `reduce` is a function, any object that can be pickled. It is not called
            for a part without items; if there is no item at all, it is called for that, on every rank.
        data: see `shard`; the same on all ranks.
        reduce: Sum, Min, Max, Product: element by element. Average: the mean of the results, in float64, weighted by
            the items that they are of. Or a function of two results, of earlier and of later items, that gives that of
            all of them. It need not commute.
        weights: see `shard`; they change which rank does what.
        blocks: cut the data into so many parts, however many ranks there are, and combine their results in a tree that
            depends on nothing else: the same bits on any number of ranks, if `function` gives the same for the same
            block. Default: a part for each rank, so another number of ranks rounds otherwise.
        sharded: `data` is this rank's part already. Not with `weights` or `blocks`.
        name: prefix of the operations' names; default: unnamed.
        process_set: the ranks that take part.

    Returns:
        What `function` gives, of all the data. Python's numbers stay such; bools add up to an integer.

    Raises:
        PeerError: the function raised on another rank, which the text names; there its own exception is raised. Or a
            rank has joined (`ringdp.join`), and its part is missing.
        MismatchError: the ranks have data of different lengths, other options, or results that do not look alike. On
            every rank.
        UsageError: as for `shard`; or options that cannot be.
    """
    rank = _rank_in(process_set, "map_reduce")
    way = _Way(reduce, blocks, sharded, weights)
    said, error = _Said(rank, way.text), None
    try:
        items, nodes = way.apply(function, data, rank, process_set.size())
        said = said._replace(items=items, nodes=nodes, looks=_looks(nodes))
    except Exception as caught:  # the others wait for this rank
        error = caught
        said = said._replace(error=f"{type(caught).__name__}: {caught}")
    mine = next(iter(said.nodes.values()), None)
    if way.all_reduces(mine):
        said = said._replace(nodes={}, is_large=True)
    everybody = [
        _Said(*one) for one in allgather_object(tuple(said), name and f"{name}.results", process_set)
    ]
    if error is not None:
        raise error
    _check(everybody, sharded, process_set)
    total = sum(one.items for one in everybody) if sharded else said.items
    if total == 0:
        return function(data)
    if any(one.is_large for one in everybody):
        looks = next(one.looks for one in everybody if one.looks is not None)
        return way.finish(_all_reduced(mine, looks, way, name, process_set), total)
    known = {node: result for one in everybody for node, result in one.nodes.items()}
    top = 0, blocks or process_set.size()
    return way.finish(_climb(top, lambda node: known.get(node, _BELOW), way.combine), total)


class _Said(NamedTuple):
    """What a rank tells of its part."""

    rank: int
    options: str
    error: str = ""
    items: int = 0  # of its data
    looks: Leaves | None = None  # of its results: without elements
    nodes: dict[parts.Node, Any] = {}  # of the tree: results by range of blocks; never changed
    is_large: bool = False  # they stay here, for an all-reduce


class _Way:
    """How results are combined."""

    def __init__(self, reduce: ReduceOp | Combine, blocks: int | None, sharded: bool, weights: Any) -> None:
        self.op = reduce if isinstance(reduce, ReduceOp) else None
        if (self.op is not None and self.op not in FUNCTIONS) or not (
            self.op is not None or callable(reduce)
        ):
            known = ", ".join(op.name for op in FUNCTIONS)
            raise UsageError(f"map_reduce: reduce must be one of {known}, or a function, not {reduce!r}")
        if blocks is not None and (operator.index(blocks) < 1 or sharded):
            raise UsageError(
                f"map_reduce: blocks must be a number from 1, and not with sharded, not {blocks!r}"
            )
        if sharded and weights is not None:
            raise UsageError("map_reduce: weights cut the data, which is sharded already")
        self._reduce, self._blocks, self._sharded, self._weights = reduce, blocks, sharded, weights
        shown = self.op.name if self.op is not None else "a function"
        self.text = f"reduce {shown}, blocks {blocks}, sharded {sharded}"

    def apply(
        self, function: Callable[[Any], Any], data: Any, rank: int, ranks: int
    ) -> tuple[int, dict[parts.Node, Any]]:
        """The items of `data`, and the results of this rank's blocks, combined as far as they can be here."""
        items = parts.length(data)
        own = rank, rank + 1
        if self._sharded:
            bounds = [(0, items if r == rank else 0) for r in range(ranks)]
        elif self._blocks is None:
            bounds = parts.bounds(items, ranks, self._weights)
        else:
            bounds = parts.bounds(items, self._blocks)
            own = parts.owners(bounds, ranks, self._weights)[rank]

        def result_of(node: parts.Node) -> Any:
            if node[1] - node[0] > 1:
                return _BELOW
            begin, end = bounds[node[0]]
            if begin == end:
                return _NOTHING
            return self._taken(function(parts.cut(data, begin, end)), end - begin)

        nodes = {node: _climb(node, result_of, self.combine) for node in parts.cover((0, len(bounds)), own)}
        return items, {node: result for node, result in nodes.items() if result is not _NOTHING}

    def combine(self, a: Any, b: Any) -> Any:
        """Of two results, of earlier and of later items."""
        return a.combine(b, FUNCTIONS[self.op]) if self.op is not None else self._reduce(a, b)  # type: ignore[operator]

    def all_reduces(self, mine: Any) -> bool:
        """This rank's result is large, and the core can combine it."""
        return (
            isinstance(mine, Leaves)
            and self.op is not None
            and self._blocks is None
            and sum(array.nbytes for array in mine.arrays) > GATHERED
            and all(dtypes.of_array(array) is not None for array in mine.arrays)
        )

    def finish(self, combined: Any, total: int) -> Any:
        """What the caller is given, of so many items."""
        if self.op is Average:
            combined = combined.map(lambda array: array / total)
        return combined if self.op is None else combined.put_together()

    def _taken(self, result: Any, items: int) -> Any:
        if self.op is None:
            return result
        leaves = take_apart(result, adds=self.op is Sum)
        if self.op is not Average:
            return leaves
        return leaves.map(lambda array: array * np.float64(items))


# In place of a result: of a node that has no items; of one whose result is that of the nodes below it.
_NOTHING, _BELOW = object(), object()


def _climb(node: parts.Node, result_of: Callable[[parts.Node], Any], combine: Combine) -> Any:
    """The result of a node of the tree, from those below it."""
    found = result_of(node)
    if found is not _BELOW:
        return found
    if node[1] - node[0] == 1:
        return _NOTHING
    a, b = (_climb(below, result_of, combine) for below in parts.halves(node))
    return b if a is _NOTHING else a if b is _NOTHING else combine(a, b)


def _looks(nodes: dict[parts.Node, Any]) -> Leaves | None:
    first = next(iter(nodes.values()), None)
    return first.without_elements() if isinstance(first, Leaves) else None


def _all_reduced(
    mine: Leaves | None, looks: Leaves, way: _Way, name: str | None, process_set: ProcessSet
) -> Leaves:
    """Large results, each in one operation; `mine` is None where this rank has no items."""
    assert way.op is not None
    arrays = mine.arrays if mine is not None else [_neutral(like, way.op) for like in looks.arrays]
    op = Sum if way.op is Average else way.op
    reduced = groups.grouped_allreduce(arrays, None, name and f"{name}.sum", op, process_set=process_set)
    return looks.with_arrays(reduced)


def _neutral(like: Any, op: ReduceOp) -> Any:
    """Elements that change nothing in those of other ranks."""
    if op not in (Min, Max):
        return np.full(like.shape, op is Product, like.dtype)
    if like.dtype.kind == "b":
        return np.full(like.shape, op is Min)
    if like.dtype.kind in "iu":
        info = np.iinfo(like.dtype)
        return np.full(like.shape, info.max if op is Min else info.min, like.dtype)
    return np.full(like.shape, np.inf if op is Min else -np.inf).astype(like.dtype)


def _rank_in(process_set: ProcessSet, call: str) -> int:
    rank = process_set.rank() if process_set.included() else None
    if rank is None:
        raise UsageError(f"{call}: this rank is not in {process_set!r}")
    return rank


def _check(everybody: Sequence[_Said], sharded: bool, process_set: ProcessSet) -> None:
    """All ranks come to the same end here, but for those that have an exception of their own."""
    me = f"rank {world.rank()}: map_reduce"
    ranks = process_set.ranks or range(process_set.size())
    for said in everybody:
        if said.error:
            raise PeerError(f"{me} failed on rank {ranks[said.rank]}: {said.error}")
    missing = sorted(set(range(process_set.size())) - {said.rank for said in everybody})
    if missing:
        raise PeerError(
            f"{me}: {ranks_in_words([ranks[i] for i in missing])} joined, and their data are missing"
        )
    differ: dict[str, dict[int, Any]] = {
        "other options": {ranks[said.rank]: said.options for said in everybody},
        "data of different lengths": {} if sharded else {ranks[said.rank]: said.items for said in everybody},
        "results that do not look alike": {
            ranks[said.rank]: said.looks.looks for said in everybody if said.looks is not None
        },
    }
    for what, told in differ.items():
        if len(set(told.values())) > 1:
            who: dict[Any, list[int]] = {}
            for rank, one in told.items():
                who.setdefault(one, []).append(rank)
            table = "; ".join(f"{ranks_in_words(of)}: {one}" for one, of in who.items())
            raise MismatchError(f"{me}: the ranks have {what}: {table}")
