"""The plain average: what happens without a hook, but as named operations."""

from __future__ import annotations

from typing import Any

from ringdp.torch.comm_hook import GradBucket, Waits
from ringdp.torch.ops import operations


def allreduce_hook(state: Any, bucket: GradBucket) -> Waits:
    """Average the bucket in place, in its own dtype. `state` is not used."""
    return operations.allreduce_async_(bucket.buffer(), name=bucket.name(), process_set=bucket.process_set())


allreduce_hook.passes_not_finite = True  # type: ignore[attr-defined]
