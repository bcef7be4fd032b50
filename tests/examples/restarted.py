"""A training that is killed at a step, by one of its ranks, and started again by `ringdp run --restarts`.

What it notes in its folder: `at-<step>.pt` after each step, parameters and the whole optimizer's state; `taken` the
samples of each step of each rank that was committed; `end.pt` the parameters at the end.
"""

import argparse
import os
import signal
from pathlib import Path

import torch

import ringdp.torch as hvd


class Scrambled(torch.nn.Module):
    """Its parameters are registered in another order than that in which their gradients come."""

    def __init__(self):
        super().__init__()
        self.last = torch.nn.Linear(33, 3)
        self.first = torch.nn.Linear(6, 47)
        self.drop = torch.nn.Dropout(0.3)
        self.middle = torch.nn.Linear(47, 33)

    def forward(self, x):
        return self.last(torch.tanh(self.middle(self.drop(torch.tanh(self.first(x))))))


parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path)
parser.add_argument("--kill", type=int, default=-1)
parser.add_argument("--shard", default="")
parser.add_argument("--only-resume", action="store_true")
arguments = parser.parse_args()
torch.set_num_threads(1)
hvd.init()
torch.manual_seed(0)
model = Scrambled()
inputs, targets = torch.randn(60, 6), torch.randint(0, 3, (60,))
optimizer = hvd.DistributedOptimizer(
    torch.optim.Adam(model.parameters(), lr=0.01),
    named_parameters=model.named_parameters(),
    bucket_bytes=2000,
    shard=arguments.shard or False,
)
sampler = hvd.elastic.ElasticSampler(inputs, seed=3)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.5)
state = hvd.elastic.TorchState(model, optimizer, sampler=sampler, scheduler=scheduler, epoch=0, step=0)
torch.manual_seed(100 + hvd.rank())  # ranks drop out differently
first_attempt = os.environ.get("RINGDP_RESTART") == "0"


def note(name):
    if arguments.shard:
        optimizer.consolidate_state_dict()
    if hvd.rank() == 0:
        torch.save(
            {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, arguments.folder / name
        )


@hvd.elastic.run
def train(state):
    note("begins.pt")
    if arguments.only_resume:
        return
    while state.epoch < 2:
        for number, batch in enumerate(torch.utils.data.BatchSampler(sampler, 4, drop_last=False)):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs[batch]), targets[batch]).backward()
            if first_attempt and state.step == arguments.kill and hvd.rank() == hvd.size() - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            optimizer.step()
            scheduler.step()
            sampler.record_batch(number, len(batch))
            state.step += 1
            note(f"at-{state.step}.pt")
            state.commit()
            state.flush()
            with open(arguments.folder / f"taken-{hvd.rank()}", "a") as file:
                print(state.epoch, state.step, *batch, file=file)
        state.epoch += 1
        sampler.set_epoch(state.epoch)


train(state)
note("end.pt")
