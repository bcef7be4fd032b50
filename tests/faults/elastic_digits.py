"""Training on real images, of which ranks are killed while it runs: `kills.py` and `test_elastic.py` start it.

    ringdp run --elastic -n 4 elastic_digits.py --epochs 10

Each rank writes who it is to `alive-PID` whenever it begins or goes on, and rank 0 what came of it to `result.json`:
the accuracy, whether all ranks have the same parameters, and for each pass over the data, as it is committed, how many
samples are missing, how many were taken twice, and how many may have been, as they did not divide evenly.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

import ringdp.torch as hvd

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "images"))
import digits

BATCH = 60  # of all ranks together: the same training, whatever their number


def options() -> argparse.Namespace:
    p = argparse.ArgumentParser()
    p.add_argument("--epochs", type=int, default=10)
    p.add_argument("--commit-every", type=int, default=5, help="steps")
    p.add_argument("--pause", type=float, default=0.0, help="seconds more for each step")
    return p.parse_args()


def write(path: str, **what: object) -> None:
    """All of it, or nothing."""
    Path(path + ".part").write_text(json.dumps(what))
    os.replace(path + ".part", path)


def main() -> None:
    o = options()
    hvd.init()
    torch.manual_seed(0)
    training, held_out = digits.load()
    images, labels = training.tensors
    model = digits.network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())
    sampler = hvd.elastic.ElasticSampler(training)
    state = hvd.elastic.TorchState(
        model=model, optimizer=optimizer, sampler=sampler, epoch=0, step=0, taken=[], deals=0, passes=[]
    )

    @hvd.elastic.run
    def train(state: hvd.elastic.TorchState) -> None:
        size = hvd.size()
        write(f"alive-{os.getpid()}", rank=hvd.rank(), size=size, time=time.time(), step=state.step)
        while state.epoch < o.epochs:
            mine = list(iter(sampler))
            state.deals += size - 1  # so many samples at the most are dealt out twice to make it even
            batch = max(1, BATCH // size)
            for number, first in enumerate(range(0, len(mine), batch)):
                some = mine[first : first + batch]
                optimizer.zero_grad()
                cross_entropy(model(images[some]), labels[some]).backward()
                optimizer.step()
                state.step += 1
                sampler.record_batch(number, len(some))
                state.taken = state.taken + hvd.allgather(torch.tensor(some), name="taken").tolist()
                time.sleep(o.pause)
                if state.step % o.commit_every == 0:
                    state.commit()
            times = Counter(state.taken)
            state.passes = [
                *state.passes,
                [len(training) - len(times), sum(times.values()) - len(times), state.deals],
            ]
            state.taken, state.deals = [], 0
            state.epoch += 1
            sampler.set_epoch(state.epoch)
            state.commit()

    train(state)
    with torch.no_grad():
        right = (model(held_out.tensors[0]).argmax(dim=1) == held_out.tensors[1]).sum().item()
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    first = hvd.broadcast(flat, 0, name="parameters")
    same = hvd.allreduce(torch.tensor([int(torch.equal(flat, first))]), op=hvd.Min, name="same").item()
    if hvd.rank() == 0:
        write(
            "result.json",
            accuracy=right / len(held_out),
            same=bool(same),
            size=hvd.size(),
            steps=state.step,
            passes=state.passes,
        )


main()
