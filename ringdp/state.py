"""Arbitrary Python objects between the ranks of the job.

They are pickled: that is what these calls mean, and it is used nowhere else. Only ranks of the same job exchange
pickles; whoever can start a rank can run code anyway.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ringdp import world
from ringdp.constants import Min
from ringdp.errors import MismatchError, PeerError, UsageError
from ringdp.numpy.ops import operations
from ringdp.process_sets import ProcessSet, global_process_set

T = TypeVar("T")


def broadcast_object(
    obj: T,
    root_rank: int = 0,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> T:
    """Give every rank the object of `root_rank`; on the root, `obj` itself.

    Args:
        obj: anything that can be pickled; ignored on other ranks than the root. What pickle refuses, such as a
            lambda, is sent by cloudpickle if that is installed.
        root_rank: whose object: the rank in the job.
        name: prefix of the operations' names; default: unnamed.
        process_set: the ranks that take part.

    Raises:
        UsageError: on the root, if it cannot be pickled; on another rank, if it cannot be unpickled there.
        PeerError: on the other ranks, if the root could not pickle it.
    """
    is_root = world.rank() == root_rank
    packed = _Packed(obj) if is_root else None
    header = np.zeros(3, np.int64) if packed is None else packed.header
    header = operations.broadcast(header, root_rank, name and f"{name}.length", process_set)
    wire_name = name and f"{name}.data"
    if packed is not None:
        operations.broadcast(packed.data, root_rank, wire_name, process_set)
        packed.check("broadcast_object")
        return obj
    data = np.empty(int(header[0]), np.uint8)
    operations.broadcast_(data, root_rank, wire_name, process_set)
    if header[1]:
        raise _not_pickled(data, root_rank, "broadcast_object")
    return _loads(data, root_rank, "broadcast_object")


def allgather_object(
    obj: Any, name: str | None = None, process_set: ProcessSet = global_process_set
) -> list[Any]:
    """The objects of all ranks, in rank order; none of a rank that has joined.

    Args:
        obj, name, process_set: see `broadcast_object`.

    Raises:
        UsageError: on a rank whose own object cannot be pickled, or that cannot unpickle another one.
        PeerError: on all other ranks, naming the rank whose object could not be pickled.
    """
    packed = _Packed(obj)
    headers = operations.allgather(packed.header, name and f"{name}.length", process_set).reshape(-1, 3)
    everything = operations.allgather(packed.data, name and f"{name}.data", process_set)
    packed.check("allgather_object")
    parts = np.split(everything, np.cumsum(headers[:, 0])[:-1])
    for part, (_, failed, rank) in zip(parts, headers, strict=True):
        if failed:
            raise _not_pickled(part, rank, "allgather_object")
    return [_loads(part, rank, "allgather_object") for part, (_, _, rank) in zip(parts, headers, strict=True)]


def agree(lines: Sequence[str], what: str, process_set: ProcessSet) -> None:
    """Raise MismatchError on every rank, with the first difference, unless all ranks have the same lines."""
    digest = hashlib.blake2b("\n".join(lines).encode(), digest_size=7).digest()
    number = int.from_bytes(digest, "little")
    lowest, highest = operations.allreduce(
        np.array([number, -number]), name=f"{what}.digest", op=Min, process_set=process_set
    ).tolist()
    if lowest == -highest:
        return
    of_ranks = allgather_object((world.rank(), list(lines)), f"{what}.lines", process_set)
    longest = max(len(theirs) for _, theirs in of_ranks)
    padded = [(rank, theirs + ["(nothing more)"] * (longest - len(theirs))) for rank, theirs in of_ranks]
    differs = next(i for i in range(longest) if len({theirs[i] for _, theirs in padded}) > 1)
    table = "".join(f"\n  rank {rank}: {theirs[differs]}" for rank, theirs in padded[:8])
    more = f"\n  and {len(padded) - 8} ranks more" if len(padded) > 8 else ""
    raise MismatchError(f"{what}: the ranks differ; nothing was done:{table}{more}")


class _Packed:
    """A pickled object, or why there is none: the other ranks wait for either."""

    def __init__(self, obj: Any) -> None:
        self._error: Exception | None = None
        try:
            data = _dumps(obj)
        except Exception as error:  # pickling runs code of the object's class: anything may come
            self._error = error
            self._what = f"{type(obj).__module__}.{type(obj).__qualname__}"
            data = f"{self._what}: {type(error).__name__}: {error}".encode()
        self.data: NDArray[np.uint8] = np.frombuffer(data, np.uint8)
        self.header = np.array([self.data.size, self._error is not None, world.rank()], np.int64)

    def check(self, call: str) -> None:
        """Raise UsageError if it could not be pickled."""
        if self._error is not None:
            raise UsageError(
                f"rank {world.rank()}: {call} cannot pickle this {self._what}: {self._error}"
            ) from self._error


def _dumps(obj: Any) -> bytes:
    try:
        return pickle.dumps(obj, pickle.HIGHEST_PROTOCOL)
    except Exception:
        if find_spec("cloudpickle") is None:
            raise
    by_value: Callable[[Any], bytes] = import_module("cloudpickle").dumps
    return by_value(obj)


def _not_pickled(text: NDArray[np.uint8], rank: int, call: str) -> PeerError:
    return PeerError(
        f"rank {world.rank()}: {call}: rank {rank} cannot pickle its object, a {text.tobytes().decode()}"
    )


def _loads(data: NDArray[np.uint8], rank: int, call: str) -> Any:
    try:
        return pickle.loads(data.data)
    except Exception as error:
        raise UsageError(
            f"rank {world.rank()}: {call} cannot unpickle the object of rank {rank}: {type(error).__name__}: {error} "
            "(its class must be importable on every rank)"
        ) from error
