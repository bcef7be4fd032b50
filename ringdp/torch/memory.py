"""The memory of buckets, and how a gradient is copied into it."""

from __future__ import annotations

import torch

from ringdp import _core

# A bucket beyond these many bytes leaves the caches before it is exchanged, so gradients need not enter them on their
# way in; for smaller gradients the plain copy is as fast (csrc/kernels/stream.h has the figures).
BEYOND_CACHES = 4 << 20
LARGE_GRADIENT = 128 << 10


def bucket_memory(count: int, dtype: torch.dtype) -> torch.Tensor:
    """`count` zeros: the memory of one bucket."""
    return torch.zeros(count, dtype=dtype)


def passes_caches(place: torch.Tensor, flat: torch.Tensor) -> bool:
    """True if gradients should be written into this place of a bucket by `copy_past_caches`."""
    return place.nbytes >= LARGE_GRADIENT and flat.nbytes >= BEYOND_CACHES


def copy_past_caches(place: torch.Tensor, grad: torch.Tensor) -> None:
    """`place.copy_(grad)` for a dense place, with less traffic: what is overwritten is not read from memory first."""
    alike = type(grad) is torch.Tensor and grad.dtype is place.dtype and grad.stride() == place.stride()
    if not alike or grad.shape != place.shape or grad.is_neg():
        place.copy_(grad)
        return
    _core.kernels.stream(place.data_ptr(), grad.data_ptr(), place.nbytes)
    torch.autograd.graph.increment_version(place)  # the core wrote behind autograd's back
