"""Gradients of 8 bits on the wire, quantised once on the way to the owners of the chunks and once on the way back.

A block of 256 elements travels as 256 signed bytes and one float32 scale, absmax / 127: 260 bytes instead of 1024.
Each rank sends each chunk to its owner, the owner adds up what the ranks sent in rank order in float32, quantises the
average and sends it to all. Every rank, the owner included, takes the values as they were on the wire: the same bits
everywhere.

What rounding has left out is kept and added to the next gradients (error feedback; Seide et al., "1-Bit Stochastic
Gradient Descent", Interspeech 2014; Karimireddy et al., "Error Feedback Fixes SignSGD", ICML 2019): by each rank for
its own gradients, and by the owner for the average.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ringdp.errors import UsageError
from ringdp.torch.comm_hook import GradBucket, Waits
from ringdp.torch.comm_hooks.memory import Memory
from ringdp.torch.finite import is_finite
from ringdp.torch.ops import operations

SCALE_BYTES = 4


def quantise(blocks: torch.Tensor) -> torch.Tensor:
    """As they go over the wire: float32 (blocks, size) to uint8 (blocks, size + 4), scale last. Halves round to even.

    The values must be finite.
    """
    if not len(blocks):
        return torch.empty(0, blocks.shape[1] + SCALE_BYTES, dtype=torch.uint8)
    scales = blocks.abs().amax(dim=1, keepdim=True).div_(127)
    # A scale of 0: the block is zero, or too small for one. (Denormal ones are coarse: hence the clamp.)
    codes = blocks.div(scales.clamp(min=torch.finfo(torch.float32).tiny)).round_().clamp_(-127, 127)
    return torch.cat([codes.to(torch.int8).view(torch.uint8), scales.view(torch.uint8)], dim=1)


def dequantise(wire: torch.Tensor) -> torch.Tensor:
    """The values that `quantise` has sent: float32, (blocks, size)."""
    # A copy even where no byte has to move, as of one row: its address has to be one of a float.
    scales = wire[:, -SCALE_BYTES:].clone(memory_format=torch.contiguous_format).view(torch.float32)
    return wire[:, :-SCALE_BYTES].view(torch.int8).float().mul_(scales)


@dataclass
class _Kept:
    """What rounding left out."""

    mine: torch.Tensor  # of this rank's gradients: (blocks, size)
    average: torch.Tensor  # of the average of the chunk that this rank owns


class Int8State:
    """State of `int8_hook`. Can be pickled; starts anew when the plan changes.

    Args:
        block: elements that share a scale.
        error_feedback: False drops what rounding leaves out.
    """

    def __init__(self, block: int = 256, error_feedback: bool = True) -> None:
        if block < 1:
            raise UsageError(f"Int8State: block must be 1 or more, not {block}")
        self.block = block
        self.error_feedback = error_feedback
        self.memory: Memory[_Kept] = Memory()


def int8_hook(state: Int8State, bucket: GradBucket) -> Waits:
    """Average the bucket with 8 bits an element on the wire. Buckets of all floating dtypes; computed in float32."""
    return _Exchange(state, bucket)


int8_hook.tests_finite = True  # type: ignore[attr-defined]


class _Exchange:
    """One bucket: scattered when made, gathered in `wait()`."""

    def __init__(self, state: Int8State, bucket: GradBucket) -> None:
        self._state, self._bucket = state, bucket
        self._rows = _shares(-(-bucket.buffer().numel() // state.block), bucket.process_set().size())
        mine = self._blocks()
        kept = state.memory.of(bucket)
        if kept is not None and kept.mine.shape == mine.shape:
            mine += kept.mine
        if not is_finite(mine):
            bucket.report_not_finite()  # the step is lost: what others get of this rank does not matter
            mine.zero_()
        wire = quantise(mine)
        self._left = mine.sub_(dequantise(wire))
        self._scattered = operations.alltoall_async(
            wire, self._rows, f"{bucket.name()}.scatter", bucket.process_set()
        )

    def _blocks(self) -> torch.Tensor:
        """The bucket, in float32 with zeros at the end: (blocks, block)."""
        flat = self._bucket.buffer()
        blocks = torch.zeros(sum(self._rows), self._state.block)
        blocks.view(-1)[: flat.numel()].copy_(flat)
        return blocks

    def wait(self) -> torch.Tensor:
        """The average."""
        bucket = self._bucket
        received, _ = self._scattered.wait()
        average = self._added(received)
        kept = self._state.memory.of(bucket)
        if kept is not None and kept.average.shape == average.shape:
            average += kept.average
        wire = quantise(average)
        if self._state.error_feedback:
            # An overflow of average and error together reaches all ranks, which skip the step; it must not stay here.
            left = average - dequantise(wire) if is_finite(average) else torch.zeros_like(average)
            self._state.memory.keep(bucket, _Kept(self._left, left))
        gathered = operations.allgather(wire, f"{bucket.name()}.gather", bucket.process_set())
        return dequantise(gathered).view(-1)[: bucket.buffer().numel()]

    def _added(self, received: torch.Tensor) -> torch.Tensor:
        """The average of what all ranks sent for this rank's chunk. Divided first: no sum overflows."""
        ranks = len(self._rows)
        own = self._rows[self._bucket.process_set().rank() or 0]
        total = torch.zeros(own, self._state.block)
        for part in received.split(own) if own else ():
            total += dequantise(part).div_(ranks)
        return total


def _shares(blocks: int, ranks: int) -> list[int]:
    """Blocks for each rank: the first ones get one more where it does not divide."""
    return [blocks // ranks + (rank < blocks % ranks) for rank in range(ranks)]
