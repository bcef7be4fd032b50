"""A rank that trains by steps captured in a CUDA graph, and as long without one."""

from __future__ import annotations

import torch

import ringdp.torch as hvd
from gpu_check.mpi import rank_main
from gpu_check.torch_job import CLOSE, batch, flat, is_as_on_first, network, sgd

WARM_UP, STEPS = 3, 20


class Training:
    def __init__(self, device: torch.device) -> None:
        self.model = network().to(device)
        self.optimizer = hvd.DistributedOptimizer(
            sgd(self.model), named_parameters=self.model.named_parameters()
        )
        self.x, self.y = (part[hvd.rank() :: hvd.size()].to(device) for part in batch(0))

    def put(self, step: int) -> None:
        for to, part in zip((self.x, self.y), batch(step), strict=True):
            to.copy_(part[hvd.rank() :: hvd.size()])

    def step(self) -> None:
        self.optimizer.zero_grad()
        torch.nn.functional.mse_loss(self.model(self.x), self.y).backward()
        self.optimizer.step()


def body(_: list[str]) -> dict[str, object]:
    device = hvd.use_local_device()
    captured, plain = Training(device), Training(device)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for step in range(WARM_UP):
            captured.put(step)
            captured.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    captured.optimizer.zero_grad()
    with torch.cuda.graph(graph):
        captured.step()
    for step in range(WARM_UP, STEPS):
        captured.put(step)
        graph.replay()
    for step in range(STEPS):
        plain.put(step)
        plain.step()
    distance = float((flat(captured.model) - flat(plain.model)).abs().max())
    assert distance < CLOSE, f"{distance} from the training without a graph"
    assert is_as_on_first(captured.model, "captured"), f"rank {hvd.rank()} has other parameters than rank 0"
    del graph
    return {"distance": distance}


if __name__ == "__main__":
    rank_main(body)
