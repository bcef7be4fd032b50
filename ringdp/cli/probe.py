"""What can only be found out by loading a library, in a process of its own: `python probe.py mpi` prints JSON.

A broken MPI or driver ends this process and not the one that asks, and asking leaves no MPI initialised behind.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from ringdp.nccl import files_of_wheels


def _mapped(name: str) -> str | None:
    """The file of a loaded library whose name begins with `name`, from this process's memory map."""
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            path = line.split(maxsplit=5)[5].strip() if line.count(" ") > 5 and "/" in line else ""
            if os.path.basename(path).startswith(name):
                return path
    return None


def mpi() -> dict[str, Any]:
    import mpi4py
    from mpi4py import MPI

    levels = {
        MPI.THREAD_SINGLE: "MPI_THREAD_SINGLE",
        MPI.THREAD_FUNNELED: "MPI_THREAD_FUNNELED",
        MPI.THREAD_SERIALIZED: "MPI_THREAD_SERIALIZED",
        MPI.THREAD_MULTIPLE: "MPI_THREAD_MULTIPLE",
    }
    return {
        "library": MPI.Get_library_version().replace("\x00", "").strip().split("\n")[0],
        "standard": ".".join(map(str, MPI.Get_version())),
        "path": _mapped("libmpi.so") or _mapped("libmpi_abi.so") or _mapped("libmpi"),
        "thread_level": levels[MPI.Query_thread()],
        "mpi4py": mpi4py.__version__,
    }


def gpu_memory() -> dict[str, Any]:
    """Whether this MPI takes pointers to memory of CUDA, as it says itself."""
    from ringdp import _core, mpi

    mpi.load()
    return {"taken": _core.mpi_takes_gpu_memory()}


def core() -> dict[str, Any]:
    from ringdp import _core

    return {"path": _core.__file__, "kernels": _core.kernels.variant()}


def cuda() -> dict[str, Any]:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return {"missing": f"no driver: {error}"}
    version, count = ctypes.c_int(), ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return {"missing": "libcuda.so.1 is there, but cuDriverGetVersion fails"}
    found: dict[str, Any] = {
        "path": _mapped("libcuda.so"),
        "driver": f"{version.value // 1000}.{version.value % 1000 // 10}",
        "devices": [],
    }
    status = driver.cuInit(0)
    if status == 0:
        status = driver.cuDeviceGetCount(ctypes.byref(count))
    if status != 0:
        found["no_device"] = f"CUDA error {status}"
    for index in range(count.value):
        name, device = ctypes.create_string_buffer(256), ctypes.c_int()
        driver.cuDeviceGet(ctypes.byref(device), index)
        driver.cuDeviceGetName(name, len(name), device)
        found["devices"].append(name.value.decode(errors="replace"))
    return found


def nccl() -> dict[str, Any]:
    for name in [*files_of_wheels(), "libnccl.so.2"]:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        number = ctypes.c_int()
        library.ncclGetVersion(ctypes.byref(number))
        step = 10000 if number.value >= 20000 else 1000  # since 2.9 the minor version has two digits
        n = number.value
        version = f"{n // step}.{n % step // 100}.{n % 100}"
        return {"path": _mapped("libnccl.so"), "version": version}
    return {"missing": "no libnccl.so.2, neither on the loader's path nor from a wheel"}


PROBES: dict[str, Callable[[], dict[str, Any]]] = {f.__name__: f for f in (mpi, gpu_memory, core, cuda, nccl)}

if __name__ == "__main__":
    print("\n" + json.dumps(PROBES[sys.argv[1]]()))
