"""How many samples or tokens each rank's gradients stand for, `optimizer.weigh(n)`, and how the number travels.

A rank's number rides at the end of every bucket, as elements of the bucket's own dtype which the exchange adds up over
the ranks like gradients. 16-bit floats count exactly to 256 (bfloat16) or 2048 (float16) only, and float32 to 2**24. So
the number is written in digits, small enough that the sum of a digit over the ranks is exact; and where one element has
no room for all ranks, they take turns on several (`lanes`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from ringdp.errors import UsageError

BITS = 48  # of a rank's number
EXACT_BITS = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 53}


@dataclass(frozen=True)
class Code:
    """Digits of `bits` bits, the lowest first, for each of `lanes` groups of ranks."""

    bits: int
    lanes: int

    @property
    def digits(self) -> int:
        return math.ceil(BITS / self.bits)

    @property
    def elements(self) -> int:
        """So many does a bucket hold besides its gradients."""
        return self.digits * self.lanes

    def encode(self, count: int, rank: int) -> list[int]:
        """What `rank` contributes."""
        mask = (1 << self.bits) - 1
        digits = [count >> (self.bits * i) & mask for i in range(self.digits)]
        zeros = [0] * self.digits
        mine = rank % self.lanes
        return [digit for lane in range(self.lanes) for digit in (digits if lane == mine else zeros)]

    def decode(self, total: torch.Tensor) -> torch.Tensor:
        """The sum of all ranks' numbers, from the sum of what they have contributed: float64, a scalar, beside that."""
        digits = total.double().view(self.lanes, self.digits).sum(0)
        return torch.stack([digits[i] * (1 << (self.bits * i)) for i in range(self.digits)]).sum()


def code_for(dtype: torch.dtype, ranks: int) -> Code:
    """The shortest code that is exact in `dtype` for so many ranks."""
    codes = []
    for bits in range(1, min(EXACT_BITS[dtype], BITS) + 1):
        ranks_to_a_lane = (1 << EXACT_BITS[dtype]) // ((1 << bits) - 1)
        codes.append(Code(bits, math.ceil(ranks / ranks_to_a_lane)))
    return min(codes, key=lambda code: code.elements)


def whole(n: Any) -> int:
    """What `weigh` was given, as an integer."""
    value = n.item() if isinstance(n, torch.Tensor) and n.numel() == 1 else n
    try:
        count = int(value)
    except (TypeError, ValueError, OverflowError):
        count = -1
    if count < 0 or count != value or count >> (BITS - 8):
        raise UsageError(
            f"weigh() takes a number of samples or tokens, a whole number from 0 to 2**{BITS - 8}, not {n!r}"
        )
    return count


class Weights:
    """This rank's numbers, pass by pass."""

    def __init__(self) -> None:
        self.on = False  # weigh() was called
        self.announced: int | None = None  # for the pass that runs, or comes next
        self._is_counted = False  # the announced number
        self.new_window()

    def new_window(self) -> None:
        """Nothing is counted yet."""
        self.total = 0  # of the passes of this window
        self.late = 0  # of those that began after the first bucket had left

    def announce(self, count: int) -> None:
        """The next pass has `count` samples."""
        self.announced, self._is_counted = count, False

    def factor(self) -> int:
        """What multiplies the gradients of the pass that runs."""
        if self.announced is None:
            raise UsageError(
                "weigh(n) was not called before this backward(): once it is used, every pass needs it"
            )
        return self.announced

    def count(self, late: bool = False) -> None:
        """The announced pass has begun, or will not come any more."""
        if self.announced is None or self._is_counted:
            return
        self._is_counted = True
        if late:
            self.late += self.announced
        else:
            self.total += self.announced

    def pass_ended(self) -> None:
        """The next pass needs a number of its own."""
        if self._is_counted:
            self.announced = None

    def scale(self, grad: torch.Tensor) -> torch.Tensor:
        """The gradient of this pass, times its number. No samples contribute zeros, be they NaN."""
        factor = self.factor()
        return grad * factor if factor else torch.zeros_like(grad)
