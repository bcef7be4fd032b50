"""16 bits on the wire: what happens to a tensor before it is exchanged, and afterwards.

The operations take any object with Horovod's two methods, `compress` and `decompress`. `DistributedOptimizer` casts
while it packs (`bucket.py`), and asks each of these here only for its `wire` dtype; others it calls
(`user_compression.py`).

The casts are torch's own `copy_` and `to`: to nearest, ties to even; beyond float16's range infinite; NaN stays NaN.
(16 Mi elements, one thread of an EPYC: float32 to float16 4.9 ms, back 5.8 ms, a copy of the float32 11.7 ms.) New
memory costs far more than the cast, 30 ms for these 32 MiB, as the system clears its pages: so `compress` takes memory
from the heap that was used before. Where an all-reduce goes between hosts the core casts instead, to the same bits, and
one part travels while another is cast (`wire_for`).
"""

from __future__ import annotations

from typing import Any

import torch

from ringdp import world
from ringdp.errors import UsageError
from ringdp.process_sets import ProcessSet
from ringdp.requests import usable
from ringdp.torch import device
from ringdp.torch.adapter import DTYPES, is_plain
from ringdp.torch.autograd import wanted
from ringdp.torch.memory import passing
from ringdp.torch.tracing import is_compiling

SMALL = 64 << 10  # bytes on the wire
WIDE = (torch.float32, torch.float64)  # what is cast; all other dtypes travel as they are


class Compressor:
    """What a compression is."""

    wire: torch.dtype | None = None  # of the tensors that are cast; None: nothing is

    @classmethod
    def on_wire(cls, dtype: torch.dtype) -> torch.dtype:
        """The dtype in which tensors of `dtype` travel."""
        return cls.wire if cls.wire is not None and dtype in WIDE else dtype

    @staticmethod
    def compress(tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """(the tensor for the wire, what `decompress` needs). Gradients flow through."""
        return tensor, None

    @staticmethod
    def decompress(tensor: torch.Tensor, context: Any) -> torch.Tensor:
        """The tensor that came from the wire, in the dtype from before `compress`."""
        return tensor if context is None else tensor.to(context)


class NoneCompressor(Compressor):
    """Sends a tensor as it is."""


class FP16Compressor(Compressor):
    """Sends float32 and float64 as float16: 11 bits of precision, largest value 65504."""

    wire = torch.float16

    @staticmethod
    def compress(tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """(the tensor as float16, its dtype)."""
        return _narrow(tensor, torch.float16)


class BF16Compressor(Compressor):
    """Sends float32 and float64 as bfloat16: 8 bits of precision, the range of float32."""

    wire = torch.bfloat16

    @staticmethod
    def compress(tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """(the tensor as bfloat16, its dtype)."""
        return _narrow(tensor, torch.bfloat16)


class Compression:
    """The compressions there are."""

    none = NoneCompressor
    fp16 = FP16Compressor
    bf16 = BF16Compressor


NAMES = {NoneCompressor: "none", FP16Compressor: "fp16", BF16Compressor: "bf16"}


def check(compression: Any) -> Any:
    """`compression`, if it has Horovod's two methods; else raise UsageError."""
    if all(callable(getattr(compression, method, None)) for method in ("compress", "decompress")):
        return compression
    raise UsageError(
        f"compression must have the methods compress and decompress, as {_known()} do; "
        f"{_described(compression)} has not"
    )


def known(compression: Any) -> type[Compressor] | None:
    """The class among ours that `compression` is, or is an instance of; None if it is the user's own.

    Raises:
        UsageError: it has not Horovod's two methods.
    """
    kind = compression if isinstance(compression, type) else type(compression)
    if kind in NAMES:
        return kind
    check(compression)
    return None


def wire_for(tensor: Any, compression: Any, process_set: ProcessSet) -> torch.Tensor | None:
    """Memory for `Operations.allreduce_through_async` where the core is to cast the tensor under way; else None.

    That is where it goes between hosts; within one, where the memory that `compress` takes is reduced in place, casts
    before and after are faster. A small tensor does not gain by it, nor does one that must be copied before the core
    can read it. Ranks need not decide alike: the others cannot tell who casts.
    """
    if (
        is_compiling()
        or not isinstance(compression, type)
        or compression not in NAMES
        or not is_plain(tensor)
        or not device.is_in_host_memory(tensor)
    ):
        return None
    dtype = compression.on_wire(tensor.dtype)
    bytes = tensor.numel() * dtype.itemsize
    if dtype is tensor.dtype or bytes <= SMALL or wanted(tensor):
        return None
    engine = world.current().engine
    under_way = engine.casts_under_way(bytes, int(DTYPES[dtype]), usable(process_set))
    return passing(tensor, dtype) if under_way else None


def _narrow(tensor: torch.Tensor, wire: torch.dtype) -> tuple[torch.Tensor, Any]:
    if not isinstance(tensor, torch.Tensor) or tensor.dtype not in WIDE:
        return tensor, None
    if is_compiling() or not device.is_in_host_memory(tensor) or wanted(tensor):
        return tensor.to(wire), tensor.dtype
    return passing(tensor, wire).copy_(tensor), tensor.dtype


def _known() -> str:
    return ", ".join(f"Compression.{name}" for name in NAMES.values())


def _described(compression: Any) -> str:
    return getattr(compression, "__name__", repr(compression))
