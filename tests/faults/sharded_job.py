"""A training with a sharded optimizer, in which rank 1 leaves out a step: `python sharded_job.py STEP SHARDS`.

What it writes: see job.py.
"""

import json
import sys
import time

import torch

import ringdp.torch as hvd

STEPS = 6


def say(what: str, **more: object) -> None:
    with open(f"said-{hvd.rank()}", "a") as file:
        print(json.dumps({"what": what, "time": time.time(), **more}), file=file, flush=True)


def main() -> None:
    torch.set_num_threads(1)
    hvd.init()
    torch.manual_seed(1)
    model = torch.nn.Linear(64, 64)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.Adam(model.parameters()), model.named_parameters(), shard=sys.argv[2]
    )
    try:
        for step in range(STEPS):
            optimizer.zero_grad()
            model(torch.full((4, 64), float(hvd.rank() + step))).square().mean().backward()
            if hvd.rank() == 1 and step == int(sys.argv[1]):
                say("left out")
                continue
            optimizer.step()
            say("stepped", step=step, parameters=float(model.weight.double().sum()))
    except BaseException as error:
        say("error", type=type(error).__name__, text=str(error))
        raise
    say("end", parameters=float(model.weight.double().sum()))


main()
