"""The two hooks of a parameter: before autograd accumulates into `param.grad`, and after."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ringdp.torch.slot import Slot

if TYPE_CHECKING:
    from ringdp.torch.exchange import Exchange


def attach(exchange: weakref.ref[Exchange], slot: Slot) -> None:
    """Let the parameter tell `exchange` of its gradients. Does nothing where that is so already, or none can come.

    The hooks do not keep the exchange alive: an optimizer that is dropped falls silent.
    """
    if not slot.param.requires_grad:
        return
    # Of the node, not of the tensor: hooks of the tensor run for torch.autograd.grad() too, which accumulates
    # nothing.
    node = torch.autograd.graph.get_gradient_edge(slot.param).node
    if node is slot.node:
        return
    detach(slot)

    def before(grads: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        alive = exchange()
        if alive is None:
            return None
        with alive.lock:
            return alive.arriving(slot, grads)

    def after(_: torch.Tensor) -> None:
        alive = exchange()
        if alive is not None:
            with alive.lock:
                alive.arrived(slot)

    slot.node = node
    slot.hooks = [node.register_prehook(before), slot.param.register_post_accumulate_grad_hook(after)]


def detach(slot: Slot) -> None:
    """Remove the hooks."""
    for hook in slot.hooks:
        hook.remove()
    slot.hooks, slot.node = [], None


def detach_all(slots: Sequence[Slot]) -> None:
    """Remove the hooks of all."""
    for slot in slots:
        detach(slot)
