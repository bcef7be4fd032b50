"""What one rank does in a step: so many seconds of compute, and gradients that become ready while they pass."""

from __future__ import annotations

from dataclasses import dataclass

from ringdp import _core
from ringdp.constants import Dtype

MIB = 1 << 20
FIRST_BYTES = MIB  # as ringdp.torch: the first bucket is small
BUCKET_BYTES = 25 * MIB


@dataclass(frozen=True)
class Bucket:
    """bytes: of the wire. ready: seconds from the start of the step until a rank's backward has left it, at speed 1."""

    bytes: int
    ready: float


@dataclass(frozen=True)
class Workload:
    """gradients: (elements, seconds from the start of the step until it is ready) in the order of backward.

    compute: seconds of forward and backward on one mean rank alone, which is the step of one rank.
    element_bytes: of a gradient on the wire, 2 or 4.
    """

    name: str
    compute: float
    element_bytes: int
    gradients: tuple[tuple[int, float], ...]

    @classmethod
    def even(cls, name: str, compute: float, parameters: int, element_bytes: int, tensors: int) -> Workload:
        """Equal tensors that become ready at equal distances, the forward pass taking a third of the time."""
        backward = 2 / 3 * compute
        sizes = [parameters * (i + 1) // tensors - parameters * i // tensors for i in range(tensors)]
        ready = [compute - backward * (tensors - 1 - i) / tensors for i in range(tensors)]
        return cls(name, compute, element_bytes, tuple(zip(sizes, ready, strict=True)))

    @property
    def bytes(self) -> int:
        return self.element_bytes * sum(count for count, _ in self.gradients)

    def buckets(self, first_bytes: int = FIRST_BYTES, bucket_bytes: int = BUCKET_BYTES) -> list[Bucket]:
        """The buckets that ringdp would make (csrc/bucket/plan.cc), each ready with the last of its gradients."""
        dtype = Dtype.float16 if self.element_bytes == 2 else Dtype.float32
        counts = [count for count, _ in self.gradients]
        made = _core.assign_buckets(counts, [dtype] * len(counts), first_bytes, bucket_bytes)
        return [
            Bucket(count * self.element_bytes, self.gradients[tensors[-1]][1])
            for _, count, tensors, _ in made
        ]
