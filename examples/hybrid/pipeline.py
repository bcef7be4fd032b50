"""Trains a network whose layers are two stages, on two ranks or two times as many:

    ringdp run -n 4 examples/hybrid/pipeline.py     two pipelines of two stages; each has half of every batch
    ringdp run -n 2 examples/hybrid/pipeline.py     one pipeline
    python examples/hybrid/pipeline.py              alone: both stages in one process

A stage sends what its layers give to the next one, and gets the gradient of that back. So that both work at a time, a
batch goes through in micro-batches, in the order "one forward, one backward" (1F1B; Narayanan et al. 2019, "PipeDream",
section 3.2), here with four of them:

    stage 0   F1 F2 .. B1 F3 .. B2 F4 .. B3 .. B4      F2: forward of micro-batch 2
    stage 1   .. F1 B1 .. F2 B2 .. F3 B3 F4 B4         B2: its backward
                                                       ..: waits for the other (the bubble)

Stage 0 keeps two micro-batches' activations at a time, not all. Gradients add up over the micro-batches, and are
averaged over the pipelines (the mesh's axis `data`) with the last of them: `backward_passes_per_step`.

Activations go by isend and irecv of torch.distributed's backend "ringdp": a message has one sender and one receiver,
who know its shape, and goes straight over MPI. (A broadcast in the pair's process set would do the same, and agree on
name, shape and dtype each time first: two ways more for each message.)
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy

import ringdp.torch as hvd

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "images"))  # for the data

import digits

WIDTH = 128


def stages(count: int) -> list[nn.Sequential]:
    """The network, in so many stages: 1 or 2."""
    first = [nn.Flatten(), nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()]
    second = [nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10)]
    return [nn.Sequential(*first, *second)] if count == 1 else [nn.Sequential(*first), nn.Sequential(*second)]


class Pipeline:
    """This rank's stage of one batch at a time."""

    def __init__(self, stage: nn.Module, mesh: hvd.Mesh, micro_batches: int) -> None:
        self.stage, self.micro_batches = stage, micro_batches
        self.place, self.count = mesh.rank("stage"), mesh.size("stage")
        ranks = mesh["stage"].ranks or []
        self.before = ranks[self.place - 1] if self.place > 0 else None
        self.behind = ranks[self.place + 1] if self.place + 1 < self.count else None
        self.kept: list[
            tuple[torch.Tensor, torch.Tensor]
        ] = []  # inputs and outputs whose backward is to come
        self.sent: list[tuple[Any, torch.Tensor]] = []  # what must live until it has arrived
        self.waited = 0.0  # seconds

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Forward and backward of all micro-batches; the mean loss, on the last stage (0.0 on the others)."""
        inputs, targets = images.chunk(self.micro_batches), labels.chunk(self.micro_batches)
        ahead = min(self.count - 1 - self.place, self.micro_batches)  # forwards before the first backward
        losses = [self.forward(inputs[i], targets[i]) for i in range(ahead)]
        for i in range(ahead, self.micro_batches):
            losses.append(self.forward(inputs[i], targets[i]))
            self.backward()
        for _ in range(ahead):
            self.backward()
        for work, _ in self.sent:
            work.wait()
        self.sent.clear()
        return sum(losses)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Of one micro-batch, this stage's layers."""
        x = images
        if self.before is not None:
            x = self.receive(torch.empty(len(images), WIDTH), self.before).requires_grad_()
        y = self.stage(x)
        if self.behind is None:
            y = cross_entropy(y, labels) / self.micro_batches
        else:
            self.send(y.detach(), self.behind)
        self.kept.append((x, y))
        return y.item() if self.behind is None else 0.0

    def backward(self) -> None:
        """Of the oldest micro-batch whose backward is to come."""
        x, y = self.kept.pop(0)
        y.backward(None if self.behind is None else self.receive(torch.empty_like(y), self.behind))
        if self.before is not None:
            assert x.grad is not None
            self.send(x.grad, self.before)

    def send(self, tensor: torch.Tensor, rank: int) -> None:
        self.sent.append((dist.isend(tensor, rank), tensor))

    def receive(self, tensor: torch.Tensor, rank: int) -> torch.Tensor:
        began = time.perf_counter()
        work = dist.irecv(tensor, rank)
        assert work is not None
        work.wait()
        self.waited += time.perf_counter() - began
        return tensor


def main() -> int:
    args = parse_arguments()
    hvd.init()
    dist.init_process_group("ringdp")
    mesh = hvd.mesh(data=-1, stage=min(2, hvd.size()))
    torch.manual_seed(args.seed)
    stage = stages(mesh.size("stage"))[mesh.rank("stage")]
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(stage.parameters(), lr=args.lr, momentum=0.9),
        named_parameters=stage.named_parameters(),
        backward_passes_per_step=args.micro_batches,
        process_set=mesh["data"],
    )
    root = (mesh["data"].ranks or [0])[0]
    hvd.broadcast_parameters(stage.state_dict(), root, process_set=mesh["data"])
    pipeline = Pipeline(stage, mesh, args.micro_batches)

    training, held_out = digits.load()
    losses, began = [], time.perf_counter()
    for epoch in range(args.epochs):
        loss = train_epoch(pipeline, optimizer, training.tensors, mesh, args, epoch)
        losses.append(hvd.allreduce(torch.tensor(loss), op=hvd.Sum).item() / mesh.size("data"))
        if hvd.rank() == 0:
            print(f"epoch {epoch + 1:2}/{args.epochs}  loss {losses[-1]:.4f}", flush=True)
    idle = pipeline.waited / (time.perf_counter() - began)
    idle_by_rank = hvd.allgather(torch.tensor([idle])).tolist()
    accuracy = evaluate(pipeline, held_out.tensors, mesh)
    if hvd.rank() == 0:
        for rank, share in enumerate(idle_by_rank):
            pipe, place = divmod(rank, mesh.size("stage"))
            print(
                f"pipeline {pipe}, stage {place}: {100 * share:3.0f} % of the time spent waiting for the other stage"
            )
        n, m = mesh.size("stage"), args.micro_batches
        print(f"(the bubble of {n} equal stages and {m} micro-batches: {100 * (n - 1) / (m + n - 1):.0f} %)")
        print(f"held-out accuracy {accuracy:.4f}")
        if args.json:
            result = {"mesh": mesh.axes, "accuracy": accuracy, "losses": losses, "idle": idle_by_rank}
            args.json.write_text(json.dumps(result, indent=2) + "\n")
    dist.destroy_process_group()
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10, help="passes over the data (10)")
    parser.add_argument("--batch-size", type=int, default=64, help="images a step, over all pipelines (64)")
    parser.add_argument("--micro-batches", type=int, default=4, help="parts of a pipeline's batch (4)")
    parser.add_argument("--lr", type=float, default=0.1, help="learning rate (0.1)")
    parser.add_argument("--seed", type=int, default=0, help="of the network and of the shuffling (0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
    args = parser.parse_args()
    if args.micro_batches < 1 or args.batch_size % args.micro_batches:
        parser.error("--batch-size must be a multiple of --micro-batches")
    return args


def train_epoch(
    pipeline: Pipeline,
    optimizer: Any,
    data: tuple[torch.Tensor, ...],
    mesh: hvd.Mesh,
    args: argparse.Namespace,
    epoch: int,
) -> float:
    """The mean loss of this pipeline's images, on its last stage (0.0 on the others)."""
    order = torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(1000 * args.seed + epoch))
    rows, losses = args.batch_size // mesh.size("data"), []
    for batch in order.split(args.batch_size)[: len(order) // args.batch_size]:
        mine = batch[mesh.rank("data") * rows : (mesh.rank("data") + 1) * rows]
        images, labels = (tensor[mine] for tensor in data)
        optimizer.zero_grad()
        losses.append(pipeline.step(images, labels))
        optimizer.step()
    return sum(losses) / len(losses)


def evaluate(pipeline: Pipeline, data: tuple[torch.Tensor, ...], mesh: hvd.Mesh) -> float:
    """The share of held-out images that are read right; each pipeline looks at its part of them."""
    x, labels = (tensor[mesh.rank("data") :: mesh.size("data")] for tensor in data)
    right = torch.tensor(0)
    with torch.no_grad():
        if pipeline.before is not None:
            x = pipeline.receive(torch.empty(len(labels), WIDTH), pipeline.before)
        y = pipeline.stage(x)
        if pipeline.behind is not None:
            dist.send(y, pipeline.behind)
        else:
            right = (y.argmax(dim=1) == labels).sum()
    return int(hvd.allreduce(right, op=hvd.Sum)) / len(data[0])


if __name__ == "__main__":
    sys.exit(main())
