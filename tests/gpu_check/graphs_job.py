"""A rank of the replays that graphs.py looks at: sums by NCCL, minima in chunks by kernels of ours."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import cupy
import numpy as np

import ringdp
import ringdp.cupy as rdp
from gpu_check.bandwidth_job import values
from gpu_check.device import milliseconds
from gpu_check.mpi import rank_main, slowest, together

COUNT, REPLAYS = 300_007, 25


def given(rank: int, replay: int) -> np.ndarray:
    return values(COUNT, rank + 1 + replay)


def put(tensor: cupy.ndarray, array: np.ndarray) -> None:
    tensor[...] = cupy.array(array)


def timed(work: Callable[[], None]) -> float:
    together()
    return slowest(milliseconds(work))


def body(_: list[str]) -> dict[str, object]:
    number = ringdp.local_rank() % cupy.cuda.runtime.getDeviceCount()
    rank, n = ringdp.rank(), ringdp.size()
    with cupy.cuda.Device(number), cupy.cuda.Stream(non_blocking=True) as stream:
        x, y = cupy.array(given(rank, 0)), cupy.array(given(rank, 0))

        def calls() -> None:
            rdp.allreduce_(x, op=rdp.Sum)
            rdp.allreduce_(y, op=rdp.Min)

        calls()  # the first use, which tries every way there is
        stream.begin_capture()
        calls()
        graph = stream.end_capture()
        times: dict[str, list[float]] = {"replay": [], "calls": []}
        for replay in range(REPLAYS):
            for kind, work in (("replay", graph.launch), ("calls", calls)):
                put(x, given(rank, replay)), put(y, given(rank, replay))
                times[kind].append(timed(work))
                all_given = [given(r, replay) for r in range(n)]
                assert (x.get() == sum(all_given)).all(), f"{kind} {replay}: wrong sums"
                assert (y.get() == np.minimum.reduce(all_given)).all(), f"{kind} {replay}: wrong minima"
        del graph
    return {"replays": REPLAYS, **{kind: statistics.median(all_of) for kind, all_of in times.items()}}


if __name__ == "__main__":
    rank_main(body)
