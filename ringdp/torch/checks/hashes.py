"""Hashes of tensors, by which ranks compare bits."""

from __future__ import annotations

import torch

from ringdp import _core
from ringdp.torch import device


def hash_of(tensor: torch.Tensor, seed: int = 0) -> int:
    """64 bits of a tensor's elements in row-major order. What lies on a GPU is copied to the host first."""
    rows = tensor.detach()
    if device.is_on_gpu(rows):
        rows = rows.cpu()
    rows = rows.resolve_conj().resolve_neg().contiguous()
    return _core.kernels.hash(rows.data_ptr(), rows.nbytes, seed)
