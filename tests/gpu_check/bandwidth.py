"""How fast this machine copies, and how fast ringdp all-reduces beside that: figures of one run, for one machine.

Bandwidth here is bytes of the tensor by time; of the bus, as NCCL's tests have it, 2 (n - 1) / n times that for n
ranks. Through host memory, two ranks on one GPU share its link and copy the whole tensor both ways.
"""

from __future__ import annotations

from collections.abc import Callable

import cupy
from cupy.cuda import runtime

from gpu_check.device import Pinned, median_milliseconds
from gpu_check.mpi import run_job
from gpu_check.results import Result, Results
from gpu_check.suite import MOST_GPUS, gpus, need_gpus

MIB = 2**20
SIZES = (1 * MIB, 4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB)
QUICK_SIZES = (1 * MIB, 4 * MIB)
COPIED, QUICK_COPIED = 128 * MIB, 4 * MIB
WARM_UP, REPETITIONS = 3, 15
HOST_TO_DEVICE, DEVICE_TO_HOST = "copy from the host", "copy to the host"
ON_DEVICE, TO_PEER = "copy on the GPU", "copy to the next GPU"


def run(results: Results) -> None:
    nbytes = QUICK_COPIED if results.quick else COPIED
    speeds: dict[str, float] = {}
    with cupy.cuda.Device(0), cupy.cuda.Stream(non_blocking=True) as stream:
        for name, work in copies(nbytes, stream.ptr).items():
            what = f"{nbytes // MIB} MiB, median of {REPETITIONS} by events after {WARM_UP}"
            with results.check(name, what) as result:
                speeds[name] = copied(result, nbytes, work)
    between_gpus(results, nbytes, speeds)
    host = min(speeds.get(HOST_TO_DEVICE, 0), speeds.get(DEVICE_TO_HOST, 0))
    all_reduces(results, 2, "host", "through host memory on one GPU", host)
    with results.check("all-reduce by NCCL", "a rank for each GPU"):
        need_gpus(2)
    if gpus() > 1:
        ranks = min(gpus(), MOST_GPUS)
        all_reduces(results, ranks, "nccl", f"by NCCL on {ranks} GPUs", speeds.get(TO_PEER, 0))


def copies(nbytes: int, stream: int) -> dict[str, Callable[[], None]]:
    host, here, there = Pinned(nbytes), cupy.empty(nbytes, "uint8"), cupy.empty(nbytes, "uint8")
    a, b, h = here.data.ptr, there.data.ptr, host.address
    keep = (host, here, there)

    def copy(to: int, from_: int, kind: int) -> Callable[[], None]:
        return lambda keep=keep: runtime.memcpyAsync(to, from_, nbytes, kind, stream)

    return {
        HOST_TO_DEVICE: copy(a, h, runtime.memcpyHostToDevice),
        DEVICE_TO_HOST: copy(h, a, runtime.memcpyDeviceToHost),
        ON_DEVICE: copy(b, a, runtime.memcpyDeviceToDevice),
    }


def copied(result: Result, nbytes: int, work: Callable[[], None]) -> float:
    time = median_milliseconds(work, WARM_UP, REPETITIONS)
    result.figures["bandwidth"] = (nbytes / time / 1e6, "GB/s")
    result.figures["time"] = (time, "ms")
    return nbytes / time / 1e6


def between_gpus(results: Results, nbytes: int, speeds: dict[str, float]) -> None:
    with results.check(TO_PEER, f"{nbytes // MIB} MiB from GPU 0 to GPU 1") as result:
        need_gpus(2)
        with cupy.cuda.Device(1):
            there = cupy.empty(nbytes, "uint8")
        with cupy.cuda.Device(0), cupy.cuda.Stream(non_blocking=True) as stream:
            here = cupy.empty(nbytes, "uint8")

            def work() -> None:
                runtime.memcpyPeerAsync(there.data.ptr, 1, here.data.ptr, 0, nbytes, stream.ptr)

            speeds[TO_PEER] = copied(result, nbytes, work)


def all_reduces(results: Results, ranks: int, way: str, where: str, copy: float) -> None:
    sizes = QUICK_SIZES if results.quick else fitting(SIZES, ranks)
    label = "all-reduce " + ("through the host" if way == "host" else "by NCCL")
    with results.check(label, f"{ranks} ranks {where}, float32, every sum exact"):
        limit = (0.5 if way == "host" else 0.9) * results.seconds_left()
        found = run_job("bandwidth_job", ranks, way, limit, *map(str, sizes))
        wanted = "by_host_memory" if way == "host" else "by_nccl"
        assert found["by"] == [wanted], f"it was carried out {', '.join(found['by'])}, not {wanted}"
        for row in found["sizes"]:
            add_row(results, label, ranks, where, row, copy)


def add_row(results: Results, label: str, ranks: int, where: str, row: dict[str, float], copy: float) -> None:
    nbytes, time = int(row["bytes"]), row["ms"]
    what = f"{ranks} ranks {where}; median of {row['repetitions']} by events, each the slowest rank's"
    with results.check(f"{label}, {nbytes // MIB} MiB", what) as result:
        speed = nbytes / time / 1e6
        result.figures["time"] = (time, "ms")
        result.figures["bandwidth"] = (speed, "GB/s")
        result.figures["of the bus"] = (speed * 2 * (ranks - 1) / ranks, "GB/s")
        if copy:
            result.figures["by that of the copy"] = (speed / copy, "")


def fitting(sizes: tuple[int, ...], ranks: int) -> tuple[int, ...]:
    """Those for which the memory of a GPU is enough, with both tensors of all ranks there, and as much again."""
    free, _ = runtime.memGetInfo()
    return tuple(size for size in sizes if 4 * ranks * size <= free) or sizes[:1]
