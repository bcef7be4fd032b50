"""16 bits on the wire: what happens to a gradient before it is exchanged, and afterwards. On every backend."""

from __future__ import annotations

from typing import Any

import keras

WIDE = ("float32", "float64")  # what is cast; all other dtypes travel as they are


class NoneCompressor:
    """Sends a tensor as it is."""

    @staticmethod
    def compress(tensor: Any) -> tuple[Any, Any]:
        """(the tensor for the wire, what `decompress` needs)."""
        return tensor, None

    @staticmethod
    def decompress(tensor: Any, context: Any) -> Any:
        """The tensor that came from the wire, in the dtype from before `compress`."""
        return tensor if context is None else keras.ops.cast(tensor, context)


class _Narrow(NoneCompressor):
    wire = ""

    @classmethod
    def compress(cls, tensor: Any) -> tuple[Any, Any]:  # type: ignore[override]
        """(the tensor in 16 bits, its dtype)."""
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        return (keras.ops.cast(tensor, cls.wire), dtype) if dtype in WIDE else (tensor, None)


class FP16Compressor(_Narrow):
    """Sends float32 and float64 as float16: 11 bits of precision, largest value 65504."""

    wire = "float16"


class BF16Compressor(_Narrow):
    """Sends float32 and float64 as bfloat16: 8 bits of precision, the range of float32."""

    wire = "bfloat16"


class Compression:
    """The compressions there are."""

    none = NoneCompressor
    fp16 = FP16Compressor
    bf16 = BF16Compressor


NAMES = {NoneCompressor: "none", FP16Compressor: "fp16", BF16Compressor: "bf16"}
