"""What `DistributedOptimizer(model=…)` adds, for who is used to DistributedDataParallel: the ranks' models are compared
and made equal at once, and buffers (BatchNorm's running statistics) stay those of the first rank.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch

from ringdp import world
from ringdp.constants import Min
from ringdp.errors import PeerError
from ringdp.process_sets import ProcessSet
from ringdp.torch import device
from ringdp.torch.adapter import refuse_unsupported
from ringdp.torch.ops import operations
from ringdp.torch.state import broadcast_parameters


def make_equal(model: torch.nn.Module, name: str, process_set: ProcessSet) -> None:
    """Give every rank the first rank's parameters and buffers.

    Raises:
        MismatchError: names, shapes or dtypes differ, naming the first; on every rank, before anything is written.
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    assert process_set.ranks is not None
    broadcast_parameters(tensors, process_set.ranks[0], name, process_set)


class Buffers:
    """A model's buffers: broadcast from the first rank of the set before the first training forward of each step.

    That is a `forward` of the model itself in training mode, with gradients recorded, outside `no_sync()`, and the
    first one since the last `step()`, `synchronize()` or `zero_grad()`: with accumulation, ranks may disagree within a
    window, as DDP's may under `no_sync()`. Evaluation exchanges nothing, so one rank may validate alone. Once that rank
    has joined (`ringdp.join`), the first of those that have not takes its place.
    """

    def __init__(self, model: torch.nn.Module, name: str, process_set: ProcessSet) -> None:
        self.is_due = True
        self.is_local = False  # inside no_sync()
        self._name, self._process_set = name, process_set
        self.begin_with_the_first()
        for buffer_name, buffer in model.named_buffers():
            refuse_unsupported(buffer, f"buffer {buffer_name}")
        mine = weakref.ref(self)

        def before(module: torch.nn.Module, _: Any) -> None:
            alive = mine()
            if alive is not None:
                alive.before_forward(module)

        # torch.compile runs it as it is. (Nothing more is imported: making an optimizer has imported the compiler.)
        self._handle = model.register_forward_pre_hook(torch.compiler.disable(before))
        weakref.finalize(self, self._handle.remove).atexit = False

    def begin_with_the_first(self) -> None:
        """No rank has joined (any more)."""
        assert self._process_set.ranks is not None
        self._root = self._process_set.ranks[0]

    def before_forward(self, model: torch.nn.Module) -> None:
        """The model is about to run."""
        if not (self.is_due and model.training and torch.is_grad_enabled()) or self.is_local:
            return
        self.is_due = False
        parts: dict[str, list[torch.Tensor]] = {}
        for buffer in model.buffers():
            parts.setdefault(device.kind_of(buffer), []).append(buffer)
        with torch.no_grad():
            for kind, buffers in parts.items():
                self._broadcast(kind, buffers)

    def _broadcast(self, kind: str, buffers: list[torch.Tensor]) -> None:
        flat, name = torch.cat([buffer.reshape(-1) for buffer in buffers]), f"{self._name}.buffers.{kind}"
        try:
            operations.broadcast_(flat, self._root, name, self._process_set)
        except PeerError as error:
            if "has joined" not in str(error):
                raise
            self._root = self._first_active()
            operations.broadcast_(flat, self._root, name, self._process_set)
        if world.rank() == self._root:
            return
        for buffer, part in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(part.view(buffer.shape))

    def _first_active(self) -> int:
        mine = torch.tensor([world.rank()])
        name = f"{self._name}.buffers"
        return int(operations.allreduce(mine, name=name, op=Min, process_set=self._process_set))
