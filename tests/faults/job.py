"""The job that faults are injected into: a loop of exact all-reduces, a small and a large one a step.

    python job.py --steps 20 --do sleep --rank 1 --step 5

What RINGDP_INJECT does in the core, `--do` does in Python; each rank writes what becomes of it to `said-RANK` in
the working directory: a line of JSON with the time and the exception, if there was one.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import time

import numpy as np

import ringdp

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


def say(rank: int, what: str, **more: object) -> None:
    with open(f"said-{rank}", "a") as file:
        print(json.dumps({"what": what, "time": time.time(), **more}), file=file, flush=True)


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
        if step == 0:
            say(rank, "step")
    say(rank, "end")


def main() -> None:
    o = options()
    if (
        o.do == "never"
        and int(os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK", "0"))) == o.rank
    ):
        time.sleep(100)
    ringdp.init()
    say(ringdp.rank(), "begin", pid=os.getpid())
    # Whoever is gone is not waited for, however patient the others are.
    patient = ringdp.patience(o.patience) if o.do == "stop" and o.patience else contextlib.nullcontext()
    try:
        with patient:
            train(o)
    except BaseException as error:
        say(ringdp.rank(), "error", type=type(error).__name__, text=str(error))
        raise


main()
