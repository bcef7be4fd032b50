"""Several tensors in one call. All are exchanged or none is: where ranks differ in one tensor, none is exchanged. Their
names are `name.0`, `name.1`, …
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from ringdp.constants import Average, ReduceOp
from ringdp.process_sets import ProcessSet, global_process_set
from ringdp.requests import reduce_op
from ringdp.tensorflow import autograd
from ringdp.tensorflow.adapter import tensor_of
from ringdp.tensorflow.compression import Compression, check
from ringdp.tensorflow.ops import allreduce


def _tensors(values: Sequence[Any]) -> list[tf.Tensor]:
    return [tensor_of(value, f"tensor {i}") for i, value in enumerate(values)]


@tf.autograph.experimental.do_not_convert
def grouped_allreduce(
    tensors: Sequence[Any],
    average: bool | None = None,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = Compression.none,
    op: ReduceOp | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
    ignore_name_scope: bool = False,
    name: str | None = None,
) -> list[Any]:
    """`allreduce` of each tensor; gradients flow back. (tf.IndexedSlices go one by one, after the group.)"""
    scale = prescale_factor, postscale_factor
    how = reduce_op(op, average), scale, process_set
    check(compression)
    results: list[Any] = list(tensors)
    places = [i for i, tensor in enumerate(tensors) if not isinstance(tensor, tf.IndexedSlices)]
    pairs = [compression.compress(tensor_of(tensors[i], f"tensor {i}")) for i in places]
    if places:
        reduced = autograd.allreduce([narrow for narrow, _ in pairs], name, *how, grouped=True)
        for i, result, (_, context) in zip(places, reduced, pairs, strict=True):
            results[i] = compression.decompress(result, context)
    for i, tensor in enumerate(tensors):
        if i not in places:
            results[i] = allreduce(
                tensor,
                op=how[0],
                prescale_factor=scale[0],
                postscale_factor=scale[1],
                name=name and f"{name}.{i}",
                process_set=process_set,
            )
    return results


@tf.autograph.experimental.do_not_convert
def grouped_allgather(
    tensors: Sequence[Any],
    name: str | None = None,
    ignore_name_scope: bool = False,
    process_set: ProcessSet = global_process_set,
) -> list[tf.Tensor]:
    """`allgather` of each tensor; gradients flow back."""
    given = _tensors(tensors)
    return autograd.allgather(given, name, process_set, grouped=True) if given else []


@tf.autograph.experimental.do_not_convert
def grouped_reducescatter(
    tensors: Sequence[Any],
    device_dense: str = "",
    compression: Any = Compression.none,
    op: ReduceOp = Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    *,
    name: str | None = None,
) -> list[tf.Tensor]:
    """`reducescatter` of each tensor; gradients flow back."""
    check(compression)
    how = reduce_op(op, None), (prescale_factor, postscale_factor), process_set
    pairs = [compression.compress(tensor) for tensor in _tensors(tensors)]
    if not pairs:
        return []
    parts = autograd.reducescatter([narrow for narrow, _ in pairs], name, *how, grouped=True)
    return [compression.decompress(part, context) for part, (_, context) in zip(parts, pairs, strict=True)]
