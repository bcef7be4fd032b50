"""Which tensors lie on a GPU, and PyTorch's streams there."""

from __future__ import annotations

import contextlib

import torch

from ringdp.requests import OnGpu


def is_on_gpu(tensor: torch.Tensor) -> bool:
    """On one of NVIDIA's: what other builds of PyTorch call cuda, is none."""
    return tensor.is_cuda and torch.version.hip is None


def is_reachable(tensor: torch.Tensor) -> bool:
    """In memory that ringdp exchanges."""
    return tensor.is_cpu or is_on_gpu(tensor)


def place_of(tensor: torch.Tensor) -> OnGpu | None:
    """Its GPU, and this thread's current stream there; None on the CPU."""
    if not is_on_gpu(tensor):
        return None
    gpu = tensor.get_device()
    return OnGpu(gpu, current_stream(gpu))


def current_stream(gpu: int) -> int:
    """This thread's current stream on this GPU (CUstream)."""
    return int(torch.cuda.current_stream(gpu).cuda_stream)


def in_stream(place: OnGpu) -> contextlib.AbstractContextManager[object]:
    """Inside, that stream is this thread's current one."""
    if place.stream == 0:
        return torch.cuda.stream(torch.cuda.default_stream(place.gpu))
    return torch.cuda.stream(torch.cuda.ExternalStream(place.stream, device=place.gpu))
