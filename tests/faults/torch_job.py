"""A training in steps of `DistributedOptimizer`, for faults that know of steps. What it writes: see job.py."""

import json
import os
import time

import torch

import ringdp.torch as hvd

STEPS = 10


def say(what: str, **more: object) -> None:
    with open(f"said-{hvd.rank()}", "a") as file:
        print(json.dumps({"what": what, "time": time.time(), **more}), file=file, flush=True)


def main() -> None:
    hvd.init()
    say("begin", pid=os.getpid())
    torch.manual_seed(1)
    model = torch.nn.Linear(64, 64)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.125), model.named_parameters()
    )
    try:
        for step in range(STEPS):
            optimizer.zero_grad()
            model(torch.full((4, 64), float(hvd.rank() + step))).square().mean().backward()
            optimizer.step()
    except BaseException as error:
        say("error", type=type(error).__name__, text=str(error))
        raise
    say("end")


main()
