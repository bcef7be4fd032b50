"""A gradient of which this rank has a part."""

from __future__ import annotations

from typing import Any

import torch

from ringdp.errors import UsageError

# What zero_grad() does, and what says nothing of the values.
_ALLOWED = {
    "__hash__",
    "__set__",
    "_foreach_zero_",
    "_has_compatible_shallow_copy_type",
    "detach_",
    "dim",
    "element_size",
    "is_contiguous",
    "is_floating_point",
    "nelement",
    "numel",
    "requires_grad_",
    "size",
    "storage_offset",
    "stride",
    "zero_",
}
# Of modules that are moved or cast, with what their gradients are. What comes back is covered as well.
_MOVES = {"bfloat16", "contiguous", "cpu", "detach", "double", "float", "half", "share_memory_", "to"}
_VALUES = {"H", "T", "imag", "mH", "mT", "real"}  # attributes that give the values


class Covered(torch.Tensor):
    """`param.grad` after the reduce-scatter of a sharded optimizer: elements of other ranks' shards are not reduced.

    A norm or anything else that was made of it would be wrong without a sign; so it raises.
    """

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Raises UsageError for what reads or changes the values."""
        name = getattr(func, "__name__", "")
        attribute = func.__self__.__name__ if name == "__get__" else ""
        if attribute in _VALUES or not (attribute or name in _ALLOWED or name in _MOVES):
            raise UsageError(
                "this gradient was reduced by a sharded optimizer: a rank has the sum of its own shard alone. To clip, "
                "use optimizer.clip_grad_norm_(max_norm); for whole gradients, DistributedOptimizer(..., shard=False)"
            )
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
            return result.as_subclass(cls) if attribute == "data" or name in _MOVES else result

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        """The shape, but no values."""
        return f"Covered(shape={tuple(self.shape)}, dtype={self.dtype})"


def uncovered(grad: torch.Tensor | None) -> torch.Tensor | None:
    """The tensor itself."""
    if not isinstance(grad, Covered):
        return grad
    with torch._C.DisableTorchFunctionSubclass():
        return grad.as_subclass(torch.Tensor)
