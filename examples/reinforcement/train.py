"""Learns to balance a pole on a cart (gymnasium's CartPole-v1) by policy gradients, each rank with episodes of its own:

    ringdp run -n 2 examples/reinforcement/train.py     or: mpirun -n 2 python examples/reinforcement/train.py
    python examples/reinforcement/train.py              alone

Episodes end when the pole falls, so ranks come back with different numbers of steps: `optimizer.weigh` makes the
gradient the mean over the steps of all ranks.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import mse_loss

import ringdp.torch as hvd

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "common"))
sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH, where set, leaves it out

import phases
import replicas
from policy import Policy

try:
    from rollouts import Stage, Steps
except ModuleNotFoundError as error:
    if error.name != "gymnasium":
        raise
    sys.exit("this example needs gymnasium: pip install 'gymnasium>=1'")

EVALUATED = 1 << 20  # in the place of the iteration: other episodes than those of the training
CLIP = 0.2  # how far a step's probability may move in one iteration
ENTROPY = 0.01  # how much it is worth to stay undecided


def main() -> int:
    args = parse_arguments()
    hvd.init()
    torch.manual_seed(args.seed + hvd.rank())  # other weights on each rank, until they are broadcast
    policy = Policy()
    optimizer = torch.optim.Adam(policy.parameters(), lr=args.lr)
    optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=policy.named_parameters())
    hvd.broadcast_parameters(policy.state_dict(), root_rank=0)

    stage, clock = Stage(), phases.Phases(policy)
    for iteration in range(args.iterations):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * (1 - iteration / args.iterations)
        with clock("rollouts"):
            steps, returns = stage.play(policy, mine(args.seed, iteration, args.episodes))
        with clock("learning"):
            learn(policy, optimizer, steps, clock, args, iteration)
        show(iteration, returns, len(steps), args)

    with clock("evaluation"):
        _, returns = stage.play(policy, mine(args.seed, EVALUATED, args.evaluated), greedy=True)
    result = {
        "ranks": hvd.size(),
        "mean_return": hvd.average_metrics({"return": (sum(returns), len(returns))}, name="evaluation")[
            "return"
        ],
        "seconds": clock.averages(),
        **replicas.compare(policy),
    }
    if hvd.rank() == 0:
        print(phases.line(result["seconds"]))
        print(f"mean return {result['mean_return']:.1f} over {args.evaluated} episodes (500 is the most)")
        replicas.report(result)
        if args.json:
            args.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if result["parameters_identical"] else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=20, help="of playing and learning (20)")
    parser.add_argument("--episodes", type=int, default=16, help="of an iteration, over all ranks (16)")
    parser.add_argument(
        "--evaluated", type=int, default=100, help="episodes at the end, over all ranks (100)"
    )
    parser.add_argument("--passes", type=int, default=8, help="over the steps of an iteration (8)")
    parser.add_argument(
        "--parts", type=int, default=4, help="that a pass is cut into, a step of learning each (4)"
    )
    parser.add_argument("--lr", type=float, default=0.003, help="learning rate at the beginning (0.003)")
    parser.add_argument("--seed", type=int, default=0, help="of the network and of the episodes (0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
    args = parser.parse_args()
    if min(args.iterations, args.episodes, args.evaluated, args.passes, args.parts) < 1:
        parser.error("all numbers but --seed and --lr must be 1 or more")
    return args


def mine(seed: int, iteration: int, episodes: int) -> list[list[int]]:
    """The seeds of this rank's episodes."""
    return [[seed, iteration, episode] for episode in range(episodes)][hvd.rank() :: hvd.size()]


def learn(
    policy: Policy,
    optimizer: Any,
    steps: Steps,
    clock: phases.Phases,
    args: argparse.Namespace,
    iteration: int,
) -> None:
    """Proximal policy optimization (Schulman and others, 2017): several passes over the same steps."""
    with clock("exchange"):
        mean, deviation = moments(steps.advantages)
    drawn = np.random.default_rng([args.seed, iteration, hvd.rank()])
    for _ in range(args.passes):
        order = torch.from_numpy(drawn.permutation(len(steps)))
        for chosen in order.tensor_split(args.parts):  # as many on every rank, though not of the same size
            part = steps.take(chosen)
            optimizer.zero_grad()
            optimizer.weigh(len(part))
            clock.backward(loss_of(policy, part, (part.advantages - mean) / deviation))
            optimizer.step()


def loss_of(policy: Policy, part: Steps, advantages: torch.Tensor) -> torch.Tensor:
    """A mean over the steps. Of none it is NaN, and counts for nothing."""
    scores, values = policy(part.observations)
    likely = torch.log_softmax(scores, dim=1)
    ratio = (likely.gather(1, part.actions[:, None])[:, 0] - part.log_probabilities).exp()
    gain = torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages).mean()
    entropy = -(likely.exp() * likely).sum(dim=1).mean()
    return mse_loss(values, part.returns) - gain - ENTROPY * entropy


def moments(values: torch.Tensor) -> tuple[float, float]:
    """Mean and standard deviation over the values of all ranks."""
    values = values.double()
    mine = torch.tensor([len(values), values.sum(), values.square().sum()], dtype=torch.float64)
    count, total, squares = hvd.allreduce(mine, op=hvd.Sum, name="moments").tolist()
    mean = total / count
    return mean, max(squares / count - mean**2, 1e-12) ** 0.5


def show(iteration: int, returns: list[float], steps: int, args: argparse.Namespace) -> None:
    metrics = {"return": (sum(returns), len(returns)), "steps": float(steps)}
    found = hvd.average_metrics(metrics, name="iteration")
    if hvd.rank() == 0:
        number = f"{iteration + 1:{len(str(args.iterations))}}/{args.iterations}"
        total = round(found["steps"] * hvd.size())
        print(f"iteration {number}  mean return {found['return']:6.1f}  steps {total}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
