"""The table behind the store, in rank 0's memory, and the thread that answers the other ranks over MPI.

The thread looks for requests: often while they come, twenty times a second when none do. A request that waits for keys
is answered when they are there, or when its time has passed.
"""

from __future__ import annotations

import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ringdp.errors import TransportError, UsageError

REQUEST_TAG = 0
FIRST_REPLY_TAG, REPLY_TAGS = 1, 32000
SHORTEST, LONGEST = 50e-6, 50e-3  # seconds between two looks
GROWTH = 1.1
TIMED_OUT = b"timed out"
DONE = b"done"
FAILED = b"failed"
CALLS = ("set", "get", "check", "add", "append", "compare_set", "delete", "count")


def pack(fields: Sequence[bytes]) -> bytes:
    """Fields as one message."""
    lengths = [len(field) for field in fields]
    return struct.pack(f"<I{len(lengths)}Q", len(lengths), *lengths) + b"".join(fields)


def unpack(message: bytes) -> list[bytes]:
    """The fields of a message.

    Raises:
        TransportError: it is none of ours.
    """
    (count,) = struct.unpack_from("<I", message) if len(message) >= 4 else (0,)
    start = 4 + 8 * count
    lengths = struct.unpack_from(f"<{count}Q", message, 4) if start <= len(message) else ()
    if start + sum(lengths) != len(message) or len(lengths) != count:
        raise TransportError(f"torch.distributed's store got {len(message)} bytes that are no message of it")
    fields = []
    for length in lengths:
        fields.append(message[start : start + length])
        start += length
    return fields


class Table:
    """Keys and values, for several threads. Every call takes bytes and gives a list of bytes."""

    def __init__(self) -> None:
        self._values: dict[bytes, bytes] = {}
        self._changed = threading.Condition()
        self.on_change: Callable[[], object] = bool  # called when keys may have come

    def wait(self, keys: Sequence[bytes], seconds: float) -> bool:
        """Sleep until all keys are there; False if the seconds passed first."""
        with self._changed:
            return self._changed.wait_for(lambda: self.has(keys), seconds)

    def has(self, keys: Sequence[bytes]) -> bool:
        """Whether all keys are there."""
        return all(key in self._values for key in keys)

    def perform(self, what: str, fields: Sequence[bytes]) -> list[bytes]:
        """One of the methods below, which no other thread can disturb."""
        if what not in CALLS:
            raise UsageError(f"there is no {what!r}")
        with self._changed:
            answer: list[bytes] = getattr(self, f"_{what}")(*fields)
            self._changed.notify_all()
        self.on_change()
        return answer

    def _set(self, *pairs: bytes) -> list[bytes]:
        self._values.update(zip(pairs[::2], pairs[1::2], strict=True))
        return []

    def _get(self, *keys: bytes) -> list[bytes]:
        return [self._values[key] for key in keys]

    def _check(self, *keys: bytes) -> list[bytes]:
        return [b"1" if self.has(keys) else b""]

    def _add(self, key: bytes, amount: bytes) -> list[bytes]:
        self._values[key] = str(int(self._values.get(key, b"0")) + int(amount)).encode()
        return [self._values[key]]

    def _append(self, key: bytes, value: bytes) -> list[bytes]:
        self._values[key] = self._values.get(key, b"") + value
        return []

    def _compare_set(self, key: bytes, expected: bytes, desired: bytes) -> list[bytes]:
        # As torch's TCPStore: a key that is not there is set only where nothing is expected.
        now = self._values.get(key)
        if now == expected or (now is None and expected == b""):
            self._values[key] = now = desired
        return [expected if now is None else now]

    def _delete(self, key: bytes) -> list[bytes]:
        return [b"1" if self._values.pop(key, None) is not None else b""]

    def _count(self) -> list[bytes]:
        return [str(len(self._values)).encode()]


@dataclass
class Waiting:
    """A request whose keys are not there yet."""

    source: int
    tag: int
    what: str
    keys: list[bytes]
    fields: list[bytes]
    end: float

    @classmethod
    def parsed(cls, message: bytes, source: int) -> Waiting:
        """What a rank asks for.

        Raises:
            TransportError: it is no request.
        """
        words = unpack(message)
        try:
            tag, what, seconds, count = (word.decode() for word in words[:4])
            number, patience, keys = int(tag), float(seconds), int(count)
        except ValueError:
            number = patience = keys = -1
        if number < 0 or not 0 <= patience < float("inf") or not 0 <= keys <= len(words) - 4:
            raise TransportError(f"rank {source} has sent torch.distributed's store what is no request")
        return cls(source, number, what, words[4 : 4 + keys], words[4 + keys :], time.monotonic() + patience)


class Server:
    """Answers requests that come on a communicator, in a thread of its own.

    Args:
        MPI: mpi4py's.
        comm: an mpi4py communicator on which nothing else goes.
        table: what the requests are about.
    """

    def __init__(self, MPI: Any, comm: Any, table: Table) -> None:
        self._MPI, self._comm, self._table = MPI, comm, table
        self._waiting: list[Waiting] = []
        self._sent: list[tuple[Any, bytes]] = []  # requests of MPI, and their memory
        self._wake = threading.Event()
        self._closed = False
        table.on_change = self._wake.set
        self._thread = threading.Thread(target=self._run, name="ringdp-store", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._wake.set()
        self._thread.join(10)

    def _run(self) -> None:
        pause = SHORTEST
        while not self._closed:
            self._wake.clear()
            busy = self._take() | self._answer_waiting()
            self._sent = [(request, data) for request, data in self._sent if not request.Test()]
            pause = SHORTEST if busy else min(LONGEST, GROWTH * pause)
            if not busy:
                self._wake.wait(pause)

    def _take(self) -> bool:
        status = self._MPI.Status()
        message = self._comm.Improbe(self._MPI.ANY_SOURCE, REQUEST_TAG, status)
        if message is None:
            return False
        data = bytearray(status.Get_count(self._MPI.BYTE))
        message.Recv([data, self._MPI.BYTE])
        try:
            self._waiting.append(Waiting.parsed(bytes(data), status.Get_source()))
        except TransportError as error:  # whoever sent it waits in vain, and the others need not
            print(f"ringdp: {error}", file=sys.stderr, flush=True)
        return True

    def _answer_waiting(self) -> bool:
        before, self._waiting = self._waiting, []
        for one in before:
            if self._table.has(one.keys):
                self._reply(one, self._perform(one))
            elif time.monotonic() > one.end:
                self._reply(one, [TIMED_OUT])
            else:
                self._waiting.append(one)
        return len(self._waiting) < len(before)

    def _perform(self, one: Waiting) -> list[bytes]:
        try:
            return [DONE, *self._table.perform(one.what, one.fields)]
        except Exception as error:  # the request's fault: whoever made it is told
            return [FAILED, f"{type(error).__name__}: {error}".encode()]

    def _reply(self, to: Waiting, fields: list[bytes]) -> None:
        data = pack(fields)
        tag = FIRST_REPLY_TAG + to.tag % REPLY_TAGS
        self._sent.append((self._comm.Isend([data, self._MPI.BYTE], to.source, tag), data))
