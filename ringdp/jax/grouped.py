"""Many arrays in one exchange: any pytree of them. They are packed by dtype, one behind the other, in memory that the
ranks of a host share, and reduced as one (csrc/xla/flat.cc): all of them or, where ranks differ, none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from ringdp.constants import ReduceOp
from ringdp.errors import UsageError
from ringdp.jax.adapter import array_of
from ringdp.jax.compression import Compression, check
from ringdp.jax.ops import options
from ringdp.jax.primitives import allreduce_p
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
    check(compression)
    chosen = reduce_op(op, average)
    leaves, structure = jax.tree_util.tree_flatten_with_path(tensors)
    common = options(name, process_set)
    if chosen is ReduceOp.Adasum:
        raise UsageError(
            "grouped_allreduce: Adasum looks at each array by itself: use allreduce(array, op=Adasum)"
        )
    if not leaves:
        return tensors
    names = tuple(name_of(path) for path, _ in leaves)
    pairs = [compression.compress(array_of(leaf)) for _, leaf in leaves]
    reduced = allreduce_p.bind(
        *(narrow for narrow, _ in pairs),
        names=names,
        op=int(chosen),
        scale=(float(prescale_factor), float(postscale_factor)),
        **common,
    )
    results = [
        compression.decompress(result, context) for result, (_, context) in zip(reduced, pairs, strict=True)
    ]
    return jax.tree_util.tree_unflatten(structure, results)


def name_of(path: Sequence[Any]) -> str:
    """Of a leaf, as one would write it: "['layer']['kernel']"."""
    return jax.tree_util.keystr(tuple(path)) or "the array"
