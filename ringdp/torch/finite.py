"""Overflows that one rank alone would see: found before the exchange, shown to all after it.

A sum carries an inf or NaN of one rank to all others. Where something else is done with the gradients (Min, Max,
a compression of the user's, a communication hook), each rank looks at its own before they leave; the window's vote says
whether some rank found one, and then every rank writes an inf into its own gradients. So GradScaler skips the step, and
lowers its scale, on all ranks or on none.

An optimizer over a process set says nothing to the other ranks. But ranks may use one GradScaler, with one scale, for
it and for an optimizer over all ranks: so the latter looks at the gradients of the former too, when it votes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable

import torch

from ringdp import world
from ringdp.torch import device
from ringdp.torch.sharded.covered import uncovered


def is_finite(tensor: torch.Tensor) -> bool:
    """Neither an inf nor a NaN is in it. One pass over the memory, and nothing is allocated. Waits for a GPU."""
    return not not_finite(tensor)


def not_finite(tensor: torch.Tensor) -> torch.Tensor:
    """A scalar beside the tensor, bool: true if an inf or a NaN is in it."""
    if tensor.layout is not torch.strided:
        tensor = tensor._values() if tensor.layout is torch.sparse_coo else tensor.values()
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return tensor.new_zeros((), dtype=torch.bool)
    low, high = torch.aminmax(tensor.detach())  # NaN if any is
    return ~(torch.isfinite(low) & torch.isfinite(high))


def show(params: Iterable[torch.Tensor]) -> None:
    """Write an inf into the first gradient that can hold one."""
    for param in params:
        grad = param.grad
        if grad is None or grad.numel() == 0 or not grad.is_floating_point():
            continue
        with torch.no_grad():
            if grad.layout is torch.strided:
                grad.detach()[(0,) * grad.dim()] = torch.inf
            elif grad.layout is torch.sparse_coo and grad._values().numel():
                grad._values().view(-1)[0] = torch.inf
            else:
                continue
        return


def show_where(found: torch.Tensor, params: Iterable[torch.Tensor]) -> None:
    """Write an inf into the first gradient beside `found`, of one element, if that is not 0: the host need not know."""
    for param in params:
        grad = param.grad
        if grad is None or not device.is_on_gpu(grad) or not grad.is_floating_point():
            continue
        values = grad._values() if grad.layout is torch.sparse_coo else grad
        if values.layout is torch.strided and values.numel():
            with torch.no_grad():
                first = values.detach()[(0,) * values.dim()]
                first.masked_fill_(found.view(()) > 0, torch.inf)
            return


class Partial:
    """The parameters of an optimizer that does not exchange among all ranks."""

    def __init__(self, params: Callable[[], Iterable[torch.Tensor]]) -> None:
        """`params` is a method of an object that is not kept alive."""
        self.world = world.current()
        self._params = weakref.WeakMethod(params)
        _partial.add(self)

    def is_finite(self) -> bool:
        """Of the gradients as they are now, on this rank."""
        params = self._params()
        if params is None:
            return True
        grads = [uncovered(p.grad) for p in params()]
        return all(grad is None or is_finite(grad) for grad in grads)


_partial: weakref.WeakSet[Partial] = weakref.WeakSet()


def partial_gradients_are_finite(here: world.World) -> bool:
    """Of this rank's optimizers over process sets."""
    return all(partial.is_finite() for partial in list(_partial) if partial.world is here)
