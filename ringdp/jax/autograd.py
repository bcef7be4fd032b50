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


# --- one array ------------------------------------------------------------------------------------


def _linear(primitive: Primitive, transpose: Callable[..., Any]) -> None:
    """Rules for a primitive of one array, which goes by its first dimension.

    Args:
        transpose: the gradient of the array, of that of the result, the array's aval and the parameters.
    """

    def jvp(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> Any:
        results = primitive.bind(*primals, **params)
        (tangent,) = tangents
        if is_zero(tangent):
            return results, [zero_tangent(result) for result in results]
        _refuse_selection(params)
        out, *_ = primitive.bind(tangent, **_for_gradient(params))
        return results, [out, *(zero_tangent(result) for result in results[1:])]

    def transposed(gradients: Sequence[Any], array: Any, **params: Any) -> Any:
        if is_zero(gradients[0]):
            return [ad.Zero(array.aval)]
        return [transpose(gradients[0], array.aval, _for_gradient(params))]

    def batched(arrays: Sequence[Any], axes: Sequence[Any], **params: Any) -> Any:
        (array,), (axis,) = arrays, axes
        out, *others = primitive.bind(jnp.moveaxis(array, axis, 1), **params)
        return [out, *others], [1, *(None for _ in others)]

    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transposed
    batching.primitive_batchers[primitive] = batched


def _allgather_transpose(gradient: Any, aval: Any, params: dict[str, Any]) -> Any:
    rows = rows_of_ranks(aval, params["rows"], params["ranks"], "allgather")
    begin = sum(rows[: params["rank"]])
    (mean,) = _average([gradient], params)
    return lax.slice_in_dim(mean, begin, begin + aval.shape[0])


def _alltoall_transpose(gradient: Any, aval: Any, params: dict[str, Any]) -> Any:
    back = params | {"splits": params["received"], "received": params["splits"]}
    return alltoall_p.bind(gradient, **back)[0]


def _reducescatter_transpose(gradient: Any, aval: Any, params: dict[str, Any]) -> Any:
    before, after = params["scale"]
    factor = before * after / (params["ranks"] if ReduceOp(params["op"]) is Average else 1)
    common = {key: params[key] for key in ("name", "process_set", "rank", "ranks")}
    rows = scattered_rows(aval.shape[0], params["ranks"])
    (whole,) = allgather_p.bind(gradient, rows=rows, **common)
    return whole if factor == 1 else whole * jnp.asarray(factor, whole.dtype)


_linear(allgather_p, _allgather_transpose)
_linear(alltoall_p, _alltoall_transpose)
_linear(reducescatter_p, _reducescatter_transpose)


# --- any number of arrays -------------------------------------------------------------------------


def _average(gradients: Sequence[Any], params: dict[str, Any], names: tuple[str, ...] = ()) -> list[Any]:
    common = {key: params[key] for key in ("name", "process_set", "rank", "ranks")}
    return allreduce_p.bind(*gradients, names=names, op=int(Average), scale=(1.0, 1.0), **common)  # type: ignore[no-any-return]


def _linear_in_each(primitive: Primitive, transpose: Callable[..., Any]) -> None:
    """Rules for a primitive of any number of arrays, whose results look as they do.

    Args:
        transpose: the gradients of the arrays, of those of the results and the parameters.
    """

    def some(at: Sequence[int], params: dict[str, Any]) -> dict[str, Any]:
        """For those alone that have a gradient, or a tangent."""
        names = tuple(params["names"][i] for i in at) if params["names"] else ()
        return _for_gradient(params) | {"names": names}

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
            for i, gradient in zip(at, transpose([gradients[i] for i in at], some(at, params)), strict=True):
                out[i] = gradient
        return out

    def batched(arrays: Sequence[Any], axes: Sequence[Any], **params: Any) -> Any:
        return primitive.bind(*arrays, **params), axes

    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transposed
    batching.primitive_batchers[primitive] = batched


def _broadcast_transpose(gradients: Sequence[Any], params: dict[str, Any]) -> list[Any]:
    """Whether this is the root is a part of the program, as the others have zeros."""
    members = numbered(params["process_set"])
    rank = members.rank() or 0
    means = _average(gradients, params | {"rank": rank, "ranks": members.size()}, params["names"])
    return means if rank == params["root"] else [jnp.zeros_like(mean) for mean in means]


_linear_in_each(allreduce_p, lambda gradients, params: allreduce_p.bind(*gradients, **params))
_linear_in_each(broadcast_p, _broadcast_transpose)
batching.primitive_batchers[barrier_p] = lambda _, axes, **params: (barrier_p.bind(**params), axes)
