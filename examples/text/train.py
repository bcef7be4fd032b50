"""Trains a small recurrent network on the language reference of Python, byte by byte, and lets it write a line:

    ringdp run -n 2 examples/text/train.py                   or: mpirun -n 2 python examples/text/train.py
    ringdp run -n 2 --restarts 3 examples/text/train.py      goes on from its last commit when a rank dies

--batch-size counts the sequences of a step on all ranks and in all passes: --accumulate 4 on one rank, or four ranks,
train on the same ones.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

import ringdp.torch as hvd

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "common"))
sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH, where set, leaves it out

import phases
import replicas
import topics
from recurrent import Recurrent

WARM_UP = 20  # steps
BEGINNING = "The statement "


def main() -> int:
    args = parse_arguments()
    hvd.init()
    check(args)
    torch.manual_seed(args.seed + hvd.rank())  # other weights on each rank, until they are broadcast
    training, held_out = topics.load()
    model = Recurrent(topics.BYTES).to(torch.bfloat16 if args.bfloat16 else torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.1)
    optimizer = hvd.DistributedOptimizer(
        optimizer,
        named_parameters=model.named_parameters(),
        backward_passes_per_step=args.accumulate,  # gradients leave with the last pass
    )
    clock = phases.Phases(model)
    # All ranks begin with rank 0's weights; where a job was started again, with those of the last commit.
    state = hvd.elastic.TorchState(model=model, optimizer=optimizer, step=0)
    train(state, training, held_out, clock, args)

    with clock("evaluation"):
        bits = evaluate(model, held_out, args.context)
    counted = [topics.bits_by_counting(training, held_out, before) for before in (0, 1)]
    result = {
        "ranks": hvd.size(),
        "bits_per_byte": bits,
        "unigram_bits_per_byte": counted[0],
        "bigram_bits_per_byte": counted[1],
        "seconds": clock.averages(),
        "written": write(model, BEGINNING, args.seed),
        **replicas.compare(model),
    }
    if hvd.rank() == 0:
        report(result)
        if args.json:
            args.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if result["parameters_identical"] else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000, help="of the optimizer (1000)")
    parser.add_argument("--batch-size", type=int, default=24, help="sequences a step, over all ranks (24)")
    parser.add_argument("--context", type=int, default=64, help="bytes of a sequence (64)")
    parser.add_argument("--lr", type=float, default=0.02, help="greatest learning rate (0.02)")
    parser.add_argument("--accumulate", type=int, default=1, help="backward passes for each step (1)")
    parser.add_argument("--bfloat16", action="store_true", help="parameters, gradients and exchange in it")
    parser.add_argument("--commit-every", type=int, default=100, help="steps (100)")
    parser.add_argument("--seed", type=int, default=0, help="of the network and of the sequences (0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
    return parser.parse_args()


def check(args: argparse.Namespace) -> None:
    if min(args.steps, args.batch_size, args.accumulate, args.commit_every) < 1 or args.context < 2:
        sys.exit(
            "--steps, --batch-size, --accumulate and --commit-every must be 1 or more, --context 2 or more"
        )
    parts, ranks = hvd.size() * args.accumulate, f"{hvd.size()} rank{'s' * (hvd.size() > 1)}"
    if args.batch_size % parts:
        sys.exit(
            f"--batch-size {args.batch_size} does not divide evenly among {ranks} with {args.accumulate} "
            f"backward passes each: give a multiple of {parts}"
        )


@hvd.elastic.run
def train(
    state: Any, training: torch.Tensor, held_out: torch.Tensor, clock: phases.Phases, args: argparse.Namespace
) -> None:
    began, begin = time.perf_counter(), state.step
    while state.step < args.steps:
        with clock("forward and backward"):
            loss = backward(state, sequences(training, state.step, args), clock, args)
        with clock("step"):
            for group in state.optimizer.param_groups:
                group["lr"] = args.lr * schedule(state.step, args.steps)
            state.optimizer.step()
            state.optimizer.zero_grad()
        state.step += 1
        if state.step % args.commit_every == 0 or state.step == args.steps:
            with clock("evaluation"):
                bits = evaluate(state.model, held_out, args.context)
                loss = hvd.average_metrics({"loss": loss}, name="loss")["loss"]
            with clock("commit"):
                state.commit()
            if hvd.rank() == 0:
                read = (state.step - begin) * args.batch_size * args.context / (time.perf_counter() - began)
                print(
                    f"step {state.step:{len(str(args.steps))}}/{args.steps}  training {loss / math.log(2):.3f} bits a "
                    f"byte, held-out {bits:.3f}  {read:8,.0f} bytes/s",
                    flush=True,
                )


def backward(state: Any, sequences: torch.Tensor, clock: phases.Phases, args: argparse.Namespace) -> float:
    """The passes of a step; the mean loss of this rank's sequences. The gradients of a window are added up."""
    total = 0.0
    for part in sequences.chunk(args.accumulate):
        loss = loss_of(state.model, part) / args.accumulate
        clock.backward(loss)  # the last one returns with the gradients of all ranks
        total += loss.item()
    return total


def sequences(training: torch.Tensor, step: int, args: argparse.Namespace) -> torch.Tensor:
    """This rank's part of a step's sequences, (sequences, context + 1): they follow from seed and step alone."""
    drawn = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
    begin = torch.randint(len(training) - args.context, (args.batch_size,), generator=drawn)
    mine = begin.chunk(hvd.size())[hvd.rank()]
    return training[mine[:, None] + torch.arange(args.context + 1)]


def loss_of(model: torch.nn.Module, sequences: torch.Tensor) -> torch.Tensor:
    """Nats a byte, each byte read from those before it in its sequence."""
    scores = model(sequences[:, :-1]).float()
    return cross_entropy(scores.flatten(0, 1), sequences[:, 1:].flatten())


def schedule(step: int, steps: int) -> float:
    """A linear warm-up, then half a cosine down to a tenth."""
    return min(1.0, (step + 1) / WARM_UP) * (0.55 + 0.45 * math.cos(math.pi * step / steps))


@torch.no_grad()
def evaluate(model: Recurrent, held_out: torch.Tensor, context: int) -> float:
    """Bits a byte of the held-out text; each rank reads its part."""
    sequences = held_out.unfold(0, context + 1, context)
    mine = sequences[hvd.rank() :: hvd.size()]
    loss = loss_of(model, mine).item() / math.log(2) if len(mine) else 0.0
    return hvd.average_metrics({"bits": loss}, weight=len(mine), name="evaluation")["bits"]


@torch.no_grad()
def write(model: Recurrent, beginning: str, seed: int) -> str:
    """Goes on from `beginning` to the end of the line, or for 200 bytes."""
    drawn = torch.Generator().manual_seed(seed)
    text = list(beginning.encode())
    while len(text) < 200 and text[-1] != ord("\n"):
        scores = model(torch.tensor([text]))[0, -1].float()
        likely = torch.softmax(scores / 0.5, dim=0)  # colder than it was trained: fewer slips
        text.append(int(torch.multinomial(likely, 1, generator=drawn)))
    return bytes(text).decode(errors="replace").rstrip("\n")


def report(result: dict[str, Any]) -> None:
    print(f"it writes: {result['written']}")
    print(phases.line(result["seconds"]))
    counted = f"unigram {result['unigram_bits_per_byte']:.3f}, bigram {result['bigram_bits_per_byte']:.3f}"
    bits = result["bits_per_byte"]
    print(f"held-out {bits:.3f} bits a byte, perplexity {2**bits:.2f} (by counting: {counted})")
    replicas.report(result)


if __name__ == "__main__":
    sys.exit(main())
