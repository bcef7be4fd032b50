"""A rank of the all-reduces that bandwidth.py times. Arguments: sizes in bytes."""

from __future__ import annotations

import statistics

import cupy
import numpy as np
from cupy.cuda import runtime

import ringdp
import ringdp.cupy as rdp
from gpu_check.device import milliseconds
from gpu_check.mpi import rank_main, slowest, together

WARM_UP = 2
PERIOD = 1009  # of the values; a prime, so that no chunk begins as another one does


def values(count: int, times: int) -> np.ndarray:
    """Sums of some ranks' are exact."""
    return (np.arange(count, dtype=np.int64) % PERIOD * times).astype(np.float32)


class Summed:
    """A tensor that is summed in place again and again: outputs of their own would be as many as are in flight."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes, self.count, n = nbytes, nbytes // 4, ringdp.size()
        self._before = cupy.array(values(self.count, ringdp.rank() + 1))
        self._wanted = values(self.count, n * (n + 1) // 2)
        self.tensor = cupy.empty(self.count, "float32")

    def fill(self) -> None:
        to, stream = self.tensor.data.ptr, cupy.cuda.get_current_stream()
        runtime.memcpyAsync(to, self._before.data.ptr, self.nbytes, runtime.memcpyDeviceToDevice, stream.ptr)
        stream.synchronize()

    def check(self) -> None:
        wrong = int((self.tensor.get() != self._wanted).sum())
        assert wrong == 0, f"{wrong} of {self.count} sums are wrong"


def measure(nbytes: int) -> dict[str, float]:
    summed, times = Summed(nbytes), []
    repetitions = 15 if nbytes <= 16 << 20 else 7
    for _ in range(WARM_UP + repetitions):
        summed.fill()
        together()
        times.append(slowest(milliseconds(lambda: rdp.allreduce_(summed.tensor, op=rdp.Sum))))
        summed.check()
    return {"bytes": nbytes, "ms": statistics.median(times[WARM_UP:]), "repetitions": repetitions}


def carried_out() -> dict[str, int]:
    counters = ringdp.world.current().engine.counters()
    return {name: counters[name] for name in ("by_nccl", "by_chunks", "by_mpi", "by_host_memory")}


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
