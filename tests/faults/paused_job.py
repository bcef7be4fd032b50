"""A job that is stopped and continued as a whole: `python paused_job.py`.

Rank 1 is busy until there is a file `go` in the working directory; the others wait for it meanwhile. They write
`said-RANK`, as job.py does.
"""

import json
import os
import time

import numpy as np

import ringdp

STEPS = 3


def say(what: str, **more: object) -> None:
    with open(f"said-{ringdp.rank()}", "a") as file:
        print(json.dumps({"what": what, "time": time.time(), **more}), file=file, flush=True)


def compute() -> None:
    while not os.path.exists("go"):
        time.sleep(0.01)


def main() -> None:
    ringdp.init()
    say("begin", pid=os.getpid())
    for step in range(STEPS):
        say("step", step=step)
        if ringdp.rank() == 1:
            compute()
        total = ringdp.allreduce(np.full(4, ringdp.rank() + step), op=ringdp.Sum, name="loss")
        assert (total == sum(rank + step for rank in range(ringdp.size()))).all(), total
    say("end")


main()
