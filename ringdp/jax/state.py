"""State from one rank to all: pytrees of arrays, and any other objects."""

from __future__ import annotations

from typing import Any

import jax

from ringdp.jax.adapter import array_of
from ringdp.jax.grouped import name_of
from ringdp.jax.ops import options
from ringdp.jax.primitives import broadcast_p
from ringdp.process_sets import ProcessSet, global_process_set
from ringdp.requests import number_of
from ringdp.state import allgather_object, broadcast_object

WHAT = "broadcast_parameters"


def broadcast_parameters(
    params: Any,
    root_rank: int = 0,
    prefix: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Any:
    """Give every rank the arrays of `root_rank`: `params = broadcast_parameters(params)`. The state of an optimizer of
    optax is such a tree as well.

    Args:
        params: any pytree of arrays and numbers, of the same structure on all ranks.
        root_rank: whose.
        prefix: before the names on the wire.
        process_set: the ranks that take part.

    Returns:
        A pytree of the same structure of new arrays. Leaves that are no arrays or numbers, such as functions, stay.

    Raises:
        MismatchError: an array is another one on some rank (its place in the tree, dtype or shape), or there are more
            of them; the text names it.
        TypeError, UsageError: see `broadcast`.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    root = number_of(int(root_rank), process_set)
    what = f"{prefix}.{WHAT}" if prefix else WHAT
    common = options(what, process_set)
    named = [(name_of(path), array_of(leaf)) for path, leaf in leaves if _has_value(leaf)]
    if not named:
        return params
    names, arrays = zip(*named, strict=True)
    results = iter(broadcast_p.bind(*arrays, names=names, root=root, **common))
    received = [next(results) if _has_value(leaf) else leaf for _, leaf in leaves]
    return jax.tree_util.tree_unflatten(structure, received)


def _has_value(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") or isinstance(leaf, (bool, int, float))


__all__ = ["allgather_object", "broadcast_object", "broadcast_parameters"]
