"""How float32 and float64 arrays travel: `Compression.none`, `.fp16` or `.bf16`. They come back in their own dtype.

The casts are JAX's: inside `jit` they are a part of the compiled program, and gradients flow through them.
"""

from __future__ import annotations

from typing import Any

from ringdp.errors import UsageError

WIDE = ("float32", "float64")  # what is cast; all other dtypes travel as they are


class Compressor:
    """What a compression is."""

    wire: str | None = None  # the dtype of what is cast; None: nothing is

    @classmethod
    def compress(cls, tensor: Any) -> tuple[Any, Any]:
        """(the array for the wire, what `decompress` needs)."""
        if cls.wire is None or tensor.dtype.name not in WIDE:
            return tensor, None
        return tensor.astype(cls.wire), tensor.dtype

    @staticmethod
    def decompress(tensor: Any, context: Any) -> Any:
        """The array that came from the wire, in the dtype from before `compress`."""
        return tensor if context is None else tensor.astype(context)


class NoneCompressor(Compressor):
    """Sends an array as it is."""


class FP16Compressor(Compressor):
    """Sends float32 and float64 as float16: 11 bits of precision, largest value 65504."""

    wire = "float16"


class BF16Compressor(Compressor):
    """Sends float32 and float64 as bfloat16: 8 bits of precision, the range of float32."""

    wire = "bfloat16"


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
        "compression must have the methods compress and decompress, as Compression.none, Compression.fp16 and "
        f"Compression.bf16 do; {getattr(compression, '__name__', repr(compression))} has not"
    )
