"""Three steps a second that end when the job is asked to stop; one rank fails in the tenth: launchers.py says how.

The rank that will fail writes when it came to each step to `at`, and all their process numbers to `pids`.
"""

import os
import sys
import time

import numpy as np

import ringdp

DO, RANK, STEPS = sys.argv[1], int(sys.argv[2]), 60

ringdp.init()
ringdp.on_preempt(lambda: print(f"rank {ringdp.rank()} has saved step {step}", flush=True))
with open("pids", "a") as file:
    print(os.getpid(), file=file)
large = ringdp.empty((1 << 20,), np.float32)
for step in range(STEPS):
    if ringdp.rank() == RANK:
        with open("at.new", "w") as file:
            file.write(f"{step} {time.monotonic()}")
        os.replace("at.new", "at")
        if DO == "raise" and step == 10:
            raise ValueError("the data is broken")
    large.fill(step)
    ringdp.allreduce_(large, op=ringdp.Sum, name=f"gradients of step {step}")
    if DO == "term":
        time.sleep(0.1)
        if ringdp.should_stop():
            ringdp.stop()
