"""The kernels for GPUs, compiled for the host, over NumPy arrays."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from driver.lock import locked
from standin.build import FLAGS, ROOT, compile_library, compiler

THREADS = 256
TILE = 4096
SOURCES = ("tests/standin/kernels.cc", "tests/gpu/no_alias.cc")


class _Kernel(ctypes.Structure):
    """StandinKernel of tests/standin/kernel.h."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("parameter_bytes", ctypes.c_size_t),
        ("run", ctypes.CFUNCTYPE(None, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p)),
    ]


def _library() -> Path:
    digest = hashlib.sha256(repr((compiler(), FLAGS)).encode())
    kernels = ROOT / "csrc" / "kernels"
    read = [*kernels.rglob("*.h"), *kernels.rglob("*.cu"), *(ROOT / "tests" / "standin").glob("*.h")]
    for source in [*sorted(read), *(ROOT / s for s in SOURCES)]:
        digest.update(source.read_bytes())
    target = ROOT / "build" / "standin" / digest.hexdigest()[:16] / "kernels.so"
    with locked(target.parent):
        if not target.exists():
            compile_library(target, [ROOT / source for source in SOURCES])
    return target


@functools.cache
def kernels() -> dict[str, _Kernel]:
    library = ctypes.CDLL(str(_library()))
    library.standin_kernels.restype = ctypes.POINTER(_Kernel)
    count = ctypes.c_size_t()
    first = library.standin_kernels(ctypes.byref(count))
    return {first[i].name.decode().removeprefix("ringdp_"): first[i] for i in range(count.value)}


def run(name: str, grid: int, layout: str, *values: object) -> None:
    """One launch; `layout`: of its parameters, as struct has them; arrays stand for their addresses."""
    kernel = kernels()[name]
    given = struct.pack(layout, *(v.ctypes.data if isinstance(v, np.ndarray) else v for v in values))
    assert len(given) == kernel.parameter_bytes
    kernel.run(grid, THREADS, given)


def tiles(count: int) -> int:
    return -(-count // TILE)


def table(tensors: Sequence[np.ndarray], firsts: Sequence[int]) -> tuple[np.ndarray, int, int]:
    """(table, entries, tiles) of tensors that begin at these elements of a bucket."""
    rows, done = [], 0
    for tensor, first in zip(tensors, firsts, strict=True):
        if tensor.size:
            rows.append((tensor.ctypes.data, first, tensor.size, done))
            done += tiles(tensor.size)
    return np.array(rows, dtype=np.uint64).reshape(-1, 4), len(rows), done


def placed(values: np.ndarray, shift: int) -> np.ndarray:
    """A copy that begins `shift` elements after an address that divides by 16."""
    room = np.empty(values.nbytes + 16 + shift * values.itemsize + 16, np.uint8)
    start = -room.ctypes.data % 16 + shift * values.itemsize
    at = room[start : start + values.nbytes].view(values.dtype)
    at[:] = values
    return at
