"""What checksums cost an all-reduce between hosts: with and without them in turn, in one job.

    python tests/cluster/hosts.py run --hosts 2 [--rate 1gbit] -- python tests/cluster/checksum_cost.py [ROUNDS]

Rank 0 prints a line for each size: milliseconds a call without and with, the medians over all rounds, and the median of
the ratios of neighbouring rounds with their quartiles.
"""

import os
import statistics
import sys
import time

import numpy as np

import ringdp

SIZES = (64 << 10, 1 << 20, 16 << 20, 64 << 20)
SECONDS = 0.4  # of calls of one size, in a round


def calls(data: np.ndarray, times: int) -> float:
    """Seconds a call."""
    ringdp.barrier()
    began = time.perf_counter()
    for _ in range(times):
        ringdp.allreduce_(data, op=ringdp.Max)
    return (time.perf_counter() - began) / times


def measure(checksum: str, times: dict[int, int]) -> dict[int, float]:
    os.environ["RINGDP_CHECKSUM"] = checksum
    ringdp.init()
    taken = {}
    for size in SIZES:
        data = np.ones(size // 4, np.float32)
        calls(data, 1)
        if size not in times:
            mine = max(1, min(1000, int(SECONDS / calls(data, 2))))
            times[size] = int(ringdp.broadcast(np.array(mine), 0))
        taken[size] = calls(data, times[size])
    ringdp.shutdown()
    return taken


def main() -> None:
    times: dict[int, int] = {}
    measure("0", times)
    rounds = []
    for i in range(int(sys.argv[1]) if len(sys.argv) > 1 else 15):
        order = ("0", "1") if i % 2 else ("1", "0")
        rounds.append({checksum: measure(checksum, times) for checksum in order})
    ringdp.init()
    if ringdp.rank() == 0:
        for size in SIZES:
            without, with_ = ([1e3 * one[c][size] for one in rounds] for c in "01")
            low, middle, high = statistics.quantiles([b / a for a, b in zip(without, with_, strict=True)])
            print(
                f"{size >> 10:6} KiB  without {statistics.median(without):8.3f} ms  with "
                f"{statistics.median(with_):8.3f} ms  cost {100 * (middle - 1):+.1f} % "
                f"({100 * (low - 1):+.1f} to {100 * (high - 1):+.1f})",
                flush=True,
            )
    ringdp.shutdown()


if __name__ == "__main__":
    main()
