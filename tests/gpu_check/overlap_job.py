"""A rank of what overlap.py times. Arguments: bytes to exchange; bytes to compute on; launches to begin with.

It computes by launches of the scale kernel, as many as take about as long as the exchange. Each doubles what the one
before has halved.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import cupy
import numpy as np
from unit.test_kernels import DTYPES

import ringdp
import ringdp.cupy as rdp
from gpu_check.bandwidth_job import Summed
from gpu_check.device import milliseconds
from gpu_check.mpi import rank_main, slowest, together
from ringdp import _core

FLOAT32 = DTYPES.index("float32")
MOST = 20_000  # launches
WARM_UP, REPETITIONS = 2, 7


class Computing:
    """In a stream of its own."""

    def __init__(self, gpu: int, nbytes: int, launches: int) -> None:
        self.gpu, self.stream, self.count, self.launches = (
            gpu,
            cupy.cuda.Stream(non_blocking=True),
            nbytes // 4,
            launches,
        )
        self.values, self.doubled = cupy.array(np.ones(self.count, np.float32)), False

    def __call__(self) -> None:
        at = self.values.data.ptr
        for _ in range(self.launches):
            factor = 0.5 if self.doubled else 2.0
            _core.gpu.kernels.scale(self.gpu, self.stream.ptr, FLOAT32, at, at, factor, self.count)
            self.doubled = not self.doubled

    def check(self) -> None:
        with self.stream:
            assert (self.values.get() == (2.0 if self.doubled else 1.0)).all(), "what was computed is wrong"


class Exchange:
    """In the current stream, which waits for it."""

    def __init__(self, nbytes: int) -> None:
        self.summed = Summed(nbytes)

    def begin(self) -> object:
        return rdp.allreduce_async_(self.summed.tensor, op=rdp.Sum)

    def end(self, handle: object) -> None:
        rdp.synchronize(handle)


def alone(computing: Computing) -> float:
    with computing.stream:
        return milliseconds(computing)


def exchanged(exchange: Exchange) -> float:
    return milliseconds(lambda: exchange.end(exchange.begin()))


def at_once(computing: Computing, exchange: Exchange) -> float:
    def both() -> None:
        begun, done = cupy.cuda.Event(), cupy.cuda.Event()
        begun.record()
        computing.stream.wait_event(begun)
        handle = exchange.begin()
        computing()
        done.record(computing.stream)
        exchange.end(handle)
        cupy.cuda.get_current_stream().wait_event(done)

    return milliseconds(both)


def median(work: Callable[..., float], *arguments: object) -> float:
    exchanges, times = [one for one in arguments if isinstance(one, Exchange)], []
    for _ in range(WARM_UP + REPETITIONS):
        for one in exchanges:
            one.summed.fill()
        together()
        times.append(slowest(work(*arguments)))
        for one in exchanges:
            one.summed.check()
    return statistics.median(times[WARM_UP:])


def body(arguments: list[str]) -> dict[str, object]:
    nbytes, computed, tried = map(int, arguments)
    gpu = ringdp.local_rank() % cupy.cuda.runtime.getDeviceCount()
    with cupy.cuda.Device(gpu), cupy.cuda.Stream(non_blocking=True):
        computing, exchange = Computing(gpu, computed, tried), Exchange(nbytes)
        cupy.cuda.get_current_stream().synchronize()
        exchange_ms = median(exchanged, exchange)
        computing.launches = min(MOST, math.ceil(tried * exchange_ms / median(alone, computing)))
        computing_ms = median(alone, computing)
        found = {
            "computing": computing_ms,
            "exchange": exchange_ms,
            "at once": median(at_once, computing, exchange),
            "launches": computing.launches,
            "repetitions": REPETITIONS,
        }
        computing.check()
    return found


if __name__ == "__main__":
    rank_main(body)
