"""What the flight recorder costs, and the figure of who is slow that is made of it, beside an all-reduce of 1 MiB.

ringdp run -n 2 tests/perf/flight.py
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

import ringdp
from ringdp import _core

ROUNDS, TIMES = 200, 200_000


def all_reduce() -> float:
    """Seconds, the median: in memory that the ranks of a host share, as buckets are."""
    x = ringdp.empty((1 << 18,), np.float32)
    x.fill(0)
    seconds = []
    for _ in range(ROUNDS):
        ringdp.barrier()
        began = time.perf_counter()
        ringdp.allreduce_(x, op=ringdp.Sum, name="x")
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def record() -> float:
    """Seconds, the best of five."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        watch = _core.Watch(str(Path(folder) / "one.flight"), 0, 1, 0, 1, "")
        try:
            return min(watch.seconds_per_record(TIMES) for _ in range(5))
        finally:
            watch.close()


def figure() -> float:
    """Seconds for a call of `stragglers()`, the best of 50: without waiting for a rank that came to it late."""
    seconds = []
    for _ in range(50):
        ringdp.barrier()
        began = time.perf_counter()
        ringdp.stragglers()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def main() -> None:
    ringdp.init()
    whole, asked = all_reduce(), figure()
    ringdp.barrier()
    if ringdp.rank() == 0:
        one = record()
        print(
            f"a record {one * 1e9:.0f} ns, an all-reduce of 1 MiB on {ringdp.size()} ranks {whole * 1e6:.0f} us: "
            f"{100 * one / whole:.3f} %; stragglers() {asked * 1e3:.1f} ms, once in 4,096 of them "
            f"{100 * asked / (4096 * whole):.2f} %"
        )
    ringdp.barrier()


main()
