"""Compressions of the user's own in `DistributedOptimizer`: any object with Horovod's `compress` and `decompress`.

They are called as Horovod calls them, for each gradient by itself: `compress(gradient)` gives a tensor for the wire and
a context, `decompress(reduced, context)` the gradient. All that a bucket's gradients give of one dtype is exchanged as
one flat tensor. An object may keep state; it sees the parameters' gradients in the same order in every step, once the
plan stands (from the third step on).
"""

from __future__ import annotations

from typing import Any

import torch

from ringdp.ops import Handle
from ringdp.torch.comm_hook import GradBucket
from ringdp.torch.ops import operations
from ringdp.torch.wire import Options


class UserCompression:
    """The communication hook that calls such an object."""

    def __init__(self, compressor: Any, options: Options) -> None:
        kind = compressor if isinstance(compressor, type) else type(compressor)
        self.__module__, self.__qualname__ = kind.__module__, kind.__qualname__  # for the plan's text
        self._compressor, self._options = compressor, options

    def __call__(self, _: Any, bucket: GradBucket) -> _Compressed:
        pairs = [self._compressor.compress(grad) for grad in bucket.gradients()]
        handles = {}
        for dtype in dict.fromkeys(narrow.dtype for narrow, _ in pairs):
            flat = torch.cat([narrow.detach().reshape(-1) for narrow, _ in pairs if narrow.dtype == dtype])
            handles[dtype] = operations.allreduce_async_(
                flat,
                None,
                f"{bucket.name()}.{dtype}",
                self._options.op,
                *self._options.scale,
                bucket.process_set(),
            )
        return _Compressed(self._compressor, bucket, pairs, handles)


class _Compressed:
    """A bucket's compressed gradients under way."""

    def __init__(
        self,
        compressor: Any,
        bucket: GradBucket,
        pairs: list[tuple[torch.Tensor, Any]],
        handles: dict[torch.dtype, Handle[torch.Tensor]],
    ) -> None:
        self._compressor, self._bucket, self._pairs, self._handles = compressor, bucket, pairs, handles

    def wait(self) -> torch.Tensor:
        """Every gradient is decompressed into its place."""
        flats = {dtype: handle.wait() for dtype, handle in self._handles.items()}
        for place, (narrow, context) in zip(self._bucket.gradients(), self._pairs, strict=True):
            flat = flats[narrow.dtype]
            part, flats[narrow.dtype] = flat[: narrow.numel()], flat[narrow.numel() :]
            place.copy_(self._compressor.decompress(part.view(narrow.shape), context))
        return self._bucket.buffer()
