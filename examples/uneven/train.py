"""Trains on paragraphs of 1 to 600 words twice: dealt out as they come, and balanced; what the ranks lose by waiting.

    ringdp run -n 2 examples/uneven/train.py        or: mpirun -n 2 python examples/uneven/train.py

A step takes as long as its slowest rank. ringdp's BalancedBatchSampler gives the ranks batches with about as many
words. They are never quite as many: `optimizer.weigh` makes the gradient that of the joined batch all the same.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

import ringdp.torch as hvd

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "common"))
sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH, where set, leaves it out

import paragraphs
import phases
import replicas

from ringdp.torch.data import BalancedBatchSampler, DistributedSampler, imbalance

WAYS = ("naive", "balanced")


def main() -> int:
    args = parse_arguments()
    hvd.init()
    if args.batch_size % hvd.size():
        sys.exit(
            f"--batch-size {args.batch_size} does not divide evenly among {hvd.size()} ranks: give a multiple of it"
        )
    training, held_out = paragraphs.load()
    del training[
        len(training) // args.batch_size * args.batch_size :
    ]  # whole batches: both ways take the same samples
    ways = {way: train(way, training, held_out, args) for way in WAYS}
    by_frequency = paragraphs.loss_by_frequency(training, held_out)
    result = {"ranks": hvd.size(), "loss_by_frequency": by_frequency, **ways}
    result["parameters_identical"] = all(way["parameters_identical"] for way in ways.values())
    if hvd.rank() == 0:
        print("\n" + table(ways))
        print(
            f"(the loss of a guesser that knows how frequent words are, and no more: {by_frequency:.3f} nats a word)"
        )
        for way in WAYS:
            replicas.report(ways[way])
        if args.json:
            args.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if result["parameters_identical"] else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3, help="passes over the paragraphs, each way (3)")
    parser.add_argument("--batch-size", type=int, default=24, help="paragraphs a step, over all ranks (24)")
    parser.add_argument("--lr", type=float, default=0.005, help="learning rate (0.005)")
    parser.add_argument("--seed", type=int, default=0, help="of the network and of the order (0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
    args = parser.parse_args()
    if args.epochs < 1 or args.batch_size < 1:
        parser.error("--epochs and --batch-size must be 1 or more")
    return args


def train(
    way: str, training: list[torch.Tensor], held_out: list[torch.Tensor], args: argparse.Namespace
) -> dict[str, Any]:
    """The whole training with the samples dealt out in this `way`."""
    torch.manual_seed(args.seed)
    model = paragraphs.Reader()
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    loader, sampler = deal(way, training, args)

    clock, words, losses, seconds = phases.Phases(model), [], [], []
    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)  # other batches each epoch
        began = time.perf_counter()
        losses.append(train_epoch(model, optimizer, loader, clock, words))
        seconds.append(time.perf_counter() - began)
        if hvd.rank() == 0:
            print(
                f"{way}, epoch {epoch + 1}/{args.epochs}: loss {losses[-1]:.4f} in {seconds[-1]:.2f} s",
                flush=True,
            )
    late = hvd.stragglers(min(4096, len(words)))  # the last exchanges, one or more for each step
    if hvd.rank() == 0:
        print(f"{way}: {late}")
    of_ranks = hvd.allgather(torch.tensor([words], dtype=torch.float64), name="words")
    loads = imbalance(of_ranks.T.numpy(), "words")
    waited = torch.tensor([clock.seconds["exchange"] / sum(clock.seconds.values())], dtype=torch.float64)
    return {
        "seconds_per_epoch": min(hvd.allgather_object(seconds)[0][1:] or seconds),
        "idle": hvd.allgather(waited, name="waited").tolist(),
        "idle_by_words": loads.idle_fraction,
        "words": int(of_ranks.sum()),
        "training_losses": losses,
        "loss": evaluate(model, held_out),
        **replicas.compare(model),
    }


def deal(way: str, training: list[torch.Tensor], args: argparse.Namespace) -> tuple[Any, Any]:
    """(DataLoader, sampler) of this rank's batches, lists of paragraphs."""
    batch_size = args.batch_size // hvd.size()
    if way == "balanced":
        lengths = [float(len(sequence)) for sequence in training]
        sampler = BalancedBatchSampler(training, lengths, batch_size=batch_size, seed=args.seed)
        return DataLoader(training, batch_sampler=sampler, collate_fn=list), sampler
    sampler = DistributedSampler(training, seed=args.seed)
    return DataLoader(training, batch_size=batch_size, sampler=sampler, collate_fn=list), sampler


def train_epoch(
    model: torch.nn.Module, optimizer: Any, loader: DataLoader[Any], clock: phases.Phases, words: list[int]
) -> float:
    """Adds this rank's words in each step to `words`; the mean loss over the words of all ranks."""
    total, began = 0.0, len(words)
    for batch in loader:
        words.append(paragraphs.words_in(batch))
        with clock("work"):
            optimizer.zero_grad()
            loss = model(batch)
            optimizer.weigh(words[-1])  # the mean over so many
            clock.backward(loss)
            optimizer.step()
            total += loss.item() * words[-1]
    return hvd.average_metrics({"loss": (total, sum(words[began:]))}, name="loss")["loss"]


@torch.no_grad()
def evaluate(model: torch.nn.Module, held_out: list[torch.Tensor]) -> float:
    """The mean over the words of the held-out paragraphs; each rank reads its part of them."""
    mine = held_out[hvd.rank() :: hvd.size()]
    count = paragraphs.words_in(mine)
    return hvd.average_metrics({"loss": float(model(mine))}, weight=count, name="evaluation")["loss"]


def table(ways: dict[str, dict[str, Any]]) -> str:
    rows = [
        ("", list(ways)),
        ("seconds an epoch", [f"{way['seconds_per_epoch']:.2f}" for way in ways.values()]),
        *(
            (f"rank {rank} waits", [f"{100 * way['idle'][rank]:.1f} %" for way in ways.values()])
            for rank in range(hvd.size())
        ),
        ("by number of words", [f"{100 * way['idle_by_words']:.1f} %" for way in ways.values()]),
        ("held-out loss", [f"{way['loss']:.3f}" for way in ways.values()]),
    ]
    return "\n".join(f"{name:20}" + "".join(f"{cell:>12}" for cell in cells) for name, cells in rows)


if __name__ == "__main__":
    sys.exit(main())
