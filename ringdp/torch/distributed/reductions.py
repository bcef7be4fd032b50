"""torch's ReduceOp in ringdp's terms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from ringdp.constants import ReduceOp
from ringdp.errors import UsageError

RedOpType = dist.ReduceOp.RedOpType

_OPS: dict[Any, ReduceOp] = {
    RedOpType.SUM: ReduceOp.Sum,
    RedOpType.AVG: ReduceOp.Average,
    RedOpType.MIN: ReduceOp.Min,
    RedOpType.MAX: ReduceOp.Max,
    RedOpType.PRODUCT: ReduceOp.Product,
    RedOpType.PREMUL_SUM: ReduceOp.Sum,
}
# The core has none of these: every rank gathers the tensors of all, and combines them itself.
_BITWISE: dict[Any, Callable[..., torch.Tensor]] = {
    RedOpType.BAND: torch.bitwise_and,
    RedOpType.BOR: torch.bitwise_or,
    RedOpType.BXOR: torch.bitwise_xor,
}
# What means the same for a pair of real numbers.
_COMPLEX = (RedOpType.SUM, RedOpType.AVG)


@dataclass(frozen=True)
class Reduction:
    """How tensors become one."""

    op: ReduceOp = ReduceOp.Sum
    prescale: float = 1.0
    bitwise: Callable[..., torch.Tensor] | None = None  # instead of `op`


def reduction(given: Any, dtype: torch.dtype) -> Reduction:
    """What `torch.distributed.ReduceOp` means for tensors of this dtype.

    Raises:
        UsageError: it means nothing for them.
    """
    kind = getattr(given, "op", given)
    if dtype.is_complex and kind not in _COMPLEX:
        raise UsageError(f"{_name(kind)} of {dtype} tensors is not defined: complex numbers have SUM and AVG")
    if kind in _BITWISE:
        if dtype.is_floating_point:
            raise UsageError(f"{_name(kind)} of {dtype} tensors is not defined: it needs integers or bool")
        return Reduction(bitwise=_BITWISE[kind])
    if kind not in _OPS:
        raise UsageError(f"ringdp has no {_name(kind)}")
    return Reduction(_OPS[kind], _factor(given) if kind == RedOpType.PREMUL_SUM else 1.0)


def _name(kind: Any) -> str:
    return f"ReduceOp.{getattr(kind, 'name', kind)}"


def _factor(given: Any) -> float:
    factor = given.factor if hasattr(given, "factor") else given.__getstate__()[1]
    if isinstance(factor, torch.Tensor) and factor.numel() != 1:
        raise UsageError(
            f"ReduceOp.PREMUL_SUM: the factor must be one number, not a tensor of {list(factor.shape)}"
        )
    return float(factor)
