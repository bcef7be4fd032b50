"""Threads that complete futures, and that ask MPI about messages. They sleep for good where there is nothing to do."""

from __future__ import annotations

import threading
import time
from typing import Any, Protocol

from ringdp.errors import NotInitializedError
from ringdp.torch.distributed.futures import Number

LOOK = 0.05  # seconds of sleep on one operation, before looking whether another one comes first now
FIRST_PAUSE, LAST_PAUSE = 50e-6, 1e-3  # seconds between two looks at messages


class Pending(Protocol):
    """See `work.Work`."""

    number: Number

    def sleep(self, seconds: float) -> bool: ...

    def settle_if_over(self) -> bool: ...

    def is_late(self) -> bool: ...

    def expire(self, reason: Exception | None = None) -> None: ...


class _Thread:
    def __init__(self, name: str) -> None:
        self.pending: list[Pending] = []
        self.changed = threading.Condition()
        self._closed = self._stopped = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def add(self, work: Pending) -> None:
        """Settle it when it has ended."""
        with self.changed:
            self.pending.append(work)
            self.changed.notify()

    def close(self) -> None:
        """End the thread, once what is pending has ended. Does not wait for that."""
        with self.changed:
            self._closed = True
            self.changed.notify()

    def stop(self) -> None:
        """End the thread: what is pending and has not ended has failed."""
        self._stopped = True
        self.close()
        self._thread.join(10)

    def _run(self) -> None:
        while True:
            with self.changed:
                while not self.pending and not self._closed:
                    self.changed.wait()
                if not self.pending:
                    return
                pending = list(self.pending)
            if self._stopped:
                return self._give_up(pending)
            ended = self.look(pending)
            with self.changed:
                self.pending = [work for work in self.pending if work not in ended]

    def _give_up(self, pending: list[Pending]) -> None:
        for work in pending:
            if not work.settle_if_over():
                work.expire(NotInitializedError("ringdp was shut down before this operation had ended"))

    def look(self, pending: list[Pending]) -> list[Pending]:
        raise NotImplementedError


class InOrder(_Thread):
    """Completes the futures of one group in the order of its calls, and so the same on all ranks.

    A callback may wait for what the other ranks do in theirs, so no rank may be in that of a later call. (To wait for
    the earlier call first costs nothing: who has made the later one has made the earlier one too.)
    """

    def look(self, pending: list[Pending]) -> list[Pending]:
        """The first, if it has ended."""
        first = min(pending, key=lambda work: work.number.path)
        first.sleep(LOOK)
        return [first] if _has_ended(first) else []


class Polling(_Thread):
    """Looks at messages until they have ended: without being asked, MPI may not get on with them."""

    _pause = FIRST_PAUSE

    def look(self, pending: list[Pending]) -> list[Pending]:
        """Those that have ended."""
        ended = [work for work in pending if _has_ended(work)]
        self._pause = FIRST_PAUSE if ended else min(LAST_PAUSE, 1.5 * self._pause)
        if not ended:
            time.sleep(self._pause)
        return ended


def _has_ended(work: Pending) -> bool:
    if work.settle_if_over():
        return True
    if work.is_late():
        work.expire()
        return True
    return False


class Waiters:
    """The service (`World.service`) that has the threads."""

    def __init__(self, here: Any) -> None:
        self._threads: list[_Thread] = []
        self._lock = threading.Lock()
        self._polling: Polling | None = None

    def in_order(self, name: str) -> InOrder:
        """A new one, for one group."""
        with self._lock:
            self._threads.append(thread := InOrder(f"ringdp-{name}"))
        return thread

    def polling(self) -> Polling:
        """The one of this rank."""
        with self._lock:
            if self._polling is None:
                self._polling = Polling("ringdp-messages")
                self._threads.append(self._polling)
            return self._polling

    def close(self) -> None:
        """End all threads."""
        for thread in self._threads:
            thread.stop()
