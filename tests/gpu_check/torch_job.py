"""A rank of the training that torch_training.py looks at."""

from __future__ import annotations

import torch

import ringdp.torch as hvd
from gpu_check.mpi import rank_main

STEPS, BATCH, WIDTH = 30, 32, 64
CLOSE = 1e-9  # of float64: the mean over ranks and that over the joined batch are rounded otherwise


def network() -> torch.nn.Module:
    torch.manual_seed(5)
    layers = [torch.nn.Linear(20, WIDTH), torch.nn.Tanh(), torch.nn.Linear(WIDTH, WIDTH), torch.nn.Tanh()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(WIDTH, 3)).double()


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of all ranks; made on the CPU, so that it is the same everywhere."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH * hvd.size(), 20, generator=generator, dtype=torch.float64)
    return x, (x[:, :3].cumsum(dim=1) > 0).double()


def train(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, mine: slice
) -> list[float]:
    losses = []
    for step in range(STEPS):
        x, y = (part[mine].to(device) for part in batch(step))
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [float(loss) for loss in losses]


def sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def body(_: list[str]) -> dict[str, object]:
    device = hvd.use_local_device()
    model, alone = network().to(device), network().to(device)
    optimizer = hvd.DistributedOptimizer(sgd(model), named_parameters=model.named_parameters())
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    losses = train(model, optimizer, device, slice(hvd.rank(), None, hvd.size()))
    train(alone, sgd(alone), device, slice(None))
    mine = flat(model)
    of_first = hvd.broadcast(mine, root_rank=0, name="parameters")
    assert torch.equal(mine, of_first), f"rank {hvd.rank()} has other parameters than rank 0"
    distance = float((mine - flat(alone)).abs().max())
    assert distance < CLOSE, f"{distance} from the training of one process"
    assert losses[-1] < losses[0], f"nothing was learned: the loss was {losses[0]}, and is {losses[-1]}"
    return {
        "device": device.type,
        "torch": torch.__version__,
        "first": losses[0],
        "last": losses[-1],
        "distance": distance,
    }


if __name__ == "__main__":
    rank_main(body)
