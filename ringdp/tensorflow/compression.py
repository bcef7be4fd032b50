"""16 bits on the wire: what happens to a tensor before it is exchanged, and afterwards.

The operations take any object with Horovod's two methods, `compress` and `decompress`.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from ringdp import dtypes
from ringdp.errors import UsageError


class Compressor:
    """What a compression is."""

    wire: tf.DType | None = None  # of the tensors that are cast; None: nothing is

    @classmethod
    def compress(cls, tensor: tf.Tensor) -> tuple[tf.Tensor, Any]:
        """(the tensor for the wire, what `decompress` needs). Gradients flow through."""
        known = dtypes.BY_NAME.get(tensor.dtype.name)
        if cls.wire is None or known not in dtypes.WIDE:
            return tensor, None
        return tf.cast(tensor, cls.wire), tensor.dtype

    @classmethod
    def decompress(cls, tensor: tf.Tensor, ctx: Any) -> tf.Tensor:
        """The tensor that came from the wire, in the dtype from before `compress`."""
        return tensor if ctx is None else tf.cast(tensor, ctx)


class NoneCompressor(Compressor):
    """Sends a tensor as it is."""


class FP16Compressor(Compressor):
    """Sends float32 and float64 as float16: 11 bits of precision, largest value 65504."""

    wire = tf.float16


class BF16Compressor(Compressor):
    """Sends float32 and float64 as bfloat16: 8 bits of precision, the range of float32."""

    wire = tf.bfloat16


class Compression:
    """The compressions there are."""

    none = NoneCompressor
    fp16 = FP16Compressor
    bf16 = BF16Compressor


def check(compression: Any) -> Any:
    """`compression`, if it has Horovod's two methods; else raise UsageError."""
    if all(callable(getattr(compression, method, None)) for method in ("compress", "decompress")):
        return compression
    raise UsageError(
        "compression must have the methods compress and decompress, as Compression.none, .fp16 and .bf16 do; "
        f"{getattr(compression, '__name__', repr(compression))} has not"
    )
