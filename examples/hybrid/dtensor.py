"""PyTorch's own device mesh, tensor parallelism and FSDP2 over ringdp, on two ranks or two times as many:

    ringdp run -n 4 examples/hybrid/dtensor.py      2 × 2
    mpirun -n 2 --bind-to none python examples/hybrid/dtensor.py
    python examples/hybrid/dtensor.py               alone

Nothing here but `init_process_group("ringdp", …)` is ringdp's: `parallelize_module` splits the linear layers over the
mesh's dimension "model", and `fully_shard` shares parameters, gradients and optimizer state out over
the dimension "data".
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.functional import cross_entropy

import ringdp.torch  # noqa: F401  makes "ringdp" known to torch.distributed

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "images"))  # for the data

import digits


def network() -> nn.Sequential:
    """(N, 1, 8, 8) to the scores (N, 10): two pairs of linear layers."""
    pairs = [nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64)) for _ in range(2)]
    return nn.Sequential(nn.Flatten(), *pairs, nn.Linear(64, 10))


def split(model: nn.Sequential, mesh: DeviceMesh) -> None:
    """Each pair's features over "model", all parameters over "data"."""
    for pair in list(model)[1:3]:
        parallelize_module(pair, mesh["model"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(model, mesh=mesh["data"])  # a larger model: each block first, so that one at a time is whole


def main() -> int:
    args = parse_arguments()
    dist.init_process_group("ringdp", init_method="ringdp://")  # alone, too, where nobody has set MASTER_ADDR
    ranks = dist.get_world_size()
    columns = min(2, ranks)
    mesh = init_device_mesh("cpu", (ranks // columns, columns), mesh_dim_names=("data", "model"))
    torch.manual_seed(args.seed)  # the same weights on all ranks, of which each keeps its part
    model = network()
    split(model, mesh)
    mine = [(p.to_local() if isinstance(p, DTensor) else p).numel() for p in model.parameters()]
    if dist.get_rank() == 0:
        whole = sum(p.numel() for p in model.parameters())
        print(f"rank 0 has {sum(mine):,} of {whole:,} parameters", flush=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    training, held_out = digits.load()
    losses = []
    for epoch in range(args.epochs):
        began = time.perf_counter()
        losses.append(train_epoch(model, optimizer, training.tensors, mesh, args, epoch))
        if dist.get_rank() == 0:
            print(
                f"epoch {epoch + 1:2}/{args.epochs}  loss {losses[-1]:.4f}  {time.perf_counter() - began:.2f} s",
                flush=True,
            )
    accuracy = evaluate(model, held_out.tensors, mesh)
    if dist.get_rank() == 0:
        print(f"held-out accuracy {accuracy:.4f}")
        if args.json:
            result = {"mesh": list(mesh.shape), "accuracy": accuracy, "losses": losses}
            args.json.write_text(json.dumps(result, indent=2) + "\n")
    dist.destroy_process_group()
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6, help="passes over the data (6)")
    parser.add_argument("--batch-size", type=int, default=120, help="images a step, over all ranks (120)")
    parser.add_argument("--lr", type=float, default=0.003, help="learning rate (0.003)")
    parser.add_argument("--seed", type=int, default=0, help="of the network and of the shuffling (0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
    return parser.parse_args()


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: tuple[torch.Tensor, ...],
    mesh: DeviceMesh,
    args: argparse.Namespace,
    epoch: int,
) -> float:
    """The mean loss over all ranks' images. Those of one row of the mesh have the same ones."""
    order = torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(1000 * args.seed + epoch))
    rows, place = args.batch_size // mesh["data"].size(), mesh["data"].get_local_rank()
    total, steps = torch.zeros(()), len(order) // args.batch_size
    for batch in order.split(args.batch_size)[:steps]:
        images, labels = (tensor[batch[place * rows : (place + 1) * rows]] for tensor in data)
        optimizer.zero_grad()
        loss = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        total += loss.detach() / steps
    dist.all_reduce(total, op=dist.ReduceOp.AVG, group=mesh["data"].get_group())
    return total.item()


def evaluate(model: nn.Module, data: tuple[torch.Tensor, ...], mesh: DeviceMesh) -> float:
    """The share of held-out images that are read right."""
    images, labels = (t[mesh["data"].get_local_rank() :: mesh["data"].size()] for t in data)
    with torch.no_grad():
        right = (model(images).argmax(dim=1) == labels).sum()
    dist.all_reduce(right, group=mesh["data"].get_group())
    return right.item() / len(data[0])


if __name__ == "__main__":
    sys.exit(main())
