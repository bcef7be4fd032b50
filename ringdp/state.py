"""Arbitrary Python objects between the ranks of the job.

They are pickled: that is what these calls mean, and it is used nowhere else. Only ranks of the same job exchange
pickles; whoever can start a rank can run code anyway.
"""

from __future__ import annotations

import pickle
from typing import Any, TypeVar

import numpy as np

from ringdp import world
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
        obj: anything that can be pickled; ignored on other ranks than the root.
        root_rank: whose object.
        name: prefix of the operations' names; default: unnamed.
        process_set: the ranks that take part.
    """
    is_root = world.rank() == root_rank
    data = np.frombuffer(pickle.dumps(obj), np.uint8) if is_root else np.empty(0, np.uint8)
    length = operations.broadcast(np.array([data.size]), root_rank, name and f"{name}.length", process_set)
    if not is_root:
        data = np.zeros(int(length[0]), np.uint8)
    data = operations.broadcast(data, root_rank, name and f"{name}.data", process_set)
    return obj if is_root else pickle.loads(data.tobytes())


def allgather_object(
    obj: Any, name: str | None = None, process_set: ProcessSet = global_process_set
) -> list[Any]:
    """The objects of all ranks, in rank order."""
    data = np.frombuffer(pickle.dumps(obj), np.uint8)
    lengths = operations.allgather(np.array([data.size]), name and f"{name}.length", process_set)
    everything = operations.allgather(data, name and f"{name}.data", process_set)
    parts = np.split(everything, np.cumsum(lengths)[:-1])
    return [pickle.loads(part.tobytes()) for part in parts]
