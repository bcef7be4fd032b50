"""A job that goes on without ranks that are lost: exact all-reduces with a commit in each step, by NumPy alone.

    ringdp run --elastic -n 3 elastic_job.py --steps 30

What is injected is RINGDP_INJECT's, or `--do` of rank 1 before step 10, or in all that `--kill-at` says; or `--new`, of
a process that takes a lost rank's place. Each rank writes to `said-PID` who it is when it begins or goes on, and how it
ends.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

import ringdp
from ringdp import elastic
from ringdp.state import broadcast_object


def say(what: str, **more: object) -> None:
    with open(f"said-{os.getpid()}", "a") as file:
        print(json.dumps({"what": what, "rank": ringdp.rank(), "size": ringdp.size(), **more}), file=file)


def fault(do: str) -> None:
    match do:
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "raise":
            raise ValueError("the data is broken")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            sys.exit(0)
        case "exchange":
            ringdp.barrier()
        case "mismatch":
            ringdp.allreduce(np.zeros(ringdp.rank() + 1), name="of another shape")


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--steps", type=int, default=30)
    p.add_argument("--do", default="")
    p.add_argument("--kill-at", type=int, nargs="*", default=[], help="steps")
    p.add_argument("--new", default="", help="what a spare does when init() has returned")
    p.add_argument("--all", default="", help="what all do then")
    p.add_argument("--pause", type=float, default=0.0, help="seconds for each step")
    o = p.parse_args()
    pair = ringdp.ProcessSet([0, 1])
    sets = [pair]
    if int(os.environ["OMPI_COMM_WORLD_SIZE"]) - int(os.environ.get("RINGDP_SPARES", "0")) > 2:
        pair = ringdp.ProcessSet([0, 2])
        sets = [pair, ringdp.ProcessSet([0, 1])]
    ringdp.init(process_sets=sets)
    first, size = ringdp.rank(), ringdp.size()
    is_new = int(os.environ["OMPI_COMM_WORLD_RANK"]) >= size
    say("init", pid=os.getpid())
    if is_new and not os.path.exists("done-by-new"):  # once
        Path("done-by-new").touch()
        fault(o.new)
    fault(o.all)
    state = elastic.ObjectState(broadcast_object, ringdp.rank, step=0, sums=[])
    todo = [o.do] if first == 1 or o.do == "mismatch" else []

    def train(state: elastic.ObjectState) -> None:
        say("begin", pid=os.getpid(), step=state.step)
        large = ringdp.empty((1 << 18,), np.float32)  # in memory that the host's ranks share
        while state.step < o.steps:
            if state.step == 10 and todo:
                fault(todo.pop())
            if ringdp.rank() == 1 and state.step in o.kill_at and not os.path.exists(f"killed-{state.step}"):
                Path(f"killed-{state.step}").touch()
                fault("kill")
            time.sleep(o.pause)
            if ringdp.should_stop():
                ringdp.stop()
            Path(f"looks-{ringdp.rank()}").touch()  # from now on it stops if it is asked
            large.fill(ringdp.rank() + 1 + state.step)
            ringdp.allreduce_(large, op=ringdp.Sum, name=f"gradients {state.step}")
            wanted = sum(rank + 1 + state.step for rank in range(ringdp.size()))
            assert (large == wanted).all(), f"a wrong sum in step {state.step}: {large[:4]}, not {wanted}"
            state.step += 1
            state.sums = [*state.sums, int(wanted)]
            state.commit()

    elastic.run_fn(train, elastic.reset)(state)
    # Of the process sets, that of the ranks that live is there, by their new numbers.
    together = None
    if pair.process_set_id is not None and pair.included():
        together = ringdp.allreduce(np.ones(1), op=ringdp.Sum, name="pair", process_set=pair).tolist()
    say("end", first=first, started=size, sums=state.sums, pair=pair.ranks, together=together)
    sys.stdout.flush()


main()
