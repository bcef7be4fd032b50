"""The job that faults are injected into: a loop of exact all-reduces, a small and a large one a step.

    python job.py --steps 20 --do sleep --rank 1 --step 5

What RINGDP_INJECT does in the core, `--do` does in Python; what each rank writes: see said.py.
"""

import argparse
import contextlib
import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np

import ringdp

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out
from said import begin, say, say_error

LARGE = 1 << 20  # float32: 4 MiB


def options() -> argparse.Namespace:
    p = argparse.ArgumentParser()
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--do", default="")
    p.add_argument("--rank", type=int, default=1)
    p.add_argument("--step", type=int, default=5)
    p.add_argument("--pause", type=float, default=0, help="seconds of computing in each step")
    p.add_argument("--patience", type=float, default=0)
    return p.parse_args()


def prepare_batch(seconds: float) -> None:
    """What a rank is busy with, as its stack shows."""
    time.sleep(seconds)


def spin_in_python(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def computes(step: int, o: argparse.Namespace) -> None:
    if o.pause:
        time.sleep(o.pause)
    if ringdp.rank() != o.rank or step != o.step:
        return
    say(o.rank, "fault")
    match o.do:
        case "sleep":
            prepare_batch(100)
        case "spin":
            spin_in_python(100)
        case "validate":
            with ringdp.patience(o.patience):
                prepare_batch(o.patience)
        case "late":
            prepare_batch(o.patience)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "raise":
            raise ValueError("the data is broken")
        case "exit":
            sys.exit(3)
        case "leave":
            sys.exit(0)
        case "die":
            os._exit(7)
        case "lack-memory":
            np.empty(1 << 56)
        case "lack-shared-memory":
            lack_shared_memory()
        case "fork":
            call_in_a_child(o.rank)


def lack_shared_memory() -> None:
    """No file can grow any more, that of this rank's shared memory included."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
    try:
        ringdp.empty((16 * LARGE,), np.float32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def call_in_a_child(rank: int) -> None:
    """The ranks are its parent's business: a call of the child must say so, and disturb nobody."""
    child = os.fork()
    if child == 0:
        expect_not_initialized(rank)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def expect_not_initialized(rank: int) -> None:
    try:
        ringdp.allreduce(np.ones(3), name="loss")
    except ringdp.NotInitializedError as error:
        say_error(rank, "caught", error)


def is_sum(total: np.ndarray, size: int, step: int) -> bool:
    return bool((total == sum(r + 1 + step for r in range(size))).all())


def train(o: argparse.Namespace) -> None:
    rank, size = ringdp.rank(), ringdp.size()
    large = ringdp.empty((LARGE,), np.float32)
    for step in range(o.steps):
        computes(step, o)
        small = ringdp.allreduce(np.full(4, rank + 1 + step, np.float32), op=ringdp.Sum, name="loss")
        assert is_sum(small, size, step), f"rank {rank}: a wrong sum: {small}"
        large.fill(rank + 1 + step)
        ringdp.allreduce_(large, op=ringdp.Sum, name="gradients")
        assert is_sum(large, size, step), f"rank {rank}: a wrong sum of the gradients in step {step}"
        if o.do == "until-asked" and ringdp.should_stop():
            say(rank, "saved", step=step)
            ringdp.stop()
        if step == 0:
            say(rank, "step")
    say(rank, "end")


def number_by_launcher() -> int:
    """Of a rank that has not called `init()`."""
    return int(os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK", "0")))


def main() -> None:
    o = options()
    if o.do == "never" and number_by_launcher() == o.rank:
        time.sleep(100)
    if o.do == "outside" and number_by_launcher() == o.rank:
        expect_not_initialized(o.rank)
    ringdp.init()
    rank = ringdp.rank()
    begin(rank)
    # Whoever is gone is not waited for, however patient the others are.
    patient = ringdp.patience(o.patience) if o.do == "stop" and o.patience else contextlib.nullcontext()
    try:
        with patient:
            if o.do == "outside":
                ringdp.init()  # a second one does nothing
            train(o)
    except BaseException as error:
        say_error(rank, "error", error)
        raise
    if o.do == "outside":
        ringdp.shutdown()
        if rank == o.rank:
            expect_not_initialized(rank)


main()
