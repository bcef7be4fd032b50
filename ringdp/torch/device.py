"""Which tensors lie on a GPU, PyTorch's streams there, and the GPU that is this rank's.

Nothing else asks PyTorch about devices and streams.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ringdp import _core, world
from ringdp.torch.tracing import outside


def is_on_gpu(tensor: torch.Tensor) -> bool:
    """On one of NVIDIA's: what builds of PyTorch for others call cuda, is none."""
    return tensor.is_cuda and torch.version.hip is None


def kind_of(tensor: torch.Tensor) -> str:
    """Its dtype and kind of memory, in names of operations: what has them in common goes together."""
    return f"{tensor.dtype}{'.gpu' if is_on_gpu(tensor) else ''}"


def gpu_of(tensor: torch.Tensor) -> int:
    """The number of its GPU in this process."""
    return tensor.get_device()


def current_stream(gpu: int) -> int:
    """This thread's current stream on this GPU (CUstream)."""
    return int(torch.cuda.current_stream(gpu).cuda_stream)


def is_captured(gpu: int) -> bool:
    """What this thread's current stream on this GPU is given becomes a part of a CUDA graph."""
    return bool(_core.gpu.is_captured(gpu, current_stream(gpu)))


def in_stream(gpu: int, stream: int) -> contextlib.AbstractContextManager[object]:
    """Inside, that stream is this thread's current one."""
    return torch.cuda.stream(_stream(gpu, stream))


def like_this_thread(gpus: Iterable[int]) -> contextlib.AbstractContextManager[object]:
    """For another thread: inside, this thread's current streams on these GPUs are its current ones."""
    streams = [(gpu, current_stream(gpu)) for gpu in gpus]

    @contextlib.contextmanager
    def like_it() -> Iterator[None]:
        with contextlib.ExitStack() as entered:
            for gpu, stream in streams:
                entered.enter_context(in_stream(gpu, stream))
            yield

    return like_it()


def follow(gpu: int, streams: Iterable[int]) -> None:
    """What the current stream does from now on comes after all that these have been given."""
    current = torch.cuda.current_stream(gpu)
    for stream in streams:
        current.wait_stream(_stream(gpu, stream))


def used_in_current_stream(tensor: torch.Tensor) -> None:
    """Its memory, which belongs to another stream, is given out again only behind what the current one does now."""
    tensor.record_stream(torch.cuda.current_stream(tensor.get_device()))


class Mark:
    """All that the current stream of a GPU has been given until now."""

    def __init__(self, gpu: int) -> None:
        self._gpu = gpu
        self._event = torch.cuda.current_stream(gpu).record_event()

    def order(self) -> None:
        """What this thread's current stream does from now on comes after it."""
        torch.cuda.current_stream(self._gpu).wait_event(self._event)

    def passed(self) -> bool:
        """The GPU has done it."""
        return bool(self._event.query())


def stream_beside(gpu: int) -> Callable[[], contextlib.AbstractContextManager[object]]:
    """A new stream, for threads of ours: inside what is returned, it is the current one."""
    stream = torch.cuda.Stream(gpu)
    return lambda: torch.cuda.stream(stream)


def of_future(gpu: int) -> list[torch.device]:
    """What a future of tensors on this GPU is to be told, so that PyTorch orders streams behind it."""
    return [torch.device("cuda", gpu)]


def in_host_memory(tensor: torch.Tensor) -> torch.Tensor:
    """A copy there. Waits for the GPU."""
    return tensor.cpu()


def _stream(gpu: int, stream: int) -> torch.cuda.Stream:
    if stream == 0:
        return torch.cuda.default_stream(gpu)
    return torch.cuda.ExternalStream(stream, device=gpu)


def is_in_host_memory(tensor: torch.Tensor) -> bool:
    """Memory that the core reads and writes by itself."""
    return tensor.is_cpu and not is_on_gpu(tensor)


class Place:
    """`ringdp.requests.OnGpu` for PyTorch."""

    def __init__(self, gpu: int) -> None:
        self.gpu = gpu
        self.stream = current_stream(gpu)

    def current_stream(self) -> int:
        """This thread's, now."""
        return current_stream(self.gpu)

    def empty(self, shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
        """Memory of `stream`: what has freed it there comes before."""
        with in_stream(self.gpu, self.stream):
            return like.new_empty(tuple(shape))


def move_beside(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """On the same device; a copy only if it is not there."""
    return tensor.to(other.device)


@dataclass(frozen=True)
class Portable:
    """A tensor that lay on a GPU, on its way to ranks whose GPUs have other numbers."""

    tensor: torch.Tensor


def portable(value: Any) -> Any:
    """What can be pickled for other ranks in place of `value`, a tensor or anything else."""
    return Portable(value.cpu()) if isinstance(value, torch.Tensor) and is_on_gpu(value) else value


def beside(tensor: torch.Tensor, value: Any) -> Any:
    """What another rank made portable; on the GPU of `tensor` if it was on one."""
    return move_beside(value.tensor, tensor) if isinstance(value, Portable) else value


def place_of(tensor: torch.Tensor) -> Place | None:
    """Its GPU, and this thread's current stream there; None for host memory."""
    return Place(gpu_of(tensor)) if is_on_gpu(tensor) else None


@outside
def use_local_device() -> torch.device:
    """Make the GPU of this rank the current one, and return it, a `torch.device`; that of the CPU where there is none.

    The ranks of a host take its GPUs in turn, by `local_rank()`. Where the launcher shows each rank its own GPU alone
    (CUDA_VISIBLE_DEVICES), that is the one. To be called once, after `init()` and before anything is put on a GPU:

        device = hvd.use_local_device()
        model = Model().to(device)

    Raises:
        NotInitializedError: before `ringdp.torch.init()`.
    """
    local_rank = world.local_rank()
    gpus = torch.cuda.device_count()
    if gpus == 0:
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % gpus)
    torch.cuda.set_device(device)
    return device
