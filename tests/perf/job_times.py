"""A job under mpirun: what the model is calibrated with, and what it is compared with. Writes one JSON object.

latency: seconds that a small message takes between the first and the last rank, half a round trip, the median.
arithmetic: bytes of result that one rank adds a second, while the others do so as well.
seconds: by bytes, of ringdp's all-reduce by the ring, in place, the median over the calls, of the slowest rank.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

os.environ["RINGDP_ALGORITHM"] = "ring"

import numpy as np

import ringdp
from ringdp import _core
from ringdp.cli.measure import barrier
from ringdp.constants import Dtype, ReduceOp

SEGMENT = 65536  # elements of float32: RINGDP_SEGMENT_BYTES
WORDS = 16 << 20  # bytes of each operand: as in a bucket, more than the caches that are a core's own


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--bytes", required=True, help="with commas")
    p.add_argument("--seconds", type=float, default=2.0, help="for one size, about")
    p.add_argument("--out", required=True)
    options = p.parse_args()
    ringdp.init()
    from mpi4py import MPI

    comm = MPI.COMM_WORLD.Dup()
    try:
        result = {
            "ranks": comm.size,
            "latency": latency(comm),
            "arithmetic": arithmetic(comm),
            "seconds": {n: seconds(comm, n, options.seconds) for n in map(int, options.bytes.split(","))},
        }
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        MPI.COMM_WORLD.Abort(1)
        raise
    if comm.rank == 0:
        Path(options.out).write_text(json.dumps(result))
    ringdp.shutdown()


def latency(comm: Any, calls: int = 200) -> float:
    word, last, taken = np.zeros(1, np.int64), comm.size - 1, []
    barrier(comm)
    for _ in range(calls):
        began = perf_counter()
        if comm.rank == 0:
            comm.Send(word, last)
            comm.Recv(word, last)
        elif comm.rank == last:
            comm.Recv(word, 0)
            comm.Send(word, 0)
        taken.append((perf_counter() - began) / 2)
    return float(comm.bcast(median(taken)))


def arithmetic(comm: Any) -> float:
    from mpi4py import MPI

    a, b = (np.ones(WORDS // 4, np.float32) for _ in range(2))
    speeds = []
    barrier(comm)
    for offset in range(0, 4 * (WORDS // 4 - SEGMENT), 4 * SEGMENT):
        began = perf_counter()
        _core.kernels.reduce(
            Dtype.float32,
            ReduceOp.Sum,
            a.ctypes.data + offset,
            a.ctypes.data + offset,
            b.ctypes.data + offset,
            SEGMENT,
        )
        speeds.append(4 * SEGMENT / (perf_counter() - began))
    return float(comm.allreduce(median(speeds), op=MPI.MIN))


def seconds(comm: Any, nbytes: int, budget: float) -> float:
    x = np.zeros(max(1, nbytes // 4), np.float32)
    taken: list[float] = []
    while len(taken) < 5 or not comm.bcast(sum(taken[2:]) > budget or len(taken) > 500):
        barrier(comm)
        began = perf_counter()
        ringdp.allreduce_(x, op=ringdp.Sum, name=f"of {nbytes} bytes")
        taken.append(perf_counter() - began)
    return float(max(comm.allgather(median(taken[2:]))))


if __name__ == "__main__":
    main()
