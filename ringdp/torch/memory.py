"""Memory that the ranks of a host share, for tensors and for buckets, and how a gradient is copied into it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ringdp import _core, world
from ringdp.buckets import BEYOND_CACHES, LARGE_GRADIENT
from ringdp.numpy.memory import shared_bytes
from ringdp.torch import device


def empty(*size: Any, dtype: torch.dtype | None = None, requires_grad: bool = False) -> torch.Tensor:
    """A tensor in memory that the ranks of this host share: an in-place all-reduce of it copies nothing.

    See `ringdp.empty`: not collective, valid as long as the last tensor on it, ordinary memory where no shared is left.

    Args:
        size: the shape, as for `torch.empty`: integers, or one sequence of them.
        dtype: of the elements; default torch's.
        requires_grad: as for `torch.empty`.

    Returns:
        A CPU tensor in row-major order, with anything in it.

    Raises:
        NotInitializedError: before `ringdp.torch.init()`.
        ValueError: a negative dimension.
    """
    shape = torch.Size(size[0] if len(size) == 1 and isinstance(size[0], Sequence) else size)
    if any(n < 0 for n in shape):
        raise ValueError(f"negative dimensions are not allowed: {tuple(shape)}")
    element = dtype if dtype is not None else torch.get_default_dtype()
    flat = torch.from_numpy(shared_bytes(shape.numel() * element.itemsize))
    return flat.view(element).view(shape).requires_grad_(requires_grad)


def passing(like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A row-major tensor of the same shape, with anything in it, for what lives as long as one operation."""
    block = world.current().lender.passing(like.numel() * dtype.itemsize) if world.is_initialized() else None
    if block is None:
        return torch.empty(like.shape, dtype=dtype)
    return torch.from_numpy(block).view(dtype).view(like.shape)


def bucket_memory(count: int, dtype: torch.dtype, like: torch.Tensor) -> torch.Tensor:
    """`count` zeros, the memory of one bucket: on the GPU of `like`, or shared with the ranks of this host where that
    can be."""
    return like.new_zeros(count, dtype=dtype) if device.is_on_gpu(like) else empty(count, dtype=dtype).zero_()


def passes_caches(place: torch.Tensor, flat: torch.Tensor) -> bool:
    """True if gradients should be written into this place of a bucket by `copy_past_caches`."""
    return place.nbytes >= LARGE_GRADIENT and flat.nbytes >= BEYOND_CACHES and not device.is_on_gpu(flat)


def copy_past_caches(place: torch.Tensor, grad: torch.Tensor) -> None:
    """`place.copy_(grad)` for a dense place, with less traffic: what is overwritten is not read from memory first."""
    alike = type(grad) is torch.Tensor and grad.dtype is place.dtype and grad.stride() == place.stride()
    if not alike or grad.shape != place.shape or grad.is_neg():
        place.copy_(grad)
        return
    _core.kernels.stream(place.data_ptr(), grad.data_ptr(), place.nbytes)
    torch.autograd.graph.increment_version(place)  # the core wrote behind autograd's back
