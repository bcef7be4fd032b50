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


def skipped_steps(device: torch.device) -> list[int]:
    """Which steps GradScaler has skipped on this rank, where the last rank alone overflows in step 2."""
    model = network().float().to(device)
    optimizer = hvd.DistributedOptimizer(sgd(model), named_parameters=model.named_parameters())
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**8)
    skipped = []
    for step in range(4):
        x, y = (part[hvd.rank() :: hvd.size()].float().to(device) for part in batch(step))
        factor = float("inf") if step == 2 and hvd.rank() == hvd.size() - 1 else 1.0
        optimizer.zero_grad()
        scaler.scale(torch.nn.functional.mse_loss(model(x), y) * factor).backward()
        before = flat(model)
        scaler.step(optimizer)
        scaler.update()
        if torch.equal(before, flat(model)):
            skipped.append(step)
    assert scaler.get_scale() == 2.0**7, f"rank {hvd.rank()} scales by {scaler.get_scale()}"
    assert is_as_on_first(model, "scaled"), (
        f"rank {hvd.rank()} has other parameters than rank 0 after an overflow"
    )
    return skipped


def is_as_on_first(model: torch.nn.Module, name: str) -> bool:
    mine = flat(model)
    return torch.equal(mine, hvd.broadcast(mine, root_rank=0, name=name))


def body(_: list[str]) -> dict[str, object]:
    device = hvd.use_local_device()
    model, alone = network().to(device), network().to(device)
    optimizer = hvd.DistributedOptimizer(sgd(model), named_parameters=model.named_parameters())
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    losses = train(model, optimizer, device, slice(hvd.rank(), None, hvd.size()))
    train(alone, sgd(alone), device, slice(None))
    assert is_as_on_first(model, "parameters"), f"rank {hvd.rank()} has other parameters than rank 0"
    distance = float((flat(model) - flat(alone)).abs().max())
    assert distance < CLOSE, f"{distance} from the training of one process"
    assert losses[-1] < losses[0], f"nothing was learned: the loss was {losses[0]}, and is {losses[-1]}"
    skipped = skipped_steps(device)
    assert skipped == [2], f"rank {hvd.rank()} has skipped steps {skipped}, and not step 2 alone"
    return {
        "device": device.type,
        "torch": torch.__version__,
        "first": losses[0],
        "last": losses[-1],
        "distance": distance,
    }


if __name__ == "__main__":
    rank_main(body)
