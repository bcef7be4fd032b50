"""Messages from one rank of a group to another: `torch.distributed.send`, `recv` and their kin.

They go over MPI itself, on a communicator that the groups of the same ranks share; their MPI tags say which group's
they are. Two groups of them that are 256 apart share tags, and their messages are told apart by order alone. What lies
on a GPU goes through host memory: the call to send waits for the GPU.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from ringdp import world
from ringdp.errors import NotInitializedError, TransportError, UsageError
from ringdp.torch import device
from ringdp.torch.distributed.futures import Number
from ringdp.torch.distributed.pieces import flat, store
from ringdp.torch.distributed.store import AGAIN
from ringdp.torch.distributed.work import Beside, Work

GROUPS = 256
_given_up: list[tuple[Any, torch.Tensor]] = []
FIRST_PAUSE, LAST_PAUSE = 20e-6, 1e-3  # seconds between two looks at a message


class Messages:
    """Those of one group.

    Args:
        MPI: mpi4py's.
        comm: of its ranks, in order.
        number: of the group among those on this communicator.
    """

    def __init__(self, MPI: Any, comm: Any, number: int) -> None:
        self._MPI, self._comm, self._world = MPI, comm, world.current()
        self._tags = (comm.Get_attr(MPI.TAG_UB) + 1) // GROUPS
        self._first = number % GROUPS * self._tags

    def send(self, tensor: torch.Tensor, rank: int, tag: int) -> Message:
        """Start to send to a rank of the group."""
        self._check_open()
        row = flat(tensor)
        if device.is_on_gpu(row):
            row = device.in_host_memory(row)
        return Message(self, self._comm.Isend(self._buffer(row), rank, self._tag(tag)), row, None)

    def receive(self, tensor: torch.Tensor, rank: int | None, tag: int) -> Message:
        """Start to receive from a rank of the group; None: from any."""
        self._check_open()
        row = flat(tensor)
        if device.is_on_gpu(row):
            row = torch.empty(row.shape, dtype=row.dtype, device="cpu")
        source = self._MPI.ANY_SOURCE if rank is None else rank
        return Message(self, self._comm.Irecv(self._buffer(row), source, self._tag(tag)), row, tensor)

    def _check_open(self) -> None:
        if not world.is_initialized() or world.current() is not self._world:
            raise NotInitializedError(f"this group went with ringdp.shutdown(): {AGAIN}")

    def test(self, request: Any) -> tuple[bool, Any]:
        """Whether it has ended, and its status. Does not block."""
        status = self._MPI.Status()
        try:
            return bool(request.Test(status)), status
        except self._MPI.Exception as error:
            raise TransportError(f"a message between ranks failed: {error}") from error

    def count(self, status: Any) -> int:
        """Bytes received."""
        return int(status.Get_count(self._MPI.BYTE))

    def _buffer(self, row: torch.Tensor) -> Any:
        return [self._MPI.buffer.fromaddress(row.data_ptr(), row.nbytes), self._MPI.BYTE]

    def _tag(self, tag: int) -> int:
        if not 0 <= tag < self._tags:
            raise UsageError(f"tag {tag}: this MPI has room for tags from 0 to {self._tags - 1}")
        return self._first + tag


class Message:
    """One under way: see `work.Operation`."""

    def __init__(
        self, messages: Messages, request: Any, row: torch.Tensor, target: torch.Tensor | None
    ) -> None:
        self._messages, self._request, self._row, self._target = messages, request, row, target
        self.gpu = device.gpu_of(target) if target is not None and device.is_on_gpu(target) else None
        self._before = None if self.gpu is None else device.Mark(self.gpu)  # what still uses the target
        self._failure: TransportError | None = None
        self._ended = False
        self._lock = threading.Lock()  # MPI takes a request from one thread at a time
        self.source = -1

    def poll(self) -> bool:
        """See `Operation`."""
        with self._lock:
            if not self._ended:
                self._look()
            return self._ended

    def sleep(self, seconds: float, helping: bool) -> bool:
        """See `Operation`."""
        end, pause = time.monotonic() + seconds, FIRST_PAUSE
        while not self.poll():
            left = end - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(pause, left))
            pause = min(LAST_PAUSE, 1.5 * pause)
        return True

    def finish(self) -> list[torch.Tensor]:
        """See `Operation`."""
        if self._failure is not None:
            raise self._failure
        if self._target is None:
            return []
        if self._before is not None:
            self._before.order()
        store(self._target, self._row)
        return [self._target]

    def give_up(self) -> None:
        """See `Operation`."""
        with self._lock:
            if not self._ended and self._target is not None:
                self._request.Cancel()
                self._ended = bool(self._request.Test())
            if not self._ended:  # MPI may still use its memory
                _given_up.append((self._request, self._row))

    def _look(self) -> None:
        try:
            ended, status = self._messages.test(self._request)
        except TransportError as failure:
            self._ended, self._failure = True, failure
            return
        if ended and self._target is not None:
            self.source = status.Get_source()
            self._check(self._messages.count(status))
        self._ended = ended

    def _check(self, count: int) -> None:
        if count != self._row.nbytes:
            self._failure = TransportError(
                f"recv: rank {self.source} of the group sent {count} bytes, and the tensor has {self._row.nbytes}"
            )


class MessageWork(Work):
    """What torch gets back from `send` and `recv`.

    Args:
        message: under way.
        what: see `Work`.
        timeout: seconds until it must have ended.
        beside: see `Work.settle_if_over`.
    """

    def __init__(
        self, message: Message, what: Callable[[], str], timeout: float, beside: Beside | None = None
    ) -> None:
        super().__init__(message, Number((), ""), what, timeout, Work.is_completed)  # which settles it
        self.beside = beside
        self._message = message

    def source_rank(self) -> int:
        """Of the group: who sent it."""
        return self._message.source

    _source_rank = source_rank
