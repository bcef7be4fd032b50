"""Gradients of 16 bits on the wire. `Compression.fp16` and `.bf16` do it in fewer passes over memory; these are for
scripts that register DistributedDataParallel's hooks of these names.
"""

from __future__ import annotations

from typing import Any

import torch

from ringdp.constants import Sum
from ringdp.torch.comm_hook import GradBucket, Waits
from ringdp.torch.ops import operations


def _halves(bucket: GradBucket, dtype: torch.dtype) -> Waits:
    # Divided before the cast: the sum of many ranks would not fit into float16.
    narrow = (bucket.buffer() / bucket.process_set().size()).to(dtype)
    return operations.allreduce_async_(narrow, name=bucket.name(), op=Sum, process_set=bucket.process_set())


def fp16_hook(state: Any, bucket: GradBucket) -> Waits:
    """Average as float16: what is beyond ±65504 becomes inf, on all ranks. `state` is not used."""
    return _halves(bucket, torch.float16)


def bf16_hook(state: Any, bucket: GradBucket) -> Waits:
    """Average as bfloat16: the range of float32 with 8 bits of precision. `state` is not used."""
    return _halves(bucket, torch.bfloat16)


fp16_hook.passes_not_finite = True  # type: ignore[attr-defined]
bf16_hook.passes_not_finite = True  # type: ignore[attr-defined]
