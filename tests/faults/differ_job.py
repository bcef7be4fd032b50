"""A loop of exact all-reduces in which, once or more, a rank asks for something else than the others.

    python differ_job.py --do shape,dtype --elements 1048576

Each rank writes down the error that it gets, sees that its tensor is as it was, and that the next sums are right.
"""

import argparse
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

import ringdp

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out
from said import begin, say, say_error

RANK = 1  # that differs


def options() -> argparse.Namespace:
    p = argparse.ArgumentParser()
    p.add_argument("--do", required=True)
    p.add_argument("--elements", type=int, default=4)
    return p.parse_args()


def tensor(count: int, dtype: str = "float32") -> np.ndarray:
    """In the memory that the ranks share, if they do: element i is rank + 1 + i % 7."""
    data = ringdp.empty((count,), np.dtype(dtype))
    data[:] = np.arange(count) % 7 + ringdp.rank() + 1
    return data


def is_sum(total: np.ndarray) -> bool:
    ranks = ringdp.size()
    return bool((total == np.arange(total.size) % 7 * ranks + ranks * (ranks + 1) // 2).all())


def allreduce_as(usual: dict, odd: dict) -> Callable[[int, bool], None]:
    def call(count: int, is_odd: bool) -> None:
        how = {"op": ringdp.Sum, **usual, **(odd if is_odd else {})}
        data = tensor(count + how.pop("more", 0), how.pop("dtype", "float32"))
        before = data.copy()
        try:
            ringdp.allreduce_(data.reshape(how.pop("shape", (-1,))), name="grad", **how)
        finally:
            assert (data == before).all(), (
                f"rank {ringdp.rank()}: an operation that failed has changed its tensor"
            )

    return call


def broadcast(count: int, is_odd: bool) -> None:
    data = tensor(count)
    before = data.copy()
    try:
        ringdp.broadcast_(data, int(is_odd), name="grad")
    finally:
        assert (data == before).all(), f"rank {ringdp.rank()}: a broadcast that failed has changed its tensor"


def other_kind(count: int, is_odd: bool) -> None:
    call = ringdp.allgather if is_odd else ringdp.allreduce
    call(tensor(count), name="grad")


def twice(count: int, is_odd: bool) -> None:
    """While the others have not come to the first, it cannot have ended."""
    gate = f"after {count}"
    if not is_odd:
        ringdp.barrier()
        assert is_sum(ringdp.allreduce(tensor(count), op=ringdp.Sum, name="grad")), gate
        return
    first = ringdp.allreduce_async(tensor(count), op=ringdp.Sum, name="grad")
    try:
        ringdp.allreduce_async(tensor(count), op=ringdp.Sum, name="grad")
    finally:
        ringdp.barrier()
        assert is_sum(first.wait()), gate


def swapped(count: int, is_odd: bool) -> None:
    """Two of the same shape, in the other order on one rank: by name each gets its own sum."""
    one, other = tensor(count), tensor(count)
    other += 1
    both = [("one", one), ("other", other)]
    handles = {
        name: ringdp.allreduce_async(data, op=ringdp.Sum, name=name)
        for name, data in both[:: -1 if is_odd else 1]
    }
    assert is_sum(handles["one"].wait()) and is_sum(handles["other"].wait() - ringdp.size())
    blocking = {}
    for name, data in both:  # and where they block, in threads
        blocking[name] = threading.Thread(
            target=lambda n=name, d=data: ringdp.allreduce_(d, op=ringdp.Sum, name=n)
        )
    for name in list(blocking)[:: -1 if is_odd else 1]:
        blocking[name].start()
    for thread in blocking.values():
        thread.join()
    assert is_sum(one) and is_sum(other - ringdp.size())


DO: dict[str, Callable[[int, bool], None]] = {
    "count": allreduce_as({}, {"more": 2}),
    "shape": allreduce_as({"shape": (2, -1)}, {"shape": (-1, 2)}),
    "dtype": allreduce_as({}, {"dtype": "int32"}),
    "op": allreduce_as({"op": ringdp.Min}, {"op": ringdp.Max}),
    "average": allreduce_as({}, {"op": ringdp.Average}),
    "prescale": allreduce_as({}, {"prescale_factor": 0.5}),
    "postscale": allreduce_as({}, {"postscale_factor": 0.5}),
    "root": broadcast,
    "kind": other_kind,
    "twice": twice,
    "swapped": swapped,
}  # fmt: skip


def main() -> None:
    o = options()
    ringdp.init()
    rank = ringdp.rank()
    begin(rank)
    try:
        for what in o.do.split(","):
            say(rank, "fault")
            try:
                DO[what](o.elements, rank == RANK)
            except ringdp.RingdpError as error:
                say_error(rank, "caught", error)
            for _ in range(2):
                assert is_sum(ringdp.allreduce(tensor(o.elements), op=ringdp.Sum, name="grad")), "a wrong sum"
    except BaseException as error:
        say_error(rank, "error", error)
        raise
    say(rank, "end")


main()
