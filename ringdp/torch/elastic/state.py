"""`TorchState`: model, optimizer, samplers, schedulers and plain objects, each saved and sent in its own way."""

from __future__ import annotations

import copy
from typing import Any

import torch

from ringdp import world
from ringdp.elastic import ObjectState
from ringdp.errors import UsageError
from ringdp.state import allgather_object, broadcast_object
from ringdp.torch.elastic.sampler import ElasticSampler
from ringdp.torch.sharded.optimizer import Sharded
from ringdp.torch.state import broadcast_optimizer_state, broadcast_parameters, put_state, state_of


class TorchState(ObjectState):
    """The state of a training process: `TorchState(model=model, optimizer=optimizer, sampler=sampler, epoch=0)`.

    Each argument becomes an attribute. Modules, optimizers (wrapped or not), `ElasticSampler`, and whatever else has
    `state_dict()` and `load_state_dict()`, such as LR schedulers and GradScaler, stay the objects that they are; their
    state is saved, restored and sent. Everything else is treated as by `ObjectState`. A commit holds a second copy of
    the model and of the optimizer's state in memory.

    Args:
        model: a torch.nn.Module, or None.
        optimizer: a torch.optim.Optimizer, or None.
        kwargs: further ones, and objects.

    Raises:
        UsageError: a sharded optimizer.
    """

    def __init__(self, model: Any = None, optimizer: Any = None, **kwargs: Any) -> None:
        given = {**kwargs, "model": model, "optimizer": optimizer}
        for name, value in given.items():
            if isinstance(value, Sharded) and value.is_sharded():
                raise UsageError(
                    f"TorchState({name}=…): each rank has a shard of this optimizer's state, which a lost rank would "
                    "take along: use shard=False, or save what consolidate_state_dict() collects"
                )
        self._handlers: dict[str, StateHandler] = {}
        for name, value in given.items():
            handler = _handler(value)
            if handler is not None:
                self._handlers[name] = handler
                object.__setattr__(self, name, value)
        objects = {name: value for name, value in given.items() if name not in self._handlers}
        super().__init__(broadcast_object, world.rank, **objects)

    def save(self) -> None:
        for handler in self._handlers.values():
            handler.save()
        super().save()

    def restore(self) -> None:
        for handler in self._handlers.values():
            handler.restore()
        super().restore()

    def sync(self) -> None:
        for handler in self._handlers.values():
            handler.sync()
        super().sync()

    def reset(self) -> None:
        for handler in self._handlers.values():
            handler.reset()

    def __setattr__(self, name: str, value: Any) -> None:
        """Another model, optimizer, … in place of the one of this name: what it holds now counts as committed."""
        if name in self.__dict__.get("_handlers", {}):
            self._handlers[name].set_value(value)
        super().__setattr__(name, value)


class StateHandler:
    """How one kind of object is saved, restored and sent."""

    def __init__(self, value: Any) -> None:
        self.set_value(value)

    def set_value(self, value: Any) -> None:
        """Handle this object from now on."""
        self.value = value
        self.save()

    def save(self) -> None:
        """Copy its state."""
        self._saved = copy.deepcopy(self.value.state_dict())

    def restore(self) -> None:
        """Bring the copy back."""
        self.value.load_state_dict(copy.deepcopy(self._saved))

    def sync(self) -> None:
        """Give every rank rank 0's state, and keep a copy."""
        self.value.load_state_dict(broadcast_object(self.value.state_dict()))
        self.save()

    def reset(self) -> None:
        """ringdp was initialised again."""


class ModelStateHandler(StateHandler):
    """A torch.nn.Module, buffers included."""

    def sync(self) -> None:
        broadcast_parameters(self.value.state_dict(), root_rank=0)
        self.save()


class OptimizerStateHandler(StateHandler):
    """A torch.optim.Optimizer. Its state keeps its dtypes, which `load_state_dict` would cast to the parameters'."""

    def save(self) -> None:
        self._saved = copy.deepcopy(state_of(self.value))

    def restore(self) -> None:
        put_state(self.value, copy.deepcopy(self._saved))

    def sync(self) -> None:
        broadcast_optimizer_state(self.value, root_rank=0)
        self.save()

    def reset(self) -> None:
        """Ranks fail at different places: what each has of a window, and its count of steps, is forgotten."""
        exchange = getattr(self.value, "_exchange", None)
        if exchange is not None:
            exchange.start_over()
        self.value.zero_grad()


class SamplerStateHandler(StateHandler):
    """An `ElasticSampler`: rank 0's progress, and what all ranks have recorded one by one."""

    def sync(self) -> None:
        of_rank = allgather_object(self.value.state_dict())
        state = dict(of_rank[0])
        recorded = [s.get("processed_indices", ()) for s in of_rank if s["epoch"] == state["epoch"]]
        if any(recorded):
            state["processed_indices"] = set().union(*recorded)
        self.value.load_state_dict(state)
        self.save()

    def reset(self) -> None:
        self.value.reset()


_handler_registry: list[tuple[type, type[StateHandler]]] = [
    (torch.nn.Module, ModelStateHandler),
    (torch.optim.Optimizer, OptimizerStateHandler),
    (ElasticSampler, SamplerStateHandler),
]


def get_handler_registry() -> list[tuple[type, type[StateHandler]]]:
    """Pairs of a type and the `StateHandler` for it; the first that fits is taken."""
    return _handler_registry


def set_handler_registry(registry: list[tuple[type, type[StateHandler]]]) -> None:
    """Replace the registry, for every `TorchState` made from now on."""
    global _handler_registry
    _handler_registry = registry


def _handler(value: Any) -> StateHandler | None:
    for kind, handler in _handler_registry:
        if isinstance(value, kind):
            return handler(value)
    if not isinstance(value, type) and all(
        hasattr(value, name) for name in ("state_dict", "load_state_dict")
    ):
        return StateHandler(value)
    return None
