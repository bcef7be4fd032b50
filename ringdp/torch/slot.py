"""A parameter of a distributed optimizer, and the way of its gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ringdp.torch import device
from ringdp.torch.memory import copy_past_caches, passes_caches
from ringdp.torch.plan import Entry, view_strides
from ringdp.torch.sharded.covered import Covered, uncovered

if TYPE_CHECKING:
    from ringdp.torch.bucket import Bucket

Copies = list[tuple[torch.Tensor, torch.Tensor]]  # to, from


class Slot:
    """One parameter. The tensors named here are what tells old gradients from new ones.

    Its gradient travels in its *place* in the bucket. Where the place has the parameter's dtype, it is the gradient
    too: the *view*, which `param.grad` becomes when a gradient was copied in. Where the wire has 16 bits, `casts`,
    the gradient stays the tensor that autograd handed over: that is the view then, until it is dropped. It is cast
    into its place before the bucket leaves (`pack`) and back when the bucket has come back.

    In host memory a gradient is copied when it comes, and is in the caches. On a GPU it stays where it is until the
    bucket leaves (`is_apart`), and those of a bucket are copied, or cast, by one launch.
    """

    def __init__(self, index: int, name: str, param: torch.Tensor, group: int | None = None) -> None:
        self.index = index  # in the optimizer's list
        self.name = name
        self.param = param
        self.group = group  # whose gradients the user wants exchanged together
        self.sparse_dim = (
            0  # its gradients are sparse, with so many sparse dimensions: they go beside the plan
        )
        self.planned = False  # is one of the plan's parameters
        self.bucket: Bucket | None = None
        self.place: torch.Tensor | None = None  # in the bucket
        self.view: torch.Tensor | None = None  # where the reduced gradient will be
        self.casts = False  # the place has another dtype than the gradient
        self.passes_caches = False  # gradients are written into the place past the caches
        self.packed = -1  # casts: the version of the view that was cast into the place
        self.is_apart = False  # p.grad is to be copied into the view when the bucket leaves
        self.stream = 0  # on a GPU: where that was computed
        self.planned_as = self.entry()  # what the plan knows of it
        self.window = -1  # the last one in which its gradient came into the view
        self.arrived_in = -1  # the last pass in which a gradient came
        self.reduced: torch.Tensor | None = None  # p.grad as the last exchange left it: nothing new in it
        self.carry: torch.Tensor | None = None  # exchanged already, to be added to what the bucket brings
        self.late = False  # p.grad is new, apart from the bucket, which has left
        self.base: torch.Tensor | None = None  # late: what p.grad was before
        self.cover: Covered | None = None  # p.grad, where this rank's shard of it alone is reduced
        self.node: Any = None  # the hook before accumulation lives as long as this
        self.hooks: list[Any] = []

    def entry(self) -> Entry:
        """What a plan made now knows of the parameter."""
        p = self.param
        strides = view_strides(p.shape, p.stride())
        return Entry(self.name, tuple(p.shape), strides, p.dtype, self.group, device.is_on_gpu(p))

    def cover_gradient(self) -> None:
        """Let nobody take `param.grad` for a gradient that is reduced all over."""
        if self.param.grad is not None and self.planned:
            self.cover = self.param.grad.detach().as_subclass(Covered)
            self.param.grad = self.cover

    def uncover_gradient(self) -> None:
        """The exchange goes on with what it had made of `param.grad`, unless that was replaced."""
        if self.cover is not None and self.param.grad is self.cover:
            self.param.grad = self.reduced if self.reduced is not None else uncovered(self.cover)
        self.cover = None

    def forget(self) -> None:
        """The gradient was dropped."""
        self.cover = None
        self.reduced = self.carry = self.base = None
        self.late = self.is_apart = False
        if self.casts:
            self.view = None

    def enter_plan(self) -> None:
        """A plan is made that holds the parameter as it is now."""
        self.planned = True
        self.planned_as = self.entry()

    def join(self, bucket: Bucket, place: torch.Tensor) -> None:
        """The plan has memory: `place`, in the parameter's shape and strides."""
        self.bucket, self.place = bucket, place
        self.casts = place.dtype != self.planned_as.dtype
        self.view = None if self.casts else place
        self.passes_caches = not self.casts and passes_caches(place, bucket.flat)

    def leave_plan(self) -> None:
        """The plan holds no more: the view's memory may be in other hands."""
        self.planned = self.casts = self.is_apart = False
        self.bucket = self.place = self.view = None

    def fits(self) -> bool:
        """False if the parameter's dtype or shape has changed since the plan was made, or its kind of memory."""
        param, planned = self.param, self.planned_as
        return (
            self.bucket is not None
            and param.dtype is planned.dtype
            and param.shape == planned.shape
            and device.is_on_gpu(param) == planned.on_gpu
        )

    def in_view(self, tensor: torch.Tensor) -> bool:
        """True if `tensor` is the view, or another tensor over its memory."""
        return tensor is self.view or (
            self.view is not None
            and tensor.layout is torch.strided
            and tensor.data_ptr() == self.view.data_ptr()
        )

    def memory(self) -> torch.Tensor:
        """The view, to be written; a gradient that is cast, and has none, gets memory of its own."""
        if self.view is None:
            entry = self.planned_as
            self.view = self.param.new_empty_strided(entry.shape, entry.strides, dtype=entry.dtype)
            self.packed = -1
        return self.view

    def take(self, grad: torch.Tensor, is_ours: bool = True) -> None:
        """Copy a gradient into the view, which becomes `param.grad`. One that is cast becomes the view itself,
        if it `is_ours`: nobody else has it. (With create_graph, autograd may have saved it.)"""
        if self.carry is not None:
            self.keep_carry()
        if self.casts and not self.in_view(grad):
            self.view = grad if is_ours and not grad.requires_grad else None
            self.packed = -1
        if grad.requires_grad:
            if not self.in_view(grad):
                self.memory().copy_(grad.detach())
            self.param.grad = connected(grad, self.memory())
            return
        view = self.memory()
        if self.passes_caches:
            copy_past_caches(view, grad)
        elif grad is not view:
            view.copy_(grad)
        self.param.grad = view

    def take_later(self, grad: torch.Tensor, gpu: int) -> None:
        """As `take`, but it is copied with all others of the bucket, by `copies_in`."""
        self.stream = device.current_stream(gpu)
        if grad is self.view:
            self.is_apart = False
        elif self.casts or grad.requires_grad:
            self.take(grad)
        else:
            self.is_apart = True

    def pack(self) -> None:
        """The place holds the gradient as it is now."""
        for place, view in self.copies_in():
            place.copy_(view)

    def copies_in(self) -> Copies:
        """What is to be copied, so that the place holds the gradient as it is now."""
        assert self.place is not None
        grad = self.param.grad
        if self.is_apart and grad is not None and not self.in_view(grad):
            self.is_apart = False
            self.keep_carry()
            self.param.grad = self.memory()
            return [(self.memory(), grad.detach())]
        if self.casts and self.packed != self.memory()._version:
            self.packed = self.memory()._version
            return [(self.place, self.memory())]
        return []

    def dense_or_beside(self, grad: torch.Tensor, densify: bool) -> torch.Tensor:
        """A sparse gradient made dense, if it is to be; else it is noted that it goes beside the plan."""
        if densify or grad.layout is not torch.sparse_coo:
            self.param.grad = grad = grad.to_dense()
        else:
            self.sparse_dim = max(self.sparse_dim, grad.sparse_dim())
            self.late = True
        return grad

    def came_in(self, window: int) -> bool:
        """A gradient came in this window, and module.zero_grad() has not dropped it since."""
        return self.window == window and self.param.grad is not None

    def fill(self, grad: torch.Tensor | None, window: int) -> bool:
        """The bucket leaves, and nothing came for this parameter from autograd: what lies in `param.grad`
        counts if it is new, and zeros do otherwise. False if there is no gradient."""
        assert self.place is not None
        self.is_apart = False
        if grad is None or self.late or not self.fits():
            self.place.zero_()
            self.carry, self.window = None, -1
            return False
        self.window = window
        if grad is self.reduced:
            self.carry, self.reduced = grad, None
            self.keep_carry()
            self.param.grad = self.memory().zero_()
        elif not self.in_view(grad):
            self.take(grad, is_ours=False)
        return True

    def copies_out(self) -> Copies:
        """The place holds the reduced gradient: what is to be copied, so that the view has it."""
        if not self.casts:
            return []
        assert self.place is not None
        self.packed = -1
        return [(self.memory(), self.place)]

    def came_back(self) -> None:
        """The view holds the reduced gradient."""
        if self.carry is not None:
            with torch.no_grad():
                self.memory().add_(self.carry)
            self.carry = None
        if not self.late:
            self.reduced = self.param.grad

    def adopt(self) -> None:
        """The place holds a reduced gradient to which this rank has added nothing: let the parameter have it."""
        if self.casts:
            assert self.place is not None
            self.view = None
            self.memory().copy_(self.place)
        self.param.grad = self.reduced = self.view

    def put_aside(self, left: bool) -> None:
        """Autograd is about to accumulate: put aside what must not be exchanged again.

        `left`: the bucket has left in this window, so what comes now is late.
        """
        if self.carry is not None and not left and self.param.grad is None:
            self.carry = None  # dropped
        if self.late or (self.reduced is None and not left):
            return
        if left or not self.planned:
            self.base, self.late = self.param.grad, True
        else:
            self.carry = self.param.grad
        self.reduced = self.param.grad = None

    def keep_carry(self) -> None:
        """The view is about to be written: a carry that lies in it and the view part."""
        if self.carry is None or not self.in_view(self.carry):
            return
        if self.casts:
            self.view = None
        else:
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
