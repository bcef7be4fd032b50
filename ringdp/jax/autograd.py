"""How `grad`, `jvp` and `vmap` go through the collectives (primitives.py).

As in Horovod, and in ringdp/torch/autograd.py, gradients that meet are averaged: an all-gather gives each rank the
average of all ranks' gradients for its own rows, a broadcast gives the root their average. An all-reduce reduces the
gradients as it did the arrays. Tangents go the way of what they belong to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching

from ringdp.constants import Average, ReduceOp, Sum
from ringdp.errors import UsageError
from ringdp.jax.primitives import (
    UNNAMED,
    allgather_p,
    allreduce_p,
    alltoall_p,
    barrier_p,
    broadcast_p,
    reducescatter_p,
    rows_of_ranks,
    scattered_rows,
)
from ringdp.process_sets import numbered


def _for_gradient(params: dict[str, Any]) -> dict[str, Any]:
    """The same, for the exchange of gradients or tangents."""
    name = params["name"]
    return params | {"name": name if name == UNNAMED or name.endswith(".gradient") else f"{name}.gradient"}


def _refuse_selection(params: dict[str, Any]) -> None:
    op = ReduceOp(params["op"]) if "op" in params else Sum
    if op not in (Average, Sum):
        raise UsageError(
            f"no gradient flows through {op.name}: use Average or Sum, or give jax.lax.stop_gradient(array)"
        )


def is_zero(tangent: Any) -> bool:
    return type(tangent) is ad.Zero


def zero_tangent(value: Any) -> Any:
    return ad.Zero(jax.typeof(value).to_tangent_aval())


# --- any number of arrays -------------------------------------------------------------------------


def _average(gradients: Sequence[Any], params: dict[str, Any]) -> list[Any]:
    common = {key: params[key] for key in ("name", "process_set", "rank", "ranks", "names")}
    return allreduce_p.bind(*gradients, op=int(Average), scale=(1.0, 1.0), **common)  # type: ignore[no-any-return]


def _linear_in_each(primitive: Primitive, transpose: Callable[..., Any], by_rows: bool = False) -> None:
    """Rules for a primitive of any number of arrays, each of which has a result of its own.

    Args:
        transpose: the gradients of the arrays, of those of the results, the arrays' avals and the parameters.
        by_rows: it goes by the first dimension of each array; otherwise results look as arrays do.
    """

    def some(at: Sequence[int], params: dict[str, Any]) -> dict[str, Any]:
        """For those alone that have a gradient, or a tangent."""
        of_each = {key: params[key] for key in ("names", "rows") if params.get(key)}
        return _for_gradient(params) | {key: tuple(all_[i] for i in at) for key, all_ in of_each.items()}

    def jvp(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> Any:
        results = primitive.bind(*primals, **params)
        at = [i for i, tangent in enumerate(tangents) if not is_zero(tangent)]
        out = [zero_tangent(result) for result in results]
        if at:
            _refuse_selection(params)
            moved = primitive.bind(*(tangents[i] for i in at), **some(at, params))
            for i, tangent in zip(at, moved, strict=True):
                out[i] = tangent
        return results, out

    def transposed(gradients: Sequence[Any], *arrays: Any, **params: Any) -> Any:
        out = [ad.Zero(a.aval) if ad.is_undefined_primal(a) else None for a in arrays]
        at = [i for i, gradient in enumerate(gradients) if out[i] is not None and not is_zero(gradient)]
        if at:
            avals = [arrays[i].aval for i in at]
            back = transpose([gradients[i] for i in at], avals, some(at, params))
            for i, gradient in zip(at, back, strict=True):
                out[i] = gradient
        return out

    def batched(arrays: Sequence[Any], axes: Sequence[Any], **params: Any) -> Any:
        if not by_rows:
            return primitive.bind(*arrays, **params), axes
        seconds = [None if axis is None else 1 for axis in axes]  # the first has the rows
        moved = [
            array if axis is None else jnp.moveaxis(array, axis, 1)
            for array, axis in zip(arrays, axes, strict=True)
        ]
        return primitive.bind(*moved, **params), seconds

    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transposed
    batching.primitive_batchers[primitive] = batched


def _allreduce_transpose(gradients: Sequence[Any], avals: Sequence[Any], params: dict[str, Any]) -> list[Any]:
    return allreduce_p.bind(*gradients, **params)  # type: ignore[no-any-return]


def _allgather_transpose(gradients: Sequence[Any], avals: Sequence[Any], params: dict[str, Any]) -> list[Any]:
    own = []
    for mean, aval, given in zip(_average(gradients, params), avals, params["rows"], strict=True):
        rows = rows_of_ranks(aval, given, params["ranks"], "allgather")
        begin = sum(rows[: params["rank"]])
        own.append(lax.slice_in_dim(mean, begin, begin + aval.shape[0]))
    return own


def _reducescatter_transpose(
    gradients: Sequence[Any], avals: Sequence[Any], params: dict[str, Any]
) -> list[Any]:
    before, after = params["scale"]
    factor = before * after / (params["ranks"] if ReduceOp(params["op"]) is Average else 1)
    common = {key: params[key] for key in ("name", "process_set", "rank", "ranks", "names")}
    rows = tuple(scattered_rows(aval.shape[0], params["ranks"]) for aval in avals)
    whole = allgather_p.bind(*gradients, rows=rows, **common)
    return [w if factor == 1 else w * jnp.asarray(factor, w.dtype) for w in whole]


def _broadcast_transpose(gradients: Sequence[Any], avals: Sequence[Any], params: dict[str, Any]) -> list[Any]:
    """Whether this is the root is a part of the program, as the others have zeros."""
    members = numbered(params["process_set"])
    rank = members.rank() or 0
    means = _average(gradients, params | {"rank": rank, "ranks": members.size()})
    return means if rank == params["root"] else [jnp.zeros_like(mean) for mean in means]


_linear_in_each(allreduce_p, _allreduce_transpose)
_linear_in_each(broadcast_p, _broadcast_transpose)
_linear_in_each(allgather_p, _allgather_transpose, by_rows=True)
_linear_in_each(reducescatter_p, _reducescatter_transpose, by_rows=True)


# --- all-to-all: one array, and beside its rows their numbers --------------------------------------


def _alltoall_jvp(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> Any:
    results = alltoall_p.bind(*primals, **params)
    moved = zero_tangent(results[0])
    if not is_zero(tangents[0]):
        moved, _ = alltoall_p.bind(*tangents, **_for_gradient(params))
    return results, [moved, zero_tangent(results[1])]


def _alltoall_transpose(gradients: Sequence[Any], array: Any, **params: Any) -> Any:
    if is_zero(gradients[0]):
        return [ad.Zero(array.aval)]
    back = _for_gradient(params) | {"splits": params["received"], "received": params["splits"]}
    return [alltoall_p.bind(gradients[0], **back)[0]]


def _alltoall_batched(arrays: Sequence[Any], axes: Sequence[Any], **params: Any) -> Any:
    return alltoall_p.bind(jnp.moveaxis(arrays[0], axes[0], 1), **params), [1, None]


ad.primitive_jvps[alltoall_p] = _alltoall_jvp
ad.primitive_transposes[alltoall_p] = _alltoall_transpose
batching.primitive_batchers[alltoall_p] = _alltoall_batched

# --- barrier --------------------------------------------------------------------------------------

batching.primitive_batchers[barrier_p] = lambda _, axes, **params: (barrier_p.bind(**params), axes)
