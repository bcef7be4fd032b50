"""Ranks of which the last one replays another graph than the others."""

from __future__ import annotations

import time

import cupy
import numpy as np

import ringdp
import ringdp.cupy as rdp
from gpu_check.mpi import rank_main

LIMIT = 20.0  # seconds until it must have been noticed


def body(_: list[str]) -> dict[str, object]:
    number = ringdp.local_rank() % cupy.cuda.runtime.getDeviceCount()
    with cupy.cuda.Device(number), cupy.cuda.Stream(non_blocking=True) as stream:
        x = cupy.array(np.ones(1000, np.float32))
        rdp.allreduce_(x)
        graphs = []
        for _ in range(2):
            stream.begin_capture()
            rdp.allreduce_(x)
            graphs.append(stream.end_capture())
        graphs[ringdp.rank() == ringdp.size() - 1].launch()
        end = time.monotonic() + LIMIT
        try:
            while time.monotonic() < end:
                ringdp.barrier()
                time.sleep(0.1)
        except ringdp.RingdpError as error:
            return {"error": str(error)}
    raise AssertionError("nobody has noticed it")


if __name__ == "__main__":
    rank_main(body)
