"""`TorchState`: model, optimizer, samplers, schedulers and plain objects, each saved and sent in its own way."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch

from ringdp import world
from ringdp.commits.kept import Payloads, is_wanted
from ringdp.commits.loading import Payload
from ringdp.elastic import ObjectState, refuse_other_names
from ringdp.errors import UsageError
from ringdp.state import broadcast_object
from ringdp.torch.elastic import generators
from ringdp.torch.elastic.handlers import (
    ModelStateHandler,
    OptimizerStateHandler,
    SamplerStateHandler,
    StateHandler,
)
from ringdp.torch.elastic.payload import pack, unpack
from ringdp.torch.elastic.sampler import ElasticSampler
from ringdp.torch.elastic.shards import ShardedStateHandler
from ringdp.torch.sharded.optimizer import Sharded


class TorchState(ObjectState):
    """The state of a training process: `TorchState(model=model, optimizer=optimizer, sampler=sampler, epoch=0)`.

    Each argument becomes an attribute. Modules, optimizers (wrapped or not), `ElasticSampler`, and whatever else has
    `state_dict()` and `load_state_dict()`, such as LR schedulers and GradScaler, stay the objects that they are; their
    state is saved, restored and sent. Everything else is treated as by `ObjectState`. A commit holds a second copy of
    the model and of the optimizer's state in memory; while it is made, there is a third one.

    Where there is a folder, each rank also writes its random numbers and its shard of a sharded optimizer's state;
    tensors and plain data are read as such, only other objects are pickled.

    Args:
        model: a torch.nn.Module, or None.
        optimizer: a torch.optim.Optimizer, or None.
        folder: see `ObjectState`.
        kwargs: further ones, and objects.

    Raises:
        UsageError: a sharded optimizer, and no folder; or one that is not of all ranks.
    """

    def __init__(
        self,
        model: Any = None,
        optimizer: Any = None,
        *,
        folder: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        given = {**kwargs, "model": model, "optimizer": optimizer}
        for name, value in given.items():
            if isinstance(value, Sharded) and value.is_sharded() and not is_wanted(folder):
                raise UsageError(
                    f"TorchState({name}=…): each rank has a shard of this optimizer's state, which a lost rank would "
                    "take along: give a folder, to which all shards are written at each commit, use shard=False, or "
                    "save what consolidate_state_dict() collects"
                )
        self._handlers: dict[str, StateHandler] = {}
        for name, value in given.items():
            handler = _handler(value)
            if handler is not None:
                self._handlers[name] = handler
                object.__setattr__(self, name, value)
        objects = {name: value for name, value in given.items() if name not in self._handlers}
        super().__init__(broadcast_object, world.rank, folder=folder, **objects)

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

    def _copies(self) -> Any:
        return super()._copies(), {name: handler.copies() for name, handler in self._handlers.items()}

    def _put_copies(self, copies: Any) -> None:
        objects, handled = copies
        super()._put_copies(objects)
        for name, handler in self._handlers.items():
            handler.put_copies(handled[name])

    # --- see ringdp.commits.kept.Holder ---

    def _payloads(self) -> Payloads:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # the copies are there, whatever stream the writing thread reads them in
        handlers = self._handlers.items()
        state = {
            "handled": {name: handler.committed() for name, handler in handlers},
            "objects": self._saved_state,
        }
        part = {
            "generators": generators.states(),
            "own": {name: handler.own() for name, handler in handlers},
        }
        sharded = any(isinstance(handler, ShardedStateHandler) for _, handler in handlers)
        return Payloads(pack(state), pack(part), sharded)

    def _put_state(self, state: Payload) -> None:
        found = unpack(state)
        refuse_other_names([*found["handled"], *found["objects"]], [*self._handlers, *self._saved_state])
        for name, handler in self._handlers.items():
            handler.put_committed(found["handled"][name])
        self._take_saved(found["objects"])

    def _fits(self, own: Payload) -> bool:
        part = unpack(own)["own"]
        return all(handler.fits(part[name]) for name, handler in self._handlers.items())

    def _put_parts(self, parts: Iterable[tuple[int, Payload]], as_before: bool) -> None:
        numbers = None
        for rank, payload in parts:
            part = unpack(payload)
            for name, handler in self._handlers.items():
                take = handler.put_own if as_before else handler.take_own
                take(part["own"][name])
            if rank == world.rank():
                numbers = part["generators"]
        if not as_before:
            for handler in self._handlers.values():
                handler.own_taken()
        if numbers is not None:
            generators.put(numbers)


_handler_registry: list[tuple[type, type[StateHandler]]] = [
    (torch.nn.Module, ModelStateHandler),
    (Sharded, ShardedStateHandler),
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
