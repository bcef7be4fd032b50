"""PyTorch tensors for the operations of `ringdp.ops`: in host memory, and on GPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd.graph import increment_version

from ringdp import _core, dtypes
from ringdp.constants import Dtype
from ringdp.torch import device

DTYPES: dict[torch.dtype, Dtype] = {
    getattr(torch, name): dtype for name, dtype in dtypes.BY_NAME.items() if hasattr(torch, name)
}
LARGE = 4 << 20  # bytes; csrc/base/huge_pages.h
TYPES = torch.Tensor, torch.nn.Parameter  # of which no subclass, which may keep its numbers elsewhere


def refuse_unsupported(tensor: Any, what: str = "this tensor") -> None:
    """Raise TypeError for what the core cannot read: another type, device, layout or dtype. `what` names it."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(
            f"{what} is a {type(tensor).__module__}.{type(tensor).__name__}, not a torch.Tensor "
            "(NumPy arrays: the same function of ringdp)"
        )
    if tensor.layout is not torch.strided:
        raise TypeError(
            f"{what} is sparse ({tensor.layout}), which ringdp cannot exchange yet: use .to_dense()"
        )
    if not tensor.is_cpu and not device.is_on_gpu(tensor):
        remedy = (
            "a meta tensor has no values: give it some first, as module.to_empty() and a load do"
            if tensor.is_meta
            else "use .cpu()"
        )
        raise TypeError(
            f"{what} is on device {tensor.device}; ringdp exchanges tensors of CPUs and NVIDIA's GPUs: {remedy}"
        )
    if tensor.dtype not in DTYPES:
        remedy = ""
        if tensor.is_complex():
            remedy = "torch.view_as_real gives a view of it that can be exchanged"
        elif tensor.is_quantized:
            remedy = "exchange int_repr(), or dequantize() it"
        raise dtypes.unsupported(tensor.dtype, what, remedy)
    if type(tensor) not in TYPES and tensor.numel() and not _has_memory(tensor):
        kind = f"{type(tensor).__module__}.{type(tensor).__name__}"
        raise TypeError(
            f"{what} is a {kind}, which has no numbers of its own: exchange what is inside (a DTensor's to_local())"
        )


def _has_memory(tensor: torch.Tensor) -> bool:
    try:
        return tensor.data_ptr() != 0
    except RuntimeError:  # a tensor that only stands for one, while a model is traced
        return False


def is_plain(tensor: Any) -> bool:
    """True if the core can read and write the tensor as it lies in memory. A short way for the usual case: what is not
    plain may still be exchanged, by a copy, or be refused with a reason.
    """
    return (
        type(tensor) in TYPES
        and (tensor.is_cpu or device.is_on_gpu(tensor))
        and tensor.layout is torch.strided
        and tensor.dtype in DTYPES
        and tensor.is_contiguous()
        and not tensor.is_neg()
    )


def note_write(tensor: torch.Tensor) -> None:
    """The core wrote behind autograd's back: who has saved this tensor for a backward pass must notice."""
    try:
        increment_version(tensor)
    except RuntimeError:  # of some releases, for tensors of inference mode, which have no version
        if not tensor.is_inference():
            raise


def _about_to_be_written(made: torch.Tensor) -> torch.Tensor:
    if made.numel() >= LARGE // 8 and made.is_cpu and made.layout is torch.strided and made.nbytes >= LARGE:
        _core.expect_writes(made.data_ptr(), made.nbytes)
    return made


class TorchAdapter:
    """`ringdp.ops.Adapter` for `torch.Tensor`. Only addresses reach the core: autograd never sees the exchange."""

    direct: tuple[type, ...] = TYPES if hasattr(torch.Tensor, "__dlpack_c_exchange_api__") else ()
    note_write: Callable[[Any], None] | None = staticmethod(note_write)

    def source(self, tensor: Any) -> torch.Tensor:
        if is_plain(tensor):
            return tensor  # type: ignore[no-any-return]
        refuse_unsupported(tensor)
        # resolve_neg: the imaginary part of a conjugated tensor has a sign that is only noted, not written in memory.
        return tensor.detach().resolve_neg().contiguous()

    def target(self, tensor: Any) -> torch.Tensor:
        if is_plain(tensor):
            return tensor  # type: ignore[no-any-return]
        refuse_unsupported(tensor)
        if any(step == 0 and n > 1 for step, n in zip(tensor.stride(), tensor.shape, strict=True)):
            raise TypeError(
                "an in-place operation needs a tensor whose elements have memory of their own (this one is expanded)"
            )
        return tensor.detach().resolve_neg().contiguous()

    def written(self, tensor: Any, target: torch.Tensor) -> None:
        own = tensor.detach() if target is not tensor else tensor  # shares the memory and the version counter
        if own is target or (own.data_ptr() == target.data_ptr() and own.stride() == target.stride()):
            note_write(tensor)
        else:
            with torch.no_grad():
                own.copy_(target)

    def empty(self, shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
        return _about_to_be_written(like.new_empty(tuple(shape)))

    def empty_like(self, like: torch.Tensor) -> torch.Tensor:
        return _about_to_be_written(torch.empty_like(like))

    def from_bytes(self, data: Any, shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(data).view(like.dtype).reshape(tuple(shape))

    def describe(self, tensor: torch.Tensor) -> tuple[int, int, Sequence[int]]:
        return tensor.data_ptr(), int(DTYPES[tensor.dtype]), tuple(tensor.shape)

    def integers(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32)  # as Horovod's users expect

    def on_gpu(self, tensor: torch.Tensor) -> device.Place | None:
        return device.place_of(tensor)
