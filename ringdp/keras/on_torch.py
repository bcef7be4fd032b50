"""What PyTorch needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import torch

from ringdp.keras.exchange import Options
from ringdp.torch.compression import Compression
from ringdp.torch.grouped import grouped_allreduce


def dense(grad: Any, options: Options) -> Any:
    """A sparse gradient as a dense tensor."""
    return grad if grad.layout is torch.strided else grad.to_dense()


def exchange(grads: Sequence[Any], options: Options, compression: str) -> list[Any]:
    """See `ringdp.keras.exchange.exchange`; no None among them. `compression`: none, fp16 or bf16."""
    before, after = options.scale
    with torch.no_grad():
        return grouped_allreduce(
            [grad.detach() for grad in grads],
            name=options.name,
            compression=getattr(Compression, compression),
            op=options.op,
            prescale_factor=before,
            postscale_factor=after,
            process_set=options.process_set,
        )


def either(
    predicate: Any,
    true: Callable[[list[Any]], None],
    false: Callable[[list[Any]], None],
    grads: list[Any],
    written: Sequence[Any],
) -> None:
    """One of the two, which write variables; the other does not run."""
    (true if predicate else false)(grads)


def to_numpy(tensor: Any) -> Any:
    """The values of a tensor."""
    return keras.ops.convert_to_numpy(tensor)
