"""The exchange of a step's gradients, on whichever backend Keras runs: one flat exchange, however many variables.

What is sent and in which order is settled when the step is traced, so no order of execution in a graph can make ranks
wait for each other. Each backend's own exchange is one function, in `on_tensorflow.py`, `on_jax.py` and `on_torch.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import keras

from ringdp.constants import Average, ReduceOp
from ringdp.errors import UsageError
from ringdp.keras.compression import NAMES
from ringdp.process_sets import ProcessSet

BACKENDS = ("tensorflow", "jax", "torch")


@dataclass(frozen=True)
class Options:
    """How gradients are exchanged."""

    name: str  # of the exchange, on all ranks
    compression: Any
    sparse_as_dense: bool
    predivide: float
    op: ReduceOp
    average_passes: bool  # of several backward passes
    process_set: ProcessSet
    scale_local_gradients: bool

    @property
    def scale(self) -> tuple[float, float]:
        """Before and after the reduction."""
        return 1 / self.predivide, self.predivide

    def divisor_of_local(self) -> int:
        """What a gradient that is not exchanged is divided by."""
        return self.process_set.size() if self.scale_local_gradients and self.op is Average else 1


def backend() -> Any:
    """The module of the backend that Keras uses.

    Raises:
        UsageError: a backend that ringdp does not know.
    """
    name = keras.backend.backend()
    if name not in BACKENDS:
        raise UsageError(
            f"ringdp.keras works on the backends {', '.join(BACKENDS)}; Keras runs on '{name}' (KERAS_BACKEND)"
        )
    return import_module(f"ringdp.keras.on_{name}")


def exchange(grads: Sequence[Any], options: Options) -> list[Any]:
    """The gradients, combined over the ranks of the process set. None stays None; a call inside a graph adds to it.

    Raises:
        MismatchError: number, shapes, dtypes or options differ between ranks; on every rank, when the step runs.
    """
    if options.process_set.size() == 1:
        return list(grads)
    on = backend()
    there = [i for i, grad in enumerate(grads) if grad is not None]
    dense = [on.dense(grads[i], options) for i in there]
    own = NAMES.get(options.compression)
    if own is not None:
        reduced = on.exchange(dense, options, own)
    else:
        pairs = [options.compression.compress(grad) for grad in dense]
        narrow = on.exchange([grad for grad, _ in pairs], options, "none")
        reduced = [
            options.compression.decompress(grad, context)
            for grad, (_, context) in zip(narrow, pairs, strict=True)
        ]
    result = [None] * len(grads)
    for i, grad in zip(there, reduced, strict=True):
        result[i] = grad
    return result
