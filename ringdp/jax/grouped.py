"""Many arrays in one call: any pytree of them. All are exchanged or, where ranks differ in one, none.

What is reduced is packed by dtype, one behind the other, in memory that the ranks of a host share (csrc/xla/flat.cc);
what is gathered or scattered goes by rows, each array by itself (csrc/xla/group.cc).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from ringdp.constants import Average, ReduceOp
from ringdp.errors import UsageError
from ringdp.jax.adapter import array_of
from ringdp.jax.compression import Compression, check
from ringdp.jax.ops import known_rows, options, placed
from ringdp.jax.primitives import allgather_p, allreduce_p, reducescatter_p
from ringdp.process_sets import ProcessSet, global_process_set
from ringdp.requests import reduce_op


def grouped_allreduce(
    tensors: Any,
    average: bool | None = None,
    name: str | None = None,
    compression: Any = Compression.none,
    op: ReduceOp | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> Any:
    """`allreduce` of each array of a pytree, in one exchange; gradients flow back, in one exchange too.

    Args:
        tensors: a list of arrays, or any other pytree of them, of the same structure on all ranks. None is a part of
            the structure, as everywhere in JAX.
        average, name, compression, op, prescale_factor, postscale_factor, process_set: see `allreduce`. Adasum looks at
            each array by itself: use `allreduce` for it.

    Returns:
        A pytree of the same structure of new arrays.

    Raises:
        MismatchError: an array is another one on some rank (its place in the tree, dtype or shape), or the options
            differ. The text names the first that does. Further: see `allreduce`.
        UsageError: op=Adasum.
    """
    chosen = reduce_op(op, average)
    common = options(name, process_set)
    if chosen is ReduceOp.Adasum:
        raise UsageError(
            "grouped_allreduce: Adasum looks at each array by itself: use allreduce(array, op=Adasum)"
        )
    how = {"op": int(chosen), "scale": (float(prescale_factor), float(postscale_factor))}
    return _each(
        tensors, compression, lambda arrays, names: allreduce_p.bind(*arrays, names=names, **how, **common)
    )


def grouped_allgather(
    tensors: Any,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
    rows: Sequence[Sequence[int] | None] | None = None,
) -> Any:
    """`allgather` of each array of a pytree, in one call; gradients flow back, in one exchange.

    Args:
        tensors: a list of arrays, or any other pytree of them, of the same structure on all ranks.
        name, process_set: see `allgather`.
        rows: for each array, in the order of `jax.tree_util.tree_leaves(tensors)`, what `allgather` calls so.

    Returns:
        A pytree of the same structure of new arrays.

    Raises:
        MismatchError: an array is another one on some rank (its place in the tree, dtype or shape but for the first
            dimension). The text names the first that is. Further: see `allgather`.
        UsageError: an array without dimensions, or `rows` of more or fewer arrays.
    """
    common = placed(name, process_set)

    def gather(arrays: Sequence[Any], names: tuple[str, ...]) -> Any:
        given = [None] * len(arrays) if rows is None else rows
        if len(given) != len(arrays):
            raise UsageError(f"grouped_allgather: rows has {len(given)} entries for {len(arrays)} arrays")
        return allgather_p.bind(*arrays, rows=tuple(map(known_rows, given)), names=names, **common)

    return _each(tensors, Compression.none, gather)


def grouped_reducescatter(
    tensors: Any,
    name: str | None = None,
    compression: Any = Compression.none,
    op: ReduceOp = Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> Any:
    """`reducescatter` of each array of a pytree, in one call; gradients flow back, in one call too.

    Args:
        tensors: a list of arrays, or any other pytree of them, of the same structure on all ranks.
        name, compression, op, process_set, prescale_factor, postscale_factor: see `reducescatter`.

    Returns:
        A pytree of the same structure of new arrays.

    Raises:
        MismatchError, UsageError: see `grouped_allreduce`.
    """
    common = placed(name, process_set)
    how = {"op": int(reduce_op(op, None)), "scale": (float(prescale_factor), float(postscale_factor))}
    return _each(
        tensors,
        compression,
        lambda arrays, names: reducescatter_p.bind(*arrays, names=names, **how, **common),
    )


def _each(tensors: Any, compression: Any, exchange: Callable[[Sequence[Any], tuple[str, ...]], Any]) -> Any:
    """The tree of what `exchange` makes of its arrays, which travel as the compression has it, and of their names."""
    check(compression)
    leaves, structure = jax.tree_util.tree_flatten_with_path(tensors)
    if not leaves:
        return tensors
    pairs = [compression.compress(array_of(leaf)) for _, leaf in leaves]
    results = exchange([narrow for narrow, _ in pairs], tuple(name_of(path) for path, _ in leaves))
    wide = [
        compression.decompress(result, context) for result, (_, context) in zip(results, pairs, strict=True)
    ]
    return jax.tree_util.tree_unflatten(structure, wide)


def name_of(path: Sequence[Any]) -> str:
    """Of a leaf, as one would write it: "['layer']['kernel']"."""
    return jax.tree_util.keystr(tuple(path)) or "the array"
