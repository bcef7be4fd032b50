"""The collective operations on arrays of JAX, outside of `jit` and inside it.

Outside, an operation exchanges the arrays at once and raises ringdp's own errors. Inside `jit`, `scan`, `cond` and
`while_loop` it becomes a part of the compiled program, which runs its collectives one after another, in the order in
which they were traced. `grad`, `jvp` and `vmap` go through both (autograd.py). What fails in a compiled program is a
JaxRuntimeError of JAX with our text, "ringdp.MismatchError: rank 0: …"; `own_errors` gives back our classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from ringdp import world
from ringdp.constants import Average, ReduceOp
from ringdp.jax import autograd  # noqa: F401
from ringdp.jax.adapter import array_of, in_place
from ringdp.jax.compression import Compression, check
from ringdp.jax.primitives import (
    ANY,
    UNNAMED,
    allgather_p,
    allreduce_p,
    alltoall_p,
    barrier_p,
    broadcast_p,
    reducescatter_p,
    refuse_scalar,
)
from ringdp.process_sets import ProcessSet, global_process_set
from ringdp.requests import number_of, reduce_op, splits_of, usable


def options(name: str | None, process_set: ProcessSet) -> dict[str, Any]:
    """What all primitives are told, where nothing else depends on the ranks."""
    world.current()
    if name is not None and not isinstance(name, str):
        raise TypeError(f"the name of an operation must be a str, not {name!r}")
    return {"name": name or UNNAMED, "process_set": usable(process_set), "rank": ANY, "ranks": ANY}


def placed(name: str | None, process_set: ProcessSet) -> dict[str, Any]:
    """The same, where shapes depend on the ranks."""
    place = {"rank": process_set.rank() or 0, "ranks": process_set.size()}
    return options(name, process_set) | place


def known_rows(rows: Sequence[int] | None) -> tuple[int, ...] | None:
    """As a part of a program."""
    return None if rows is None else tuple(int(n) for n in rows)


def allreduce(
    tensor: Any,
    average: bool | None = None,
    name: str | None = None,
    compression: Any = Compression.none,
    op: ReduceOp | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> jax.Array:
    """Combine the arrays of all ranks element by element; every rank gets the same bits.

    Args:
        tensor: any shape, the same on all ranks; an array of JAX, or what `jax.numpy.asarray` takes. Gradients flow
            back (Average and Sum only): they are reduced in the same way.
        average: older form of `op`: True is Average, False is Sum.
        name: operations of the same name meet; default: by their order.
        compression: `Compression.none`, `.fp16` or `.bf16`, or an object with the same two methods.
        op: Average (default), Sum, Min, Max, Product or Adasum.
        prescale_factor: multiplies the input first.
        postscale_factor: multiplies the result.
        process_set: the ranks that take part.

    Returns:
        A new array of the same shape and dtype.

    Raises:
        MismatchError: shape, dtype, op or factors differ between ranks (in compiled programs: see above).
        TypeError: an array on a GPU or on several devices, or a dtype that ringdp does not know.
        UsageError, DuplicateNameError, DeadlineError, PeerError, TransportError, NotInitializedError.
    """
    narrow, context = check(compression).compress(array_of(tensor))
    how = {"op": int(reduce_op(op, average)), "scale": (float(prescale_factor), float(postscale_factor))}
    (result,) = allreduce_p.bind(narrow, names=(), **how, **options(name, process_set))
    return compression.decompress(result, context)  # type: ignore[no-any-return]


def allgather(
    tensor: Any,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
    rows: Sequence[int] | None = None,
) -> jax.Array:
    """Concatenate the arrays of all ranks along the first dimension, in rank order.

    Args:
        tensor: at least one dimension; the first may differ between ranks, the others not. Gradients flow back: each
            rank gets the average of all ranks' gradients for its own rows.
        name, process_set: see `allreduce`.
        rows: the first dimension of each rank's array. Needed where it differs between ranks and JAX must know the
            result's shape before: in `jit`, and for gradients.

    Returns:
        A new array, shape (sum of the first dimensions, …), the same on all ranks.

    Raises:
        MismatchError: more or fewer rows have come than was known before. Further: see `allreduce`.
    """
    array = array_of(tensor)
    refuse_scalar("allgather", array)
    (result,) = allgather_p.bind(array, rows=(known_rows(rows),), names=(), **placed(name, process_set))
    return result  # type: ignore[no-any-return]


def broadcast(
    tensor: Any, root_rank: int, name: str | None = None, process_set: ProcessSet = global_process_set
) -> jax.Array:
    """Give every rank the array of `root_rank`. Shapes and dtypes must agree on all ranks.

    Gradients flow back: the root gets the average of all ranks' gradients, the others zeros.

    Raises:
        UsageError: `root_rank` is none of the ranks. Further: see `allreduce`.
    """
    array = array_of(tensor)
    common = options(name, process_set)
    (result,) = broadcast_p.bind(array, names=(), root=number_of(int(root_rank), process_set), **common)
    return result  # type: ignore[no-any-return]


def alltoall(
    tensor: Any,
    splits: Any = None,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
    received_splits: Sequence[int] | None = None,
) -> Any:
    """Send part i of `tensor` (along the first dimension) to rank i, and get one part from every rank.

    Args:
        tensor: at least one dimension; the first may differ between ranks. Gradients go back the way the rows came.
        splits: rows for each rank, adding up to the first dimension; default: equal parts.
        name, process_set: see `allreduce`.
        received_splits: the rows that come from each rank. Needed, with `splits`, where JAX must know the result's
            shape before: in `jit`, and for gradients.

    Returns:
        The received parts in rank order, concatenated; with `splits` a pair of that and the rows received from each
        rank (int32).

    Raises:
        MismatchError: other rows have come than `received_splits` says. Further: see `allreduce`.
    """
    array = array_of(tensor)
    refuse_scalar("alltoall", array)
    rows = tuple(splits_of(splits, array.shape[0], process_set.size()))
    received = rows if splits is None else received_splits
    common = placed(name, process_set)
    result, came = alltoall_p.bind(array, splits=rows, received=known_rows(received), **common)
    return result if splits is None else (result, came)


def reducescatter(
    tensor: Any,
    name: str | None = None,
    compression: Any = Compression.none,
    op: ReduceOp = Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> jax.Array:
    """Combine the arrays of all ranks, and give rank i the i-th part of the result (along the first dimension).

    The first dimension need not divide evenly: the first ranks get one row more. Gradients flow back (Average and Sum
    only): each rank's rows of the gradient go to all.

    Returns:
        A new array, shape (this rank's rows, …).

    Raises:
        See `allreduce`.
    """
    narrow, context = check(compression).compress(array_of(tensor))
    refuse_scalar("reducescatter", narrow)
    how = {"op": int(reduce_op(op, None)), "scale": (float(prescale_factor), float(postscale_factor))}
    (result,) = reducescatter_p.bind(narrow, names=(), **how, **placed(name, process_set))
    return compression.decompress(result, context)  # type: ignore[no-any-return]


def barrier(process_set: ProcessSet = global_process_set) -> None:
    """Wait until all ranks have come here. In a compiled program: between the collectives before and behind it."""
    barrier_p.bind(**options("barrier", process_set))


allreduce_ = in_place("allreduce_")
broadcast_ = in_place("broadcast_")
