"""An optimizer of optax that sees the gradients of all ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ringdp.constants import Average, ReduceOp
from ringdp.jax.compression import Compression, check
from ringdp.jax.exchange import allreduce_gradients
from ringdp.process_sets import ProcessSet, global_process_set
from ringdp.requests import reduce_op

if TYPE_CHECKING:
    import optax


def distributed(
    optimizer: optax.GradientTransformation,
    op: ReduceOp = Average,
    compression: Any = Compression.none,
    process_set: ProcessSet = global_process_set,
    name: str | None = None,
    gradient_predivide_factor: float = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """`optimizer`, whose `update` first combines the gradients of all ranks, in one exchange: inside `jit` or outside.

    Its state is that of `optimizer`. To exchange the gradients of several batches at once, put it into
    `optax.MultiSteps(distributed(optimizer), every_k_schedule=k)`; what must see the gradients of all ranks, such as
    `optax.clip_by_global_norm`, goes into `optimizer`.

    Args:
        optimizer: of optax.
        op, compression, process_set, name, gradient_predivide_factor: see `allreduce_gradients`.

    Raises:
        ImportError: optax is not installed.
        UsageError: no operation, or no compression.
    """
    import optax

    op = reduce_op(op, None)
    check(compression)
    inner = optax.with_extra_args_support(optimizer)

    def update(gradients: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        reduced = allreduce_gradients(
            gradients, op, compression, process_set, name, gradient_predivide_factor
        )
        return inner.update(reduced, state, params, **extra)  # type: ignore[no-any-return]

    return optax.GradientTransformationExtraArgs(inner.init, update)
