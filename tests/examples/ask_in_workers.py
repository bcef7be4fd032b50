"""What data-loading workers of a rank are told: `ask_in_workers.py fork spawn forkserver`, on any number of ranks."""

import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import ringdp
import ringdp.torch as hvd

WORKERS = 2
ITEMS = 4


def refused() -> dict[str, Callable[[], Any]]:
    """The calls that only the rank itself may make."""
    return {
        "init": hvd.init,
        "allreduce": lambda: hvd.allreduce(torch.ones(3)),
        "allreduce_async_": lambda: hvd.allreduce_async_(torch.ones(3), name="worker"),
        "broadcast": lambda: hvd.broadcast(torch.ones(3), root_rank=0),
        "allgather": lambda: hvd.allgather(torch.ones(3)),
        "broadcast_object": lambda: hvd.broadcast_object("text"),
        "allreduce of an array": lambda: ringdp.allreduce(np.ones(3)),
        "barrier": ringdp.barrier,
    }


def place() -> tuple[int, ...]:
    return (
        hvd.rank(),
        hvd.size(),
        hvd.local_rank(),
        hvd.local_size(),
        hvd.cross_rank(),
        hvd.cross_size(),
        int(hvd.is_homogeneous()),
    )


def outcome(call: Callable[[], Any]) -> str:
    try:
        call()
    except ringdp.NotInitializedError as error:
        return str(error)
    return "no NotInitializedError"


class Answers(Dataset[dict[str, Any]]):
    """Each item is what the worker that loads it was told."""

    def __len__(self) -> int:
        return ITEMS

    def __getitem__(self, index: int) -> dict[str, Any]:
        hvd.shutdown()  # in a worker it does nothing
        told = {name: outcome(call) for name, call in refused().items()}
        return {"pid": os.getpid(), "place": place(), "initialized": hvd.is_initialized(), "told": told}


def ask(method: str) -> None:
    loader = DataLoader(
        Answers(), batch_size=1, num_workers=WORKERS, multiprocessing_context=method, collate_fn=list
    )
    answers = [answer for batch in loader for answer in batch]
    assert len(answers) == ITEMS
    workers = {answer["pid"] for answer in answers}
    assert len(workers) == WORKERS and os.getpid() not in workers
    for answer in answers:
        assert answer["place"] == place(), answer
        assert not answer["initialized"], answer
        for name, text in answer["told"].items():
            assert f"child of rank {hvd.rank()} (process {os.getpid()})" in text, (name, text)
    # The rank itself goes on as before.
    total = hvd.allreduce(torch.arange(5.0) + hvd.rank(), op=hvd.Sum)
    ranks = hvd.size()
    assert (total == torch.arange(5.0) * ranks + ranks * (ranks - 1) / 2).all()
    print(f"rank {hvd.rank()} of {ranks}: {ITEMS} answers by {method} are right", flush=True)


if __name__ == "__main__":
    hvd.init()
    for start_method in sys.argv[1:]:
        ask(start_method)
