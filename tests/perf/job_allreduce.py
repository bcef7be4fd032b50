"""A job under mpirun: all-reduces of several sizes by several contestants, who take turns.

Two ways of timing. "each": every call begins with a barrier; the time of a round is the median over its calls, of the
slowest rank. "loop": calls follow each other, a thousand and more, as in osu_allreduce; the time of a round is the
mean, of the slowest rank. For calls of a few microseconds only the second says something.
"""

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

OP = "sum"
MOST, LEAST = 400, 3  # calls of a round, "each"
MOST_IN_LOOP = 5000  # a call that spins takes a thousand times as long when its core is taken away
SLOW = 1.0  # seconds of one turn of all above which a round is one turn, and none goes unmeasured before it


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--counts", required=True, help="elements, with commas")
    p.add_argument("--entries", required=True, help="contestants, with commas: see contestants.py")
    p.add_argument("--timing", choices=["each", "loop"], default="each")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--seconds", type=float, default=1.0, help="of a round of one size, about")
    p.add_argument("--library", default="", help="the floors")
    p.add_argument("--out", required=True)
    options = p.parse_args()

    import ringdp

    ringdp.init()
    from mpi4py import MPI

    comm = MPI.COMM_WORLD.Dup()
    try:
        measure_all(options, comm)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        MPI.COMM_WORLD.Abort(1)
        raise
    ringdp.shutdown()


def measure_all(options: argparse.Namespace, comm: Any) -> None:
    """Writes what there is after each size."""
    from mpi4py import MPI
    from perf import contestants

    from ringdp import launch

    able, left_out = contestants.entries(options.entries.split(","), comm, options.library, OP)
    library = launch.library_name(MPI.Get_library_version())
    result: dict[str, Any] = {"ranks": comm.size, "mpi": library, "points": [], "left_out": left_out}
    for count in map(int, options.counts.split(",")):
        wrong = wrong_elements(able, comm, count)
        arrays = [array_of(entry, comm, count) for entry in able]
        calls = [entry.ready(x, OP) for entry, x in zip(able, arrays, strict=True)]
        rounds = (each if options.timing == "each" else loop)(calls, comm, options)
        for entry, bad, us in zip(able, wrong, rounds, strict=True):
            result["points"].append({"entry": entry.spelled, "count": count, "us": us, "wrong": bad})
        if comm.rank == 0:
            Path(options.out).write_text(json.dumps(result))
        del arrays, calls
    for one in {id(entry.one): entry.one for entry in able}.values():
        one.close()


def wrong_elements(able: Sequence[Any], comm: Any, count: int) -> list[int | None]:
    """One checked call of each: elements over all ranks that are not exactly what they must be."""
    from ringdp.cli import inputs, measure

    found: dict[str, int] = {}
    for dtype in {entry.checked: None for entry in able if entry.checked}:
        given = inputs.input_of(comm.rank, comm.size, OP, dtype, count)
        wanted = inputs.expected(comm.size, OP, dtype, count)
        for entry in able:
            if entry.checked == dtype:
                found[entry.spelled] = measure.differing(entry.one, comm, OP, dtype, given, wanted, True)
    return [found.get(entry.spelled) for entry in able]


def array_of(entry: Any, comm: Any, count: int) -> Any:
    import numpy as np

    from ringdp.cli import inputs

    return entry.one.array(np.zeros(count, inputs.storage(entry.dtype)), entry.dtype)


def each(calls: Sequence[Callable[[], object]], comm: Any, options: argparse.Namespace) -> list[list[float]]:
    """Microseconds of each call, one number a round."""
    from ringdp.cli import measure

    first = measure.take_turns(calls, comm, warmup=1, iterations=1)
    turn = sum(measure.slowest(first, comm)) / 1e6
    warmup, least = (0, 1) if turn > SLOW else (1, LEAST)
    iterations = max(least, min(MOST, int(options.seconds / turn)))
    rounds = [
        measure.slowest(measure.take_turns(calls, comm, warmup, iterations), comm)
        for _ in range(options.rounds)
    ]
    return [list(one) for one in zip(*rounds, strict=True)]


def loop(calls: Sequence[Callable[[], object]], comm: Any, options: argparse.Namespace) -> list[list[float]]:
    """The same, calls back to back."""
    share = options.seconds / len(calls)
    repeats = []
    for call in calls:
        once = back_to_back(call, comm, 20)
        least = 20 if once > 1e-3 else 200 if once > 100e-6 else 1000
        repeats.append(max(least, min(MOST_IN_LOOP, int(share / once))))
    rounds = [
        [back_to_back(call, comm, n) * 1e6 for call, n in zip(calls, repeats, strict=True)]
        for _ in range(options.rounds)
    ]
    return [list(one) for one in zip(*rounds, strict=True)]


def back_to_back(call: Callable[[], object], comm: Any, n: int) -> float:
    """Seconds of one of `n` calls, of the slowest rank, after a fifth as many that are not timed."""
    from ringdp.cli import measure

    for _ in range(n // 5):
        call()
    measure.barrier(comm)
    start = perf_counter()
    for _ in range(n):
        call()
    taken = perf_counter() - start
    return max(comm.allgather(taken / n))


if __name__ == "__main__":
    main()
