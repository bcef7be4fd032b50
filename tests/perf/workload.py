"""A training step that is nearly all exchange: ResNet-50's parameters, a loss of one product and sum, plain SGD.

Everything is a small integer times a power of two, so that after any number of steps the parameters are known exactly,
whatever the order of addition, and with 16 bits on the wire too.
"""

from collections.abc import Iterator
from typing import Any

import torch

STEP = 2.0**-10  # learning rate
MIB = 1 << 20


def resnet50_shapes() -> Iterator[tuple[int, ...]]:
    """The 161 shapes of its 25,557,032 parameters, in their order (He et al., Deep Residual Learning, table 1)."""

    def convolution(out: int, into: int, side: int) -> Iterator[tuple[int, ...]]:
        yield from ((out, into, side, side), (out,), (out,))  # and its batch norm: weight, bias

    yield from convolution(64, 3, 7)
    into = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield from convolution(width, into, 1)
            yield from convolution(width, width, 3)
            yield from convolution(4 * width, width, 1)
            if block == 0:
                yield from convolution(4 * width, into, 1)
            into = 4 * width
    yield from ((1000, into), (1000,))


class Model(torch.nn.Module):
    """loss = Σ p · c; so the gradient of every element is c, of which each rank has its own."""

    def __init__(self, c: float) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterList(torch.zeros(shape) for shape in resnet50_shapes())
        self.factors = [torch.full_like(p, c, requires_grad=False) for p in self.weights]

    def forward(self) -> torch.Tensor:
        total = torch.zeros(())
        for p, c in zip(self.weights, self.factors, strict=True):
            total = total + (p * c).sum()
        return total


class Trainer:
    """One contestant's model, optimizer and step."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.mean = (ranks + 1) / 2  # of the ranks' gradients
        self.model: Any = Model(rank + 1.0)
        self.optimizer: Any = torch.optim.SGD(self.model.parameters(), lr=STEP)
        self.steps = 0

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model().backward()
        self.optimizer.step()
        self.steps += 1

    def wrong_elements(self) -> int:
        """Elements of the parameters that are not exactly what they must be after that many steps."""
        wanted = -self.steps * STEP * self.mean
        return sum(int((p != wanted).sum()) for p in self.model.parameters())


class Plain(Trainer):
    """No exchange: every rank for itself."""

    def __init__(self, rank: int, ranks: int) -> None:
        super().__init__(rank, ranks)
        self.mean = rank + 1.0


class DDP(Trainer):
    """torch.nn.parallel.DistributedDataParallel over gloo, which must be initialised."""

    def __init__(self, rank: int, ranks: int, hook: str = "") -> None:
        super().__init__(rank, ranks)
        self.model = torch.nn.parallel.DistributedDataParallel(self.model, gradient_as_bucket_view=True)
        if hook:
            from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

            inner = getattr(default_hooks, hook)
            # By its own name DDP refuses the bfloat16 hook on a CPU, where it works.
            self.model.register_comm_hook(None, lambda state, bucket: inner(state, bucket))


class Wrapped(Trainer):
    """`DistributedOptimizer` of ringdp.torch or horovod.torch, which must be initialised."""

    def __init__(self, rank: int, ranks: int, module: Any, compression: str = "none") -> None:
        super().__init__(rank, ranks)
        self.optimizer = module.DistributedOptimizer(
            self.optimizer,
            named_parameters=self.model.named_parameters(),
            compression=getattr(module.Compression, compression),
        )
        module.broadcast_parameters(self.model.state_dict(), root_rank=0)
