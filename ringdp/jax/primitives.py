"""The collectives as primitives of JAX: what they return (`…_shape`), what they do outside of `jit` (`…_now`), and what
they become in a compiled program: a call of the core (csrc/xla/handlers.cc).

A compiled program holds the operation's name, its options and the number of a process set. What its shapes depend on
besides, the number of ranks and this rank's own, it is compiled for: it is refused where that has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import mlir

from ringdp import _core, world
from ringdp.constants import OpKind, ReduceOp
from ringdp.errors import MismatchError, UsageError
from ringdp.jax.adapter import adapter, operations, to_jax
from ringdp.jax.order import EFFECT, in_order
from ringdp.process_sets import numbered

ANY = -1  # rank or ranks: the program does not depend on it
UNNAMED = "jax"  # collectives run one at a time, in one order: so all may have one name


def register_targets() -> None:
    """Make the core's handlers known to XLA.

    Raises:
        ImportError: this release of JAX has another interface.
    """
    for name, capsule in _core.xla_targets().items():
        try:
            jax.ffi.register_ffi_target(name, capsule, platform="cpu")
        except Exception as error:  # of XLA, whatever it is
            raise ImportError(
                f"JAX {jax.__version__} does not take what ringdp gives it to call: {error}"
            ) from error


def primitive(name: str, shape: Callable[..., Any], now: Callable[..., Any], attributes: Any) -> Primitive:
    """One collective.

    Args:
        shape: avals of the results, of those of the operands and the parameters.
        now: the results, of arrays that have values.
        attributes: what the core is told, of the avals of the operands and the parameters.
    """
    made = Primitive(f"ringdp_{name}")
    made.multiple_results = True
    made.def_impl(now)
    made.def_effectful_abstract_eval(lambda *avals, **params: (shape(*avals, **params), {EFFECT}))
    call = jax.ffi.ffi_lowering(made.name, has_side_effect=True)

    def lowering(context: Any, *operands: Any, **params: Any) -> Any:
        avals = context.avals_in[:-1]
        common = {key: np.int64(params[key]) for key in ("process_set", "rank", "ranks")}
        return call(context, *operands, name=params["name"], **common, **attributes(*avals, **params))

    mlir.register_lowering(made, in_order(lowering), platform="cpu")
    mlir.register_lowering(made, _refuse_platform)
    return made


def _refuse_platform(context: Any, *_: Any, **__: Any) -> Any:
    platforms = ", ".join(context.module_context.platforms)
    raise NotImplementedError(
        f"ringdp exchanges arrays of JAX on the CPU only, and this function is compiled for {platforms}: use "
        "jax.jit(…, device=jax.devices('cpu')[0]) or JAX_PLATFORMS=cpu"
    )


def own_name(name: str) -> str | None:
    """That which the caller gave."""
    return None if name == UNNAMED else name


def integers(values: Sequence[int]) -> Any:
    return np.array(values, np.int64)


def with_first(aval: Any, rows: int) -> Any:
    """`aval` with another first dimension."""
    return ShapedArray((rows, *aval.shape[1:]), aval.dtype)


def refuse_scalar(what: str, aval: Any) -> None:
    if not aval.shape:
        raise UsageError(f"rank {world.rank()}: {what}: the tensor needs at least one dimension")


def layout_of(avals: Sequence[Any], names: Sequence[str], what: str = "") -> str:
    """What the ranks compare of a group: a line for each array. Empty for one that stands alone, without a name."""
    lines = []
    for name, aval in zip(names, avals, strict=bool(names)):
        lengths = [str(n) for n in aval.shape]
        if what == "allgather":
            lengths[:1] = ["any"]
        lines.append(f"{name}: {what and what + ' of '}{aval.dtype.name}[{', '.join(lengths)}]")
    return "\n".join(lines)


# --- all-reduce and broadcast: of one array, or of many as one -------------------------------------


def _same_shapes(*avals: Any, **_: Any) -> Any:
    return [ShapedArray(aval.shape, aval.dtype) for aval in avals]


def _flat_now(kind: OpKind, arrays: Sequence[Any], names: Sequence[str], how: Sequence[Any]) -> list[Any]:
    """Of many arrays. `how`: name, process set, op, prescale, postscale, root."""
    name, process_set, *others = how
    sources = [adapter.source(array) for array in arrays]
    results = [adapter.empty_like(source) for source in sources]
    inputs = [adapter.describe(source) for source in sources]
    outputs = [adapter.describe(result)[0] for result in results]
    layout = layout_of(sources, names)
    engine = world.current().engine
    _core.exchange_flat(
        engine, int(kind), own_name(name) or "", process_set, inputs, outputs, layout, *others
    )
    return [to_jax(result, array) for result, array in zip(results, arrays, strict=True)]


def _allreduce_now(
    *arrays: Any,
    name: str,
    process_set: int,
    op: int,
    scale: tuple[float, float],
    names: tuple[str, ...],
    **_: Any,
) -> list[Any]:
    if names:
        return _flat_now(OpKind.allreduce, arrays, names, (name, process_set, op, *scale, -1))
    (array,) = arrays
    how = ReduceOp(op), *scale, numbered(process_set)
    return [to_jax(operations.allreduce(array, None, own_name(name), *how), array)]


def _allreduce_attributes(
    *avals: Any, op: int, scale: tuple[float, float], names: tuple[str, ...], **_: Any
) -> Any:
    return {**reduction(op, scale), "layout": layout_of(avals, names)}


def _broadcast_now(
    *arrays: Any, name: str, process_set: int, root: int, names: tuple[str, ...], **_: Any
) -> list[Any]:
    if names:
        return _flat_now(
            OpKind.broadcast, arrays, names, (name, process_set, int(ReduceOp.Sum), 1.0, 1.0, root)
        )
    (array,) = arrays
    members = numbered(process_set)
    root_rank = root if process_set == 0 else (members.ranks or [])[root]
    return [to_jax(operations.broadcast(array, root_rank, own_name(name), members), array)]


def _broadcast_attributes(*avals: Any, root: int, names: tuple[str, ...], **_: Any) -> Any:
    return {"root": np.int64(root), "layout": layout_of(avals, names)}


def reduction(op: int, scale: tuple[float, float]) -> dict[str, Any]:
    before, after = scale
    return {"op": np.int64(op), "prescale": np.float64(before), "postscale": np.float64(after)}


# --- all-gather and reduce-scatter: of one array, or of many by themselves in one call ------------

Rows = tuple[int, ...] | None  # of one array on each rank; None: as many as here, or not known


def _group_now(requests: Sequence[Any], name: str, process_set: int, layout: str) -> list[Any]:
    """The first alone, as csrc/xla/group.cc does it, and says why."""
    how = own_name(name), numbered(process_set), layout
    first, *others = requests
    results = operations.submit_group([first], *how).wait()
    return results + (operations.submit_group(others, *how).wait() if others else [])


def rows_of_ranks(aval: Any, rows: Rows, ranks: int, what: str) -> tuple[int, ...]:
    """Those that the program is compiled for: as given, or as many on all ranks."""
    refuse_scalar(what, aval)
    if rows is None:
        return (aval.shape[0],) * ranks
    if len(rows) != ranks:
        raise UsageError(f"rank {world.rank()}: {what}: rows has {len(rows)} entries for {ranks} ranks")
    return rows


def _allgather_shape(*avals: Any, rows: tuple[Rows, ...], ranks: int, rank: int, **_: Any) -> Any:
    shapes = []
    for aval, given in zip(avals, rows, strict=True):
        of_ranks = rows_of_ranks(aval, given, ranks, "allgather")
        if aval.shape[0] != of_ranks[rank]:
            raise UsageError(
                f"rank {world.rank()}: allgather: the tensor has {aval.shape[0]} rows, and rows says {of_ranks[rank]}"
            )
        shapes.append(with_first(aval, sum(of_ranks)))
    return shapes


def _allgather_now(
    *arrays: Any, name: str, process_set: int, rows: tuple[Rows, ...], names: tuple[str, ...], **_: Any
) -> list[Any]:
    if names:
        requests = [operations.requests.allgather(array) for array in arrays]
        results = _group_now(requests, name, process_set, layout_of(arrays, names, "allgather"))
    else:
        results = [operations.allgather(arrays[0], own_name(name), numbered(process_set))]
    for result, given in zip(results, rows, strict=True):
        if given is not None and len(result) != sum(given):
            raise MismatchError(
                f"rank {world.rank()}: allgather: rows {list(given)} were announced, and {len(result)} have come "
                "together"
            )
    return [to_jax(result, array) for result, array in zip(results, arrays, strict=True)]


def _allgather_attributes(
    *avals: Any, rows: tuple[Rows, ...], ranks: int, names: tuple[str, ...], **_: Any
) -> dict[str, Any]:
    of_ranks = [
        n
        for aval, given in zip(avals, rows, strict=True)
        for n in rows_of_ranks(aval, given, ranks, "allgather")
    ]
    return {"rows": integers(of_ranks), "layout": layout_of(avals, names, "allgather")}


def scattered_rows(rows: int, ranks: int) -> tuple[int, ...]:
    """Of each rank: the first have one more where they do not divide evenly."""
    return tuple(rows // ranks + (rank < rows % ranks) for rank in range(ranks))


def _reducescatter_shape(*avals: Any, ranks: int, rank: int, **_: Any) -> Any:
    for aval in avals:
        refuse_scalar("reducescatter", aval)
    return [with_first(aval, scattered_rows(aval.shape[0], ranks)[rank]) for aval in avals]


def _reducescatter_now(
    *arrays: Any,
    name: str,
    process_set: int,
    op: int,
    scale: tuple[float, float],
    names: tuple[str, ...],
    **_: Any,
) -> list[Any]:
    members = numbered(process_set)
    if names:
        how = ReduceOp(op), scale, members
        requests = [operations.requests.reducescatter(array, *how) for array in arrays]
        results = _group_now(requests, name, process_set, layout_of(arrays, names, "reducescatter"))
    else:
        results = [operations.reducescatter(arrays[0], own_name(name), ReduceOp(op), members, *scale)]
    return [to_jax(result, array) for result, array in zip(results, arrays, strict=True)]


def _reducescatter_attributes(
    *avals: Any, op: int, scale: tuple[float, float], names: tuple[str, ...], **_: Any
) -> dict[str, Any]:
    return {**reduction(op, scale), "layout": layout_of(avals, names, "reducescatter")}


# --- all-to-all: the rows, and how many have come from each rank -----------------------------------


def _alltoall_shape(
    aval: Any, *, splits: tuple[int, ...], received: tuple[int, ...] | None, ranks: int, **_: Any
) -> Any:
    refuse_scalar("alltoall", aval)
    if received is None:
        raise UsageError(
            f"rank {world.rank()}: alltoall: in a compiled program splits need received_splits=, the rows that come "
            "from each rank: the result's shape must be known before"
        )
    if len(splits) != ranks or len(received) != ranks or sum(splits) != aval.shape[0]:
        raise UsageError(
            f"rank {world.rank()}: alltoall: splits {list(splits)} and received_splits {list(received)} do not fit "
            f"{aval.shape[0]} rows and {ranks} ranks"
        )
    return [with_first(aval, sum(received)), ShapedArray((ranks,), np.dtype(np.int32))]


def _alltoall_now(
    array: Any, *, name: str, process_set: int, splits: tuple[int, ...], received: Any, **_: Any
) -> list[Any]:
    result, rows = operations.alltoall(array, splits, own_name(name), numbered(process_set))
    if received is not None and tuple(rows.tolist()) != received:
        raise MismatchError(
            f"rank {world.rank()}: alltoall: rows {rows.tolist()} have come from the ranks, and received_splits says "
            f"{list(received)}"
        )
    return [to_jax(result, array), to_jax(rows.astype(np.int32), array)]


def _alltoall_attributes(_: Any, *, splits: Any, received: Any, **__: Any) -> dict[str, Any]:
    return {"splits": integers(splits), "received": integers(received)}


# --- barrier --------------------------------------------------------------------------------------


def _barrier_now(*, process_set: int, **_: Any) -> list[Any]:
    operations.barrier(numbered(process_set))
    return []


register_targets()
allreduce_p = primitive("allreduce", _same_shapes, _allreduce_now, _allreduce_attributes)
allgather_p = primitive("allgather", _allgather_shape, _allgather_now, _allgather_attributes)
broadcast_p = primitive("broadcast", _same_shapes, _broadcast_now, _broadcast_attributes)
alltoall_p = primitive("alltoall", _alltoall_shape, _alltoall_now, _alltoall_attributes)
reducescatter_p = primitive(
    "reducescatter", _reducescatter_shape, _reducescatter_now, _reducescatter_attributes
)
barrier_p = primitive("barrier", lambda **_: [], _barrier_now, lambda **_: {})
