"""A loop of all-reduces, of names and without, and who came last to them: a line of JSON of rank 0 for each window."""

import json
import sys

import numpy as np

import ringdp

WINDOWS, STEPS = int(sys.argv[1]), int(sys.argv[2])

ringdp.init()
large = ringdp.empty((1 << 16,), np.float32)
for _ in range(WINDOWS):
    for step in range(STEPS):
        ringdp.allreduce(np.ones(4), name="loss")
        large.fill(step)
        ringdp.allreduce_(large, op=ringdp.Sum)
    figure = ringdp.stragglers(2 * STEPS)
    if ringdp.rank() == 0:
        said = {
            "slowest": figure.slowest,
            "last": figure.last,
            "behind": figure.behind,
            "waited": figure.waited,
        }
        print(json.dumps({**said, "operations": figure.operations, "text": str(figure)}), flush=True)
