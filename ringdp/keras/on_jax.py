"""What JAX needs: the exchange inside and outside `jit`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import keras
import numpy as np
from jax.experimental import io_callback

from ringdp.errors import UsageError
from ringdp.keras import on_numpy
from ringdp.keras.exchange import Options


def dense(grad: Any, options: Options) -> Any:
    """JAX's gradients are dense."""
    return grad


def exchange(grads: Sequence[Any], options: Options, compression: str) -> list[Any]:
    """See `ringdp.keras.exchange.exchange`; no None among them. `compression`: none, fp16 or bf16."""
    shapes = [jax.ShapeDtypeStruct(grad.shape, grad.dtype) for grad in grads]
    return list(
        io_callback(
            lambda *arrays: on_numpy.exchange(arrays, options, compression), shapes, *grads, ordered=True
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
