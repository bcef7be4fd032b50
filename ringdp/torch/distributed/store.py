"""`torch.distributed.Store` over MPI: no port is opened. Its keys and values are in rank 0's memory (`server.py`)."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from datetime import timedelta

import torch.distributed as dist

from ringdp import world
from ringdp.errors import DeadlineError, NotInitializedError, UsageError
from ringdp.job import MpiJob
from ringdp.numpy.ops import operations
from ringdp.torch.distributed.server import (
    DONE,
    FIRST_REPLY_TAG,
    REPLY_TAGS,
    REQUEST_TAG,
    TIMED_OUT,
    Server,
    Table,
    pack,
    unpack,
)

AGAIN = "call destroy_process_group() and init_process_group() again"
GRACE = 30.0  # seconds that rank 0 may take to answer, beside what a request waits for
FIRST_PAUSE, LAST_PAUSE = 20e-6, 5e-3


class Connection:
    """The service (`World.service`) that reaches the table: on rank 0 its own, elsewhere over MPI. Collective."""

    def __init__(self, here: world.World) -> None:
        self._rank = here.place.rank
        self._numbers = itertools.count()
        self._server: Server | None = None
        self._table = Table() if self._rank == 0 else None
        self.uses = 0  # rendezvous so far: each has keys of its own
        self._closed = False
        if here.place.size > 1:
            if not isinstance(here.job, MpiJob):
                raise UsageError("only a job over MPI has a store over MPI")
            operations.barrier()  # it has a deadline, unlike the duplication
            self._MPI, self._comm = here.job.MPI, here.job.duplicate()
            if self._table is not None:
                self._server = Server(self._MPI, self._comm, self._table)
        self.store = MpiStore(self)  # kept here: to torch's C++ code its Python part would be lost

    def close(self) -> None:
        """End rank 0's thread."""
        self._closed = True
        if self._server is not None:
            self._server.close()

    def ask(self, what: str, fields: Sequence[bytes], keys: Sequence[bytes], seconds: float) -> list[bytes]:
        """Perform `what` (see `Table`) once all `keys` are there.

        Raises:
            DeadlineError: they have not come within these seconds, or rank 0 does not answer.
            NotInitializedError: after `ringdp.shutdown()`.
        """
        if self._closed:
            raise NotInitializedError(f"torch.distributed's store went with ringdp.shutdown(): {AGAIN}")
        if self._table is not None:
            if not self._table.wait(keys, seconds):
                raise self._too_late(keys, seconds)
            return self._table.perform(what, fields)
        number = next(self._numbers)
        words = [str(number).encode(), what.encode(), repr(seconds).encode(), str(len(keys)).encode()]
        data = pack([*words, *keys, *fields])
        sending = self._comm.Isend([data, self._MPI.BYTE], 0, REQUEST_TAG)
        answer, *found = unpack(self._receive(FIRST_REPLY_TAG + number % REPLY_TAGS, seconds + GRACE))
        sending.Wait()  # rank 0 has it, for it has answered
        if answer == TIMED_OUT:
            raise self._too_late(keys, seconds)
        if answer != DONE:
            raise UsageError(
                f"rank {self._rank}: torch.distributed's store cannot {what}: {found[0].decode()}"
            )
        return found

    def _receive(self, tag: int, seconds: float) -> bytes:
        end, pause, status = time.monotonic() + seconds, FIRST_PAUSE, self._MPI.Status()
        while (message := self._comm.Improbe(0, tag, status)) is None:
            if time.monotonic() > end:
                raise DeadlineError(
                    f"rank {self._rank}: rank 0, which keeps torch.distributed's store, has not answered within "
                    f"{seconds:g} s"
                )
            time.sleep(pause)
            pause = min(LAST_PAUSE, 1.2 * pause)
        data = bytearray(status.Get_count(self._MPI.BYTE))
        message.Recv([data, self._MPI.BYTE])
        return bytes(data)

    def _too_late(self, keys: Sequence[bytes], seconds: float) -> DeadlineError:
        shown = ", ".join(key.decode(errors="replace") for key in keys[:4])
        return DeadlineError(
            f"rank {self._rank}: torch.distributed's store has not got {shown}{', …' * (len(keys) > 4)} within "
            f"{seconds:g} s"
        )


class MpiStore(dist.Store):
    """The store of the job. torch reaches it from Python, and from C++ by the names that its trampolines look for.

    Args:
        connection: to the table.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def set(self, key: str, value: str | bytes) -> None:
        """Of one key."""
        self._ask("set", [_bytes(key), _bytes(value)])

    def multi_set(self, keys: Sequence[str], values: Sequence[str | bytes]) -> None:
        """Of several keys."""
        self._ask("set", [_bytes(x) for pair in zip(keys, values, strict=True) for x in pair])

    def get(self, key: str) -> bytes:
        """Waits until it is there."""
        return self.multi_get([key])[0]

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        """Waits until all are there."""
        names = [_bytes(key) for key in keys]
        return self._ask("get", names, names)

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Until all are there.

        Raises:
            DeadlineError: they are not, within `timeout` (default: `set_timeout`'s).
        """
        self._ask("check", [], [_bytes(key) for key in keys], timeout)

    def check(self, keys: Sequence[str]) -> bool:
        """Whether all are there."""
        return self._ask("check", [_bytes(key) for key in keys])[0] == b"1"

    def add(self, key: str, value: int) -> int:
        """Add to a counter, which begins at 0; its new value."""
        return int(self._ask("add", [_bytes(key), str(value).encode()])[0])

    def append(self, key: str, value: str | bytes) -> None:
        """Add to what stands there."""
        self._ask("append", [_bytes(key), _bytes(value)])

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes) -> bytes:
        """Set it if it is as expected (or is not there, and "" is); what it is then."""
        return self._ask("compare_set", [_bytes(key), _bytes(expected), _bytes(desired)])[0]

    def delete_key(self, key: str) -> bool:
        """Whether it was there."""
        return self._ask("delete", [_bytes(key)])[0] == b"1"

    def num_keys(self) -> int:
        """Of all groups."""
        return int(self._ask("count", [])[0])

    def has_extended_api(self) -> bool:
        """append, multi_get and multi_set are there."""
        return True

    def clone(self) -> MpiStore:
        """Itself, for any thread may use it."""
        return self

    deleteKey, getNumKeys = delete_key, num_keys

    def _ask(
        self, what: str, fields: list[bytes], keys: Sequence[bytes] = (), timeout: timedelta | None = None
    ) -> list[bytes]:
        limit = self.timeout if timeout is None else timeout
        return self._connection.ask(what, fields, keys, limit.total_seconds())


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)
