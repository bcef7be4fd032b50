"""What JAX needs: the exchange inside and outside `jit`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import keras
import numpy as np

from ringdp.constants import Adasum
from ringdp.errors import UsageError
from ringdp.jax.compression import Compression
from ringdp.jax.exchange import allreduce_gradients
from ringdp.jax.ops import allreduce
from ringdp.keras.exchange import Options


def dense(grad: Any, options: Options) -> Any:
    """JAX's gradients are dense."""
    return grad


def exchange(grads: Sequence[Any], options: Options, compression: str) -> list[Any]:
    """See `ringdp.keras.exchange.exchange`; no None among them. `compression`: none, fp16 or bf16."""
    how = {"compression": getattr(Compression, compression), "process_set": options.process_set}
    if options.op is Adasum:  # looks at each tensor by itself
        return [allreduce(grad, op=Adasum, name=f"{options.name}.{i}", **how) for i, grad in enumerate(grads)]
    return list(
        allreduce_gradients(
            list(grads),
            options.op,
            name=options.name,
            gradient_predivide_factor=options.predivide,
            **how,
        )
    )


def either(
    predicate: Any,
    true: Callable[[list[Any]], None],
    false: Callable[[list[Any]], None],
    grads: list[Any],
    written: Sequence[Any],
) -> None:
    """One of the two, which write variables, `written` among them; the other does not run."""

    def pure(branch: Callable[[list[Any]], None]) -> Callable[[list[Any], list[Any]], list[Any]]:
        def run(values: list[Any], grads: list[Any]) -> list[Any]:
            with keras.StatelessScope(zip(written, values, strict=True)) as scope:
                branch(grads)
            return [scope.get_current_value(variable) for variable in written]

        return run

    values = jax.lax.cond(predicate, pure(true), pure(false), [v.value for v in written], grads)
    for variable, value in zip(written, values, strict=True):
        variable.assign(value)


def to_numpy(tensor: Any) -> Any:
    """The values of a tensor."""
    if isinstance(tensor, jax.core.Tracer):
        raise UsageError("in jit, use the operations of ringdp.jax: those of ringdp.keras are eager")
    return np.asarray(tensor)
