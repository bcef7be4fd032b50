"""What memory allows between ranks of one host: two all-reduces in C++, of float32 sums only, as contestants.

They are compiled into one library, which the ranks load, so that they take turns with the others call by call.
"""

import ctypes
import mmap
import os
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

SOURCES = Path(__file__).with_name("floors")
TEAM = 4096  # bytes at the beginning of the shared memory: kTeamBytes in floors/team.h
SEGMENT = 256 << 10  # bytes of a segment: four of them lie in the L2 cache of two ranks' cores


def build(folder: Path) -> Path:
    """Compiles the library into `folder`; RuntimeError with the compiler's words if that fails."""
    library = folder / "floors.so"
    compiler = os.environ.get("CXX", "g++").split()
    flags = ["-O3", "-march=native", "-std=c++17", "-Wall", "-Wextra", "-shared", "-fPIC"]
    sources = sorted(str(p) for p in SOURCES.glob("*.cc"))
    made = subprocess.run([*compiler, *flags, "-o", str(library), *sources], capture_output=True, text=True)
    if made.returncode:
        raise RuntimeError(made.stderr)
    return library


class Shared:
    """Memory that all ranks of `comm`, on one host, map; zeros at first. It goes with its last mapping."""

    def __init__(self, comm: Any, size: int) -> None:
        path = None
        if comm.rank == 0:
            file = os.memfd_create("floor")
            os.ftruncate(file, size)
            path = f"/proc/{os.getpid()}/fd/{file}"
        path = comm.bcast(path)
        mine = os.open(path, os.O_RDWR)
        self.map = mmap.mmap(mine, size)
        comm.Barrier()  # all have opened it
        os.close(mine)
        if comm.rank == 0:
            os.close(file)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))

    def floats(self, offset: int, count: int) -> np.ndarray:
        return np.frombuffer(self.map, np.float32, count, offset)


class _Floor:
    name: str

    def __init__(self, comm: Any, library: str) -> None:
        self._comm, self._library = comm, ctypes.CDLL(library)
        self._calls: dict[int, Callable[[], object]] = {}  # by the address of the array

    def refusal(self, dtype: str, op: str) -> str | None:
        return None if (dtype, op) == ("float32", "sum") else "it only sums float32"

    def call(self, x: np.ndarray, op: str) -> Callable[[], object]:
        raise NotImplementedError

    def allreduce_(self, x: np.ndarray, op: str) -> np.ndarray:
        self.call(x, op)()
        return x

    allreduce = allreduce_

    def numbers(self, x: np.ndarray) -> np.ndarray:
        return x

    def close(self) -> None:
        pass


class InPlaceFloor(_Floor):
    """The arrays lie in shared memory; floors/in_place.cc."""

    name = "floor-in-place"

    def array(self, values: np.ndarray, dtype: str) -> np.ndarray:
        stride = (values.nbytes + 4095) // 4096 * 4096
        self._shared, self._stride = Shared(self._comm, TEAM + stride * self._comm.size), stride
        x = self._shared.floats(TEAM + stride * self._comm.rank, values.size)
        x[:] = values
        for rank in range(self._comm.size):  # the pages of the others are mapped now, not while it is timed
            self._comm.Barrier()
            self._shared.floats(TEAM + stride * rank, values.size)[::1024].sum()
        return x

    def call(self, x: np.ndarray, op: str) -> Callable[[], object]:
        size = ctypes.c_size_t
        return partial(
            self._library.in_place,
            ctypes.c_void_p(self._shared.address),
            size(self._stride), self._comm.rank, self._comm.size, size(x.size),
        )  # fmt: skip


class StagedFloor(_Floor):
    """Ordinary arrays, through a small shared area; floors/staged.cc."""

    name = "floor-staged"

    def __init__(self, comm: Any, library: str) -> None:
        super().__init__(comm, library)
        self._shared = Shared(comm, TEAM + 3 * SEGMENT * comm.size)

    def array(self, values: np.ndarray, dtype: str) -> np.ndarray:
        return values.copy()

    def call(self, x: np.ndarray, op: str) -> Callable[[], object]:
        size = ctypes.c_size_t
        return partial(
            self._library.staged,
            ctypes.c_void_p(self._shared.address),
            size(SEGMENT // 4), self._comm.rank, self._comm.size, ctypes.c_void_p(x.ctypes.data), size(x.size),
        )  # fmt: skip
