"""A parameter of a distributed optimizer, and the way of its gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ringdp import world
from ringdp.errors import UsageError
from ringdp.torch.plan import Entry, view_strides

if TYPE_CHECKING:
    from ringdp.torch.bucket import Bucket


class Slot:
    """One parameter. The tensors named here are what tells old gradients from new ones."""

    def __init__(self, index: int, name: str, param: torch.Tensor) -> None:
        self.index = index  # in the optimizer's list
        self.name = name
        self.param = param
        self.planned = False  # is one of the plan's parameters
        self.bucket: Bucket | None = None
        self.view: torch.Tensor | None = None  # into the bucket
        self.window = -1  # the last one in which its gradient came into the view
        self.arrived_in = -1  # the last pass in which a gradient came
        self.reduced: torch.Tensor | None = None  # p.grad as the last exchange left it: nothing new in it
        self.carry: torch.Tensor | None = None  # exchanged already, to be added to what the bucket brings
        self.late = False  # p.grad is new, apart from the bucket, which has left
        self.base: torch.Tensor | None = None  # late: what p.grad was before
        self.node: Any = None  # the hook before accumulation lives as long as this
        self.hooks: list[Any] = []

    def entry(self) -> Entry:
        """What the plan knows of the parameter."""
        p = self.param
        return Entry(self.name, tuple(p.shape), view_strides(p.shape, p.stride()), p.dtype)

    def forget(self) -> None:
        """The gradient was dropped."""
        self.reduced = self.carry = self.base = None
        self.late = False

    def leave_plan(self) -> None:
        """The plan holds no more: the view's memory may be in other hands."""
        self.planned = False
        self.bucket = self.view = None

    def fits(self) -> bool:
        """False if the parameter has changed its dtype or shape since the plan was made."""
        view = self.view
        return view is not None and view.dtype == self.param.dtype and view.shape == self.param.shape

    def in_view(self, tensor: torch.Tensor) -> bool:
        """True if `tensor` is the view, or another tensor over its memory."""
        return tensor is self.view or (
            self.view is not None
            and tensor.layout is torch.strided
            and tensor.data_ptr() == self.view.data_ptr()
        )

    def take(self, grad: torch.Tensor) -> None:
        """Copy a gradient into the view, which becomes `param.grad`."""
        assert self.view is not None
        if self.carry is not None:
            self.keep_carry()
        if not grad.requires_grad:
            self.view.copy_(grad)
            self.param.grad = self.view
            return
        if not self.in_view(grad):
            self.view.copy_(grad.detach())
        self.param.grad = connected(grad, self.view)

    def densify(self, grad: torch.Tensor, allowed: bool) -> torch.Tensor:
        """A sparse gradient made dense."""
        if not allowed:
            raise UsageError(
                f"rank {world.rank()}: the gradient of {self.name} is sparse; give DistributedOptimizer "
                "sparse_as_dense=True (sparse gradients on the wire come in a later release)"
            )
        self.param.grad = dense = grad.to_dense()
        return dense

    def came_in(self, window: int) -> bool:
        """A gradient came in this window, and module.zero_grad() has not dropped it since."""
        return self.window == window and self.param.grad is not None

    def fill(self, grad: torch.Tensor | None, window: int) -> bool:
        """The bucket leaves, and nothing came for this parameter from autograd: what lies in `param.grad`
        counts if it is new, and zeros do otherwise. False if there is no gradient."""
        assert self.view is not None
        if grad is None or self.late or not self.fits():
            self.view.zero_()
            self.carry, self.window = None, -1
            return False
        self.window = window
        if grad is self.reduced:
            self.carry, self.reduced = grad, None
            self.keep_carry()
            self.view.zero_()
            self.param.grad = self.view
        elif not self.in_view(grad):
            self.take(grad)
        return True

    def came_back(self) -> None:
        """The view holds the reduced gradient."""
        assert self.view is not None
        if self.carry is not None:
            with torch.no_grad():
                self.view.add_(self.carry)
            self.carry = None
        if not self.late:
            self.reduced = self.param.grad

    def put_aside(self, left: bool) -> None:
        """Autograd is about to accumulate: put aside what must not be exchanged again.

        `left`: the bucket has left in this window, so what comes now is late.
        """
        if self.param.grad is None and not left:
            self.carry = None  # dropped
        if self.late or (self.reduced is None and not left):
            return
        if left or not self.planned:
            self.base, self.late = self.param.grad, True
        else:
            self.carry = self.param.grad
        self.reduced = self.param.grad = None

    def keep_carry(self) -> None:
        """The view is about to be written: give a carry that lies in it memory of its own."""
        if self.carry is not None and self.in_view(self.carry):
            self.carry = self.carry.detach().clone()


class _Connected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
        return view.detach()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        return grad, None


def connected(local: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
    """The view's memory as a tensor whose gradient flows to `local` unchanged.

    `backward(create_graph=True)` leaves a gradient that can be differentiated again. Its reduced value depends
    on this rank's part of it through 1/N; the other ranks hold the rest of the derivative, and the next
    exchange adds them up.
    """
    return _Connected.apply(local, view)
