"""The exchange of a step's gradients: one call for all of them, dense and sparse.

A `ringdp.flat.FlatExchange` packs, exchanges and unpacks the dense ones; slices follow by one gathering group. In a
graph that is one node, so no order in which TensorFlow runs nodes can make ranks wait for each other. Nothing is
compared by names of variables, which need not be the same on all ranks: gradients are known by their places.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from numpy.typing import NDArray

from ringdp import world
from ringdp.constants import ReduceOp
from ringdp.flat import FlatExchange
from ringdp.process_sets import ProcessSet
from ringdp.tensorflow.adapter import check_dtype, like, rows_like, run
from ringdp.tensorflow.compression import BF16Compressor, FP16Compressor, NoneCompressor, check
from ringdp.tensorflow.sparse import gathered, parts_of

# Those that the exchange does itself while it packs.
_CASTS = {NoneCompressor: "none", FP16Compressor: "fp16", BF16Compressor: "bf16"}
KEPT = 16  # exchanges


@dataclass(frozen=True)
class Options:
    """How gradients are exchanged."""

    op: ReduceOp
    compression: Any
    sparse_as_dense: bool
    predivide: float
    process_set: ProcessSet

    def __post_init__(self) -> None:
        check(self.compression)

    @property
    def casts(self) -> str:
        """The compression that the exchange does itself; of others "none", as TensorFlow does them."""
        return _CASTS.get(self.compression, "none")

    def flat(self, name: str | None) -> FlatExchange:
        """Raises UsageError for what cannot be."""
        return FlatExchange(
            name, self.op, self.casts, self.process_set, gradient_predivide_factor=self.predivide
        )


@tf.autograph.experimental.do_not_convert
def exchanged(gradients: Sequence[Any], options: Options, name: str) -> list[Any]:
    """The gradients of all ranks together, in the same places; None stays None.

    Args:
        gradients: tensors, tf.IndexedSlices and None: on all ranks of the same kinds, shapes and dtypes, but for the
            number of slices.
        name: of the exchange; in a graph its place there is part of the name, too.
    """
    results = list(gradients)
    compressor = None if options.compression in _CASTS else options.compression
    dense, sparse, contexts = [], [], []
    for place, gradient in enumerate(gradients):
        if isinstance(gradient, tf.IndexedSlices) and not options.sparse_as_dense:
            sparse.append(place)
        elif gradient is not None:
            tensor = tf.convert_to_tensor(gradient)
            check_dtype(tensor.dtype, f"gradient {place}")
            tensor, context = compressor.compress(tensor) if compressor else (tensor, None)
            results[place] = tensor
            dense.append(place)
            contexts.append(context)
    inputs = [results[place] for place in dense]
    outputs = [like(tensor) for tensor in inputs]
    for place in sparse:
        parts = parts_of(gradients[place], options.op)
        inputs += parts
        outputs += [rows_like(part) for part in parts]
    reduced = run("gradients", _Body(options, name, dense, len(sparse)), inputs, outputs, None)
    for place, context, result in zip(dense, contexts, reduced[: len(dense)], strict=True):
        results[place] = compressor.decompress(result, context) if compressor else result
    for i, place in enumerate(sparse):
        values, indices = reduced[len(dense) + 2 * i : len(dense) + 2 * i + 2]
        results[place] = tf.IndexedSlices(values, indices, gradients[place].dense_shape)
    return results


class _Body:
    """What is called with all gradients' arrays."""

    def __init__(self, options: Options, name: str, dense: Sequence[int], sparse: int) -> None:
        self._options, self._name, self._sparse = options, name, sparse
        self._names = [str(place) for place in dense]

    def __call__(self, arrays: list[NDArray[Any]], traced: str | None) -> Sequence[NDArray[Any]]:
        count, name = len(self._names), traced or self._name
        exchange = world.current().service(_Exchanges).find(name, self._options, arrays[:count])
        results = exchange(arrays[:count], self._names)
        if self._sparse:
            how = self._options.op, (1.0, 1.0), self._options.process_set
            results += gathered(arrays[count:], f"{name}.slices", *how)
        return results


class _Exchange:
    """A flat exchange with its memory, for one call at a time."""

    def __init__(self, name: str, options: Options) -> None:
        self._flat, self._lock = options.flat(name), threading.Lock()

    def __call__(self, arrays: Sequence[NDArray[Any]], names: Sequence[str]) -> list[NDArray[Any]]:
        with self._lock:
            return self._flat(arrays, names)


class _Exchanges:
    """The last few that were used in this world; traces of a function that differ in nothing else have one together.
    (A graph that had its own would keep the memory for as long as TensorFlow keeps the graph.)"""

    def __init__(self, here: world.World) -> None:
        self._known: collections.OrderedDict[Any, _Exchange] = collections.OrderedDict()
        self._lock = threading.Lock()

    def find(self, name: str, options: Options, arrays: Sequence[NDArray[Any]]) -> _Exchange:
        """That for such gradients. Its name says nothing of them: ranks that have different ones must still meet, to
        learn of it."""
        key = name, options, tuple((a.shape, a.dtype.name) for a in arrays)
        with self._lock:
            found = self._known.pop(key, None) or _Exchange(name, options)
            self._known[key] = found
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
            return found

    def close(self) -> None:
        """All ranks have left."""
        self._known.clear()
