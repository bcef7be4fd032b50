"""One thread for all operations whose future somebody has asked for, and for messages, which MPI must be asked about.

It sleeps on the oldest, and looks at the others now and then: they may end in any order. With none it sleeps for good.
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

SHORTEST, LONGEST = 0.0002, 0.002  # seconds between two looks at those that are not the oldest


class Pending(Protocol):
    """See `work.Work`."""

    def sleep(self, seconds: float) -> bool: ...

    def is_completed(self) -> bool: ...

    def is_late(self) -> bool: ...

    def expire(self) -> None: ...


class Waiter:
    """The service (`World.service`) that settles works."""

    def __init__(self, here: Any) -> None:
        self._pending: list[Pending] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="ringdp-waiter", daemon=True)
        self._thread.start()

    def add(self, work: Pending) -> None:
        """Settle it when it has ended."""
        with self._changed:
            self._pending.append(work)
            self._changed.notify()

    def close(self) -> None:
        """End the thread. What is pending still gets what the engine's end made of it."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(10)

    def _run(self) -> None:
        pause = SHORTEST
        while True:
            with self._changed:
                while not self._pending and not self._closed:
                    self._changed.wait()
                pending = list(self._pending)
            if not pending:
                return
            if self._closed:
                pause = 0.0
            pending[0].sleep(pause)
            ended = [work for work in pending if self._has_ended(work)]
            pause = SHORTEST if ended else min(LONGEST, 2 * pause)
            with self._changed:
                self._pending = [work for work in self._pending if work not in ended]

    def _has_ended(self, work: Pending) -> bool:
        if work.is_completed():
            return True
        if self._closed or work.is_late():
            work.expire()
            return True
        return False
