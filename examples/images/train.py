"""Trains a small convolutional network on handwritten digits, on any number of ranks:

    ringdp run -n 4 examples/images/train.py        or: mpirun -n 4 python examples/images/train.py
    python examples/images/train.py                 alone

--batch-size counts the images of a step on all ranks together: any number of ranks trains on the same batches.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import ringdp.torch as hvd

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "common"))
sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH, where set, leaves it out

import digits
import phases
import replicas
from progress import Progress

from ringdp.torch import comm_hooks

HOOKS: dict[str, Any] = {  # how gradients travel: docs/compression.md
    "fp16": lambda: (None, comm_hooks.fp16_hook),
    "bf16": lambda: (None, comm_hooks.bf16_hook),
    "int8": lambda: (comm_hooks.Int8State(), comm_hooks.int8_hook),
    "powersgd": lambda: (comm_hooks.PowerSGDState(matrix_approximation_rank=4), comm_hooks.powersgd_hook),
}


def main() -> int:
    args = parse_arguments()
    hvd.init()
    torch.manual_seed(args.seed + hvd.rank())  # other weights on each rank, until they are broadcast
    training, held_out = digits.load()
    model = digits.network()
    loader, sampler = shard(training, args)

    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())
    if args.hook:
        optimizer.register_comm_hook(*HOOKS[args.hook]())
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)

    clock = phases.Phases(model)
    progress = Progress(args.epochs, len(loader), loader.batch_size * hvd.size(), shown=hvd.rank() == 0)
    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)  # another shuffle each epoch, the same on all ranks
        train_epoch(model, optimizer, loader, clock, progress)

    with clock("evaluation"):
        accuracy = evaluate(model, held_out)
    result = {
        "ranks": hvd.size(),
        "threads_per_rank": torch.get_num_threads(),
        "accuracy": accuracy,
        "seconds": clock.averages(),
        **replicas.compare(model),
        **progress.result(),
    }
    if hvd.rank() == 0:
        report(result, len(held_out))
        if args.json:
            args.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if result["parameters_identical"] else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=15, help="passes over the data (15)")
    parser.add_argument("--batch-size", type=int, default=60, help="images a step, over all ranks (60)")
    parser.add_argument("--lr", type=float, default=0.1, help="learning rate (0.1)")
    parser.add_argument("--seed", type=int, default=0, help="of the network and of the shuffling (0)")
    parser.add_argument("--hook", choices=HOOKS, help="send the gradients compressed")
    parser.add_argument("--workers", type=int, default=0, help="processes a rank that load its data (0)")
    parser.add_argument("--start-method", choices=["fork", "spawn", "forkserver"], default="fork",
                        help="how these processes are started (fork)")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
    args = parser.parse_args()
    if args.epochs < 1 or args.batch_size < 1:
        parser.error("--epochs and --batch-size must be 1 or more")
    return args


def shard(training: TensorDataset, args: argparse.Namespace) -> tuple[Any, Any]:
    """(DataLoader, sampler) of this rank's part of every batch. What fills no whole batch is left out."""
    sampler = DistributedSampler(
        training, num_replicas=hvd.size(), rank=hvd.rank(), seed=args.seed, drop_last=True
    )
    loader = DataLoader(
        training,
        batch_size=max(1, args.batch_size // hvd.size()),
        sampler=sampler,
        drop_last=True,
        num_workers=args.workers,
        multiprocessing_context=args.start_method if args.workers else None,
        persistent_workers=args.workers > 0,
    )
    if len(loader) == 0:
        sys.exit(f"--batch-size {args.batch_size} is more than the {len(training)} images there are")
    return loader, sampler


def train_epoch(
    model: torch.nn.Module,
    optimizer: Any,
    loader: DataLoader[Any],
    clock: phases.Phases,
    progress: Progress,
) -> None:
    began, waited, losses = time.perf_counter(), clock.seconds["exchange"], 0.0
    with clock("reading"):
        for step, (images, labels) in enumerate(loader, start=1):
            with clock("forward and backward"):
                optimizer.zero_grad()
                loss = cross_entropy(model(images), labels)
                clock.backward(loss)  # when it returns, the gradients are those of all ranks
            with clock("step"):
                optimizer.step()
            losses += loss.item()
            elapsed, exchange = time.perf_counter() - began, clock.seconds["exchange"] - waited
            progress.step(step, losses / step, elapsed, exchange)
    mine = torch.tensor([losses / step, elapsed, exchange], dtype=torch.float64)
    progress.epoch(*hvd.allreduce(mine, op=hvd.Average, name="epoch").tolist())


def evaluate(model: torch.nn.Module, held_out: TensorDataset) -> float:
    """The share of held-out images that the network reads right; each rank looks at its part of them."""
    images, labels = (tensor[hvd.rank() :: hvd.size()] for tensor in held_out.tensors)
    with torch.no_grad():
        right = (model(images).argmax(dim=1) == labels).sum()
    return int(hvd.allreduce(right, op=hvd.Sum, name="right")) / len(held_out)


def report(result: dict[str, Any], images: int) -> None:
    right = round(result["accuracy"] * images)
    print(phases.line(result["seconds"]))
    print(f"held-out accuracy {result['accuracy']:.4f} ({right} of {images} images)")
    replicas.report(result)


if __name__ == "__main__":
    sys.exit(main())
