"""One size of `ringdp bench`: every contestant checked and timed, in both forms."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from ringdp.cli.contestants import Contestant

ITEMSIZE = {
    "bool": 1, "uint8": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8,
    "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8,
}  # fmt: skip


def bandwidths(size: int, microseconds: float, ranks: int) -> tuple[float, float]:
    """(algbw, busbw) in GB/s, 10^9 bytes a second."""
    algbw = size / microseconds / 1e3 if microseconds > 0 else 0.0
    return algbw, algbw * 2 * (ranks - 1) / ranks


def wrong_elements(one: Contestant, comm: Any, op: str, dtype: str, count: int, in_place: bool) -> int:
    """One checked iteration: elements over all ranks that differ from what they must be.

    Out of place, an element of the input that was changed counts as well.
    """
    from ringdp.cli import inputs

    given = inputs.input_of(comm.rank, comm.size, op, dtype, count)
    return differing(one, comm, op, dtype, given, inputs.expected(comm.size, op, dtype, count), in_place)


def differing(
    one: Contestant,
    comm: Any,
    op: str,
    dtype: str,
    given: np.ndarray[Any, Any],
    wanted: np.ndarray[Any, Any],
    in_place: bool,
) -> int:
    """The same for an input that is there already, with the result that it must have."""
    import numpy as np

    x = one.array(given, dtype)
    result = one.numbers((one.allreduce_ if in_place else one.allreduce)(x, op))
    wrong = given.size if result.shape != wanted.shape else int(np.count_nonzero(result != wanted))
    if not in_place:
        wrong += int(np.count_nonzero(one.numbers(x) != given))
    return int(comm.allreduce(wrong))


def barrier(comm: Any) -> None:
    """First one that sleeps, so that a rank that came early keeps no core from another one's threads (they may still be
    in the last call); then, with all here, one that spins: the ranks leave it within a microsecond."""
    request = comm.Ibarrier()
    while not request.Test():
        sleep(50e-6)
    comm.Barrier()


def take_turns(
    calls: Sequence[Callable[[], object]], comm: Any, warmup: int, iterations: int
) -> list[list[float]]:
    """Seconds on this rank of each iteration of each call, all ranks calling alike.

    The calls take turns, so that whatever else the machine does hits all of them alike; each begins with a barrier. The
    order is drawn anew for each turn: who comes after a call that leaves the caches full or threads awake is at a
    disadvantage, and it must not always be the same one.
    """
    taken: list[list[float]] = [[] for _ in calls]
    order, draw = list(range(len(calls))), Random(0)  # the same on all ranks
    for iteration in range(warmup + iterations):
        draw.shuffle(order)
        for i in order:
            barrier(comm)
            start = perf_counter()
            calls[i]()
            if iteration >= warmup:
                taken[i].append(perf_counter() - start)
    return taken


def slowest(taken: Sequence[Sequence[float]], comm: Any) -> list[float]:
    """Microseconds of each call: the median of its iterations, of the slowest rank."""
    from statistics import median

    return [max(comm.allgather(median(mine) * 1e6)) for mine in taken]


def times(
    contestants: Sequence[Contestant], comm: Any, options: argparse.Namespace, count: int, in_place: bool
) -> list[float]:
    """Microseconds of each contestant: the median of its iterations, of the slowest rank."""
    from ringdp.cli import inputs

    given = inputs.input_of(comm.rank, comm.size, options.op, options.datatype, count)
    calls: list[Callable[[], object]] = []
    for one in contestants:
        x = one.array(given, options.datatype)
        calls.append(partial(one.allreduce_ if in_place else one.allreduce, x, options.op))
    return slowest(take_turns(calls, comm, options.warmup_iters, options.iters), comm)


Row = dict[str, Any]


def measure(
    contestants: Sequence[Contestant], comm: Any, options: argparse.Namespace, size: int
) -> list[Row]:
    """A row for each contestant; the first is the one the ratios are taken to."""
    count = size // ITEMSIZE[options.datatype]
    fixed = {"size": size, "count": count, "type": options.datatype, "redop": options.op, "root": -1}
    rows: list[Row] = [{**fixed, "contestant": one.name} for one in contestants]
    forms = {"both": (False, True), "yes": (True,), "no": (False,)}[options.in_place]
    for in_place in forms:
        wrong: list[int | None] = [None] * len(contestants)
        for i, one in enumerate(contestants if options.check else ()):
            checks = range(options.check)
            wrong[i] = sum(
                wrong_elements(one, comm, options.op, options.datatype, count, in_place) for _ in checks
            )
        taken = times(contestants, comm, options, count, in_place)
        for row, bad, t in zip(rows, wrong, taken, strict=True):
            algbw, busbw = bandwidths(size, t, comm.size)
            row["in_place" if in_place else "out_of_place"] = {
                "time_us": t, "algbw": algbw, "busbw": busbw, "wrong": bad, "ratio": t / taken[0] if taken[0] else None,
            }  # fmt: skip
    return rows
