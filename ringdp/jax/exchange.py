"""The exchange of a step's gradients: all of them in one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from ringdp.constants import Average, ReduceOp
from ringdp.errors import UsageError
from ringdp.jax.compression import Compression
from ringdp.jax.grouped import grouped_allreduce
from ringdp.process_sets import ProcessSet, global_process_set
from ringdp.requests import reduce_op


def allreduce_gradients(
    gradients: Any,
    op: ReduceOp = Average,
    compression: Any = Compression.none,
    process_set: ProcessSet = global_process_set,
    name: str | None = None,
    gradient_predivide_factor: float = 1.0,
) -> Any:
    """Combine the gradients of all ranks, in one exchange: inside `jit` or outside of it.

    Args:
        gradients: a pytree of arrays, of the same structure on all ranks.
        op: Average (default), Sum, Min, Max or Product.
        compression: `Compression.none`, `.fp16` or `.bf16`, or an object with the same two methods.
        process_set: the ranks that take part.
        name: of the exchange; default: exchanges meet by their order.
        gradient_predivide_factor: with Average alone: so much of the division comes before the sum.

    Returns:
        A pytree of the same structure. All ranks have the same bits.

    Raises:
        MismatchError: the ranks have different gradients; the text names the first. Further: see `allreduce`.
        UsageError: gradient_predivide_factor without Average, or not positive.
    """
    factor = float(gradient_predivide_factor)
    if not factor > 0:
        raise UsageError(f"gradient_predivide_factor must be positive, not {gradient_predivide_factor!r}")
    if factor != 1 and reduce_op(op, None) is not Average:
        raise UsageError("gradient_predivide_factor needs op=Average")
    return grouped_allreduce(gradients, None, name, compression, op, 1 / factor, factor, process_set)


def value_and_grad(
    fun: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    op: ReduceOp = Average,
    compression: Any = Compression.none,
    process_set: ProcessSet = global_process_set,
) -> Callable[..., Any]:
    """`jax.value_and_grad`, with the gradients of all ranks combined, in one exchange. The value stays this rank's own
    (`average_metrics` averages it), and so does what `has_aux` brings.

    Args:
        fun, argnums, has_aux: see `jax.value_and_grad`.
        op, compression, process_set: see `allreduce_gradients`.
    """
    local = jax.value_and_grad(fun, argnums, has_aux)

    def reduced(*args: Any, **kwargs: Any) -> Any:
        value, gradients = local(*args, **kwargs)
        return value, allreduce_gradients(gradients, op, compression, process_set)

    return reduced
