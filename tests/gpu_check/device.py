"""Memory, copies and times on the current GPU, by CuPy; and nothing that is a kernel of CuPy's."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import cupy
import numpy as np

MARGIN = 64  # bytes beside an array whose value is known
POISON = 0x55
ALIGNMENT = 16


class _Behind:
    """How many bytes there are behind an array."""

    margin = MARGIN


def end_memory_with_arrays() -> None:
    """From now on: so that compute-sanitizer sees every access behind one, and reads too."""
    _Behind.margin = 0
    cupy.cuda.set_allocator(None)  # no pool, whose blocks are larger


class Room:
    """Elements on the GPU, `shift` of them after an address that divides by 16; what lies beside is watched."""

    def __init__(self, values: np.ndarray, shift: int = 0) -> None:
        self._dtype, self._begin = values.dtype, MARGIN + shift * values.itemsize
        self._end = self._begin + values.nbytes
        whole = np.full(self._end + _Behind.margin, POISON, np.uint8)
        whole[self._begin : self._end] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        self._array = cupy.array(whole)
        assert self._array.data.ptr % ALIGNMENT == 0
        self.address = self._array.data.ptr + self._begin

    def get(self) -> np.ndarray:
        """What is there, once the current stream has come so far."""
        whole = self._array.get()
        beside = np.concatenate([whole[: self._begin], whole[self._end :]])
        wrong = int((beside != POISON).sum())
        assert wrong == 0, f"{wrong} bytes beside the array were written"
        return whole[self._begin : self._end].view(self._dtype)


def poisoned(dtype: np.dtype, count: int, shift: int = 0) -> Room:
    """For a result: an element that is not written is not what it has to be."""
    return Room(np.full(count * dtype.itemsize, 0x77, np.uint8).view(dtype), shift)


class Pinned:
    """Host memory that a GPU copies at full speed."""

    def __init__(self, nbytes: int) -> None:
        self._memory = cupy.cuda.alloc_pinned_memory(nbytes)
        self.address = self._memory.ptr


def milliseconds(work: Callable[[], object]) -> float:
    """What the current stream takes for it, by events."""
    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(cupy.cuda.get_elapsed_time(begin, end))


def median_milliseconds(work: Callable[[], object], warm_up: int, repetitions: int) -> float:
    for _ in range(warm_up):
        milliseconds(work)
    return statistics.median(milliseconds(work) for _ in range(repetitions))
