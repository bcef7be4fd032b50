"""A rank of the all-reduces that bandwidth.py times. Arguments: sizes in bytes."""

from __future__ import annotations

import statistics

import cupy
import numpy as np

import ringdp
import ringdp.cupy as rdp
from gpu_check.device import milliseconds
from gpu_check.mpi import rank_main, slowest, together

WARM_UP = 2
PERIOD = 1009  # of the values; a prime, so that no chunk begins as another one does


def values(count: int, times: int) -> np.ndarray:
    """Sums of some ranks' are exact."""
    return (np.arange(count, dtype=np.int64) % PERIOD * times).astype(np.float32)


def measure(nbytes: int) -> dict[str, float]:
    count, n = nbytes // 4, ringdp.size()
    x, wanted = cupy.array(values(count, ringdp.rank() + 1)), values(count, n * (n + 1) // 2)
    repetitions = 15 if nbytes <= 16 << 20 else 7
    times, totals = [], []
    for _ in range(WARM_UP + repetitions):
        totals.clear()
        together()
        times.append(slowest(milliseconds(lambda: totals.append(rdp.allreduce(x, op=rdp.Sum)))))
        wrong = int((totals[0].get() != wanted).sum())
        assert wrong == 0, f"{wrong} of {count} sums are wrong"
    return {"bytes": nbytes, "ms": statistics.median(times[WARM_UP:]), "repetitions": repetitions}


def carried_out() -> dict[str, int]:
    counters = ringdp.world.current().engine.counters()
    return {name: counters[name] for name in ("by_nccl", "by_chunks", "by_host_memory")}


def body(arguments: list[str]) -> dict[str, object]:
    number = ringdp.local_rank() % cupy.cuda.runtime.getDeviceCount()
    with cupy.cuda.Device(number), cupy.cuda.Stream(non_blocking=True):
        measure(4)  # the first use, which tries every way there is
        before = carried_out()
        sizes = [measure(int(nbytes)) for nbytes in arguments]
        by = [name for name, number in carried_out().items() if number > before[name]]
    return {"sizes": sizes, "by": by}


if __name__ == "__main__":
    rank_main(body)
