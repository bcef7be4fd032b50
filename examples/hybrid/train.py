"""Trains a small transformer on handwritten digits, its layers split over two ranks and its batches over the others:

    ringdp run -n 4 examples/hybrid/train.py        2 × 2: each batch is shared out, and so is each layer
    ringdp run -n 2 examples/hybrid/train.py        1 × 2: the layers alone are shared out
    python examples/hybrid/train.py                 alone

Each image is a sentence of eight words, its rows. Attention heads and the hidden features of each block are split over
the mesh's axis `model`; gradients are averaged, and the optimizer's state is shared out (ZeRO-1), over the axis `data`.
--batch-size counts the images of a step on all ranks together: any mesh takes the same steps.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

import ringdp.torch as hvd
from ringdp.torch import parallel

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "images"))  # for the data

import digits

FEATURES, HEADS, HIDDEN, BLOCKS = 32, 4, 128, 1


class Attention(nn.Module):
    """Each rank of the set has some of the heads: their queries, keys and values, and what they add to the output."""

    def __init__(self, process_set: hvd.ProcessSet) -> None:
        super().__init__()
        self.queries, self.keys, self.values = (
            parallel.ColumnLinear(FEATURES, FEATURES, process_set=process_set) for _ in range(3)
        )
        self.out = parallel.RowLinear(FEATURES, FEATURES, process_set=process_set)
        self.heads = HEADS // process_set.size()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.queries, self.keys, self.values)
        )
        return self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and two linear layers, each with a norm before it, which all ranks have alike."""

    def __init__(self, process_set: hvd.ProcessSet) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(FEATURES), nn.LayerNorm(FEATURES)
        self.attention = Attention(process_set)
        self.up = parallel.ColumnLinear(FEATURES, HIDDEN, process_set=process_set)
        self.down = parallel.RowLinear(HIDDEN, FEATURES, process_set=process_set)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """(N, 1, 8, 8) to the scores (N, 10)."""

    def __init__(self, process_set: hvd.ProcessSet) -> None:
        super().__init__()
        self.embed = nn.Linear(8, FEATURES)
        self.places = nn.Parameter(0.1 * torch.randn(8, FEATURES))
        self.blocks = nn.Sequential(*(Block(process_set) for _ in range(BLOCKS)))
        self.norm, self.out = nn.LayerNorm(FEATURES), nn.Linear(8 * FEATURES, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.embed(images.squeeze(1)) + self.places)
        return self.out(self.norm(x).flatten(1))  # type: ignore[no-any-return]


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - began


def main() -> int:
    args = parse_arguments()
    hvd.init()
    mesh = hvd.mesh(data=-1, model=args.model if args.model else min(2, hvd.size()))
    torch.manual_seed(args.seed)  # the same on all ranks: each has its parts of one model
    model = Transformer(mesh.model)
    parallel.broadcast_parameters(model, mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01)
    optimizer = hvd.DistributedOptimizer(
        optimizer, named_parameters=model.named_parameters(), process_set=mesh.data, shard=True
    )
    training, held_out = digits.load()
    if mesh.coordinates == {"data": 0, "model": 0}:
        split = sum(p.numel() for p in parallel.split_parameters(model).values())
        alike = sum(p.numel() for p in parallel.replicated(model).values())
        whole = alike + split * mesh.size("model")
        print(f"{mesh}: {split + alike:,} of {whole:,} parameters on each rank", flush=True)

    clock, losses = Clock(), []
    for epoch in range(args.epochs):
        began = time.perf_counter()
        loss = train_epoch(model, optimizer, training.tensors, mesh, clock, args, epoch)
        losses.append(hvd.allreduce(torch.tensor(loss), process_set=mesh.data).item())
        if hvd.rank() == 0:
            seconds = time.perf_counter() - began
            print(f"epoch {epoch + 1:2}/{args.epochs}  loss {losses[-1]:.4f}  {seconds:.2f} s", flush=True)

    parallel.check_replicated(model, mesh.model)
    accuracy = evaluate(model, held_out.tensors, mesh)
    report(accuracy, losses, clock, mesh, args)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6, help="passes over the data (6)")
    parser.add_argument("--batch-size", type=int, default=60, help="images a step, over all ranks (60)")
    parser.add_argument("--lr", type=float, default=0.004, help="learning rate (0.004)")
    parser.add_argument("--seed", type=int, default=0, help="of the model and of the shuffling (0)")
    parser.add_argument("--max-norm", type=float, default=1.0, help="gradients are clipped to (1.0)")
    parser.add_argument("--model", type=int, help="ranks that share a layer: 1, 2 or 4 (2 if there are two)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
    return parser.parse_args()


def train_epoch(
    model: nn.Module,
    optimizer: Any,
    data: tuple[torch.Tensor, ...],
    mesh: hvd.Mesh,
    clock: Clock,
    args: argparse.Namespace,
    epoch: int,
) -> float:
    """The mean loss of this rank's images. All ranks of a model axis have the same ones."""
    order = torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(1000 * args.seed + epoch))
    rows, losses = args.batch_size // mesh.size("data"), []
    for batch in order.split(args.batch_size):
        if len(batch) < args.batch_size:
            break
        mine = batch[mesh.rank("data") * rows : (mesh.rank("data") + 1) * rows]
        images, labels = (tensor[mine] for tensor in data)
        optimizer.zero_grad()
        with clock("forward, with sums over the model axis"):
            loss = cross_entropy(model(images), labels)
        with clock("backward, with sums over the model axis"):
            loss.backward()
        with clock("the rest of the exchange over the data axis"):
            optimizer.synchronize()
        with clock("clipping, over both axes"):
            parallel.clip_grad_norm_(model, optimizer, args.max_norm, mesh.model)
        with clock("step of this rank's shard, and all-gather"):
            optimizer.step()
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


def evaluate(model: nn.Module, data: tuple[torch.Tensor, ...], mesh: hvd.Mesh) -> float:
    """The share of held-out images that are read right. The ranks of a model axis look at the same ones, together."""
    images, labels = (tensor[mesh.rank("data") :: mesh.size("data")] for tensor in data)
    with torch.no_grad():
        right = (model(images).argmax(dim=1) == labels).sum()
    return int(hvd.allreduce(right, op=hvd.Sum, process_set=mesh.data)) / len(data[0])


def report(
    accuracy: float, losses: list[float], clock: Clock, mesh: hvd.Mesh, args: argparse.Namespace
) -> None:
    if hvd.rank() != 0:
        return
    whole = sum(clock.seconds.values())
    for phase, seconds in clock.seconds.items():
        print(f"{100 * seconds / whole:3.0f} %  {phase}")
    print(f"held-out accuracy {accuracy:.4f}")
    if args.json:
        result = {"mesh": mesh.axes, "accuracy": accuracy, "losses": losses, "seconds": clock.seconds}
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
