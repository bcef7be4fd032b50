"""A gradient of which this rank has a part."""

from __future__ import annotations

from typing import Any

import torch

from ringdp.errors import UsageError

# What zero_grad() does, and what says nothing of the values. (Attributes come as a getter or setter of this name.)
_ALLOWED = {
    "__get__",
    "__set__",
    "__hash__",
    "_foreach_zero_",
    "dim",
    "element_size",
    "is_contiguous",
    "is_floating_point",
    "nelement",
    "numel",
    "requires_grad_",
    "detach_",
    "size",
    "storage_offset",
    "stride",
    "zero_",
}


class Covered(torch.Tensor):
    """`param.grad` after the reduce-scatter of a sharded optimizer: elements of other ranks' shards are not reduced.

    A norm or anything else that was made of it would be wrong without a sign; so it raises.
    """

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Raises UsageError for what reads or changes the values."""
        if getattr(func, "__name__", "") not in _ALLOWED:
            raise UsageError(
                "this gradient was reduced by a sharded optimizer: a rank has the sum of its own shard alone. To clip, "
                "use optimizer.clip_grad_norm_(max_norm); for whole gradients, DistributedOptimizer(..., shard=False)"
            )
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        """The shape, but no values."""
        return f"Covered(shape={tuple(self.shape)}, dtype={self.dtype})"


def uncovered(grad: torch.Tensor | None) -> torch.Tensor | None:
    """The tensor itself."""
    if not isinstance(grad, Covered):
        return grad
    with torch._C.DisableTorchFunctionSubclass():
        return grad.as_subclass(torch.Tensor)
