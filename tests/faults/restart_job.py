"""A job with commits: it counts exact sums, and in its first attempt rank 1 is killed. What it writes: see said.py."""

import os
import signal
import sys
from pathlib import Path

import numpy as np

import ringdp
from ringdp import elastic

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out
from said import begin, say, say_error

RANK, KILLED_IN, STEPS = 1, 5, 9


def main() -> None:
    ringdp.init()
    rank, size = ringdp.rank(), ringdp.size()
    begin(rank)
    try:
        state = elastic.ObjectState(ringdp.broadcast_object, ringdp.rank, step=0, total=0.0)
        state.resume()
        if os.environ["RINGDP_RESTART"] != "0":
            say(rank, "resumed", step=state.step)
        while state.step < STEPS:
            if state.step == KILLED_IN and os.environ["RINGDP_RESTART"] == "0" and rank == RANK:
                state.flush()
                say(rank, "fault")
                os.kill(os.getpid(), signal.SIGKILL)
            state.total += float(
                ringdp.allreduce(np.full(4, rank + state.step), op=ringdp.Sum, name="loss")[0]
            )
            state.step += 1
            state.commit()
            state.flush()
        wanted = sum(r + s for r in range(size) for s in range(STEPS))
        assert state.total == wanted, (
            f"rank {rank}: a wrong total of all attempts: {state.total}, not {wanted}"
        )
    except BaseException as error:
        say_error(rank, "error", error)
        raise
    say(rank, "end")


main()
