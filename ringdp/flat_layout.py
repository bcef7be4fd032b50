"""Where the gradients of a step lie in flat buckets, and the copies into them and out of them: for `ringdp.flat`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ringdp import _core, dtypes
from ringdp.buckets import BEYOND_CACHES, FIRST_BYTES, LARGE_GRADIENT
from ringdp.constants import Dtype
from ringdp.numpy.memory import shared_bytes

DIGEST_BITS = 62  # so that it is a positive int64, and so is its complement
COMPRESSIONS = {"none": None, "fp16": Dtype.float16, "bf16": Dtype.bfloat16}


@dataclass(frozen=True)
class Entry:
    """One gradient, as the ranks compare it."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"'{self.name}' {self.dtype.name}{list(self.shape)}"


@dataclass(frozen=True)
class Bucket:
    """So many elements of one dtype. `members` are numbers of entries, `offsets` their first elements."""

    dtype: Dtype
    count: int
    members: tuple[int, ...]
    offsets: tuple[int, ...]
    memory: NDArray[np.uint8]

    @property
    def address(self) -> int:
        """Of the first element."""
        return _address(self.memory)

    def pack(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Copy the members of `arrays`, which are of all entries, to their places, cast to the bucket's dtype."""
        for place, array in self._places(arrays):
            if dtypes.of_array(array) is self.dtype:
                self._copy(place.view(array.dtype).reshape(array.shape), array)
            elif array.size:
                dense = np.ascontiguousarray(array)
                wide = dtypes.BY_NAME[dense.dtype.name]
                _core.kernels.narrow(self.dtype, _address(place), wide, _address(dense), dense.size)

    def unpack(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Copy from their places to the members of `arrays`, cast to the dtypes of these."""
        for place, array in self._places(arrays):
            if dtypes.of_array(array) is self.dtype:
                self._copy(array, place.view(array.dtype).reshape(array.shape))
            elif array.size:
                dense = array if array.flags.c_contiguous else np.empty(array.shape, array.dtype)
                wide = dtypes.BY_NAME[dense.dtype.name]
                _core.kernels.widen(wide, _address(dense), self.dtype, _address(place), dense.size)
                if dense is not array:
                    array[...] = dense

    def is_finite(self) -> bool:
        """Neither an inf nor a NaN is in it."""
        if self.dtype not in dtypes.FLOATS:
            return True
        return bool(_core.kernels.find_not_finite(self.dtype, self.address, self.count) == self.count)

    def _places(self, arrays: Sequence[NDArray[Any]]) -> list[tuple[NDArray[np.uint8], NDArray[Any]]]:
        size = dtypes.SIZES[self.dtype]
        return [
            (self.memory[offset * size : (offset + arrays[i].size) * size], arrays[i])
            for i, offset in zip(self.members, self.offsets, strict=True)
        ]

    def _copy(self, to: NDArray[Any], source: NDArray[Any]) -> None:
        dense = to.flags.c_contiguous and source.flags.c_contiguous
        if dense and to.nbytes >= LARGE_GRADIENT and self.memory.nbytes >= BEYOND_CACHES:
            _core.kernels.stream(_address(to), _address(source), to.nbytes)
        else:
            np.copyto(to, source)


@dataclass(frozen=True)
class Layout:
    """The buckets of gradients that look like `entries`, in the order in which they leave."""

    options: str  # what else must be the same on all ranks
    entries: tuple[Entry, ...]
    buckets: tuple[Bucket, ...]
    digest: int


def lay_out(entries: Sequence[Entry], options: str, bucket_bytes: int, wire: Dtype | None) -> Layout:
    """The layout, with memory that the ranks of this host share where that can be.

    Args:
        entries: in the order of the gradients.
        options: text that must be the same on all ranks, what follows here included.
        bucket_bytes: a bucket is full beyond this.
        wire: to what float32 and float64 are cast; None: nothing is.
    """
    travel = [wire if wire is not None and entry.dtype in dtypes.WIDE else entry.dtype for entry in entries]
    planned = _core.assign_buckets(
        [entry.count for entry in entries],
        [int(d) for d in travel],
        min(FIRST_BYTES, bucket_bytes),
        bucket_bytes,
    )
    buckets = []
    for number, count, members, offsets in planned:
        dtype = Dtype(number)
        memory = shared_bytes(count * dtypes.SIZES[dtype])
        memory[:] = 0  # what lies between the gradients travels, too
        buckets.append(Bucket(dtype, count, tuple(members), tuple(offsets), memory))
    text = "\n".join([options, *map(str, entries)])
    digest = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
    return Layout(options, tuple(entries), tuple(buckets), digest & ((1 << DIGEST_BITS) - 1))


def _address(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])
