"""Futures of collectives, and the calls that are made in their callbacks.

Ranks may come to a callback at different times, between other calls of the group, so what is called there has a
number of its own: it is the k-th call in this callback of that call, on all ranks alike.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Number:
    """Of a call, or of a callback: the same on all ranks.

    Args:
        path: of a call (7,); of the second callback of its future (7, 0, 2); of the first call there (7, 0, 2, 1).
        group: the one of which it is call 7; a callback may call another one.
    """

    path: tuple[int, ...]
    group: str

    def __str__(self) -> str:
        return ".".join(map(str, self.path))


class _Inside(threading.local):
    numbers: Numbers | None = None


_inside = _Inside()


class Numbers:
    """Gives the calls of a group, or those in a callback, their numbers.

    Args:
        group: its label.
        callback: its number, if this is for one.
    """

    def __init__(self, group: str, callback: Number | None = None) -> None:
        self._before = callback or Number((), group)
        self._counts: dict[str, Iterator[int]] = {}  # by group: who is in one need not be in another
        self._group = group

    def take(self) -> Number:
        """The next of this group: in it, or in the callback in which this thread is."""
        giver = _inside.numbers or self
        count = giver._counts.setdefault(self._group, itertools.count(1))
        return Number((*giver._before.path, next(count)), giver._before.group)

    @contextlib.contextmanager
    def only(self) -> Iterator[None]:
        """What this thread calls inside gets its numbers here."""
        before, _inside.numbers = _inside.numbers, self
        try:
            yield
        finally:
            _inside.numbers = before


class _Failure:
    """The result of a future that has failed. To torch's C++ code it is a result as any other: DistributedDataParallel
    looks for tensors in it, by pickling it."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def unwrap(self) -> None:
        raise again(self._error)

    def __reduce_ex__(self, _: Any) -> Any:
        raise again(self._error)


def again(error: Exception) -> Exception:
    """A copy of a kept error, to be raised: else the frames through which it goes would be kept with it, by C++ code
    where garbage collection does not see them."""
    anew = copy.copy(error)
    anew.__cause__ = error.__cause__
    return anew


class Future(torch.futures.Future):  # type: ignore[type-arg]
    """A future that is completed by whoever waits for it, too: PowerSGD's hook waits in the callback of another one.

    Args:
        number: of the call that it belongs to.
        settle: waits until it is completed.
        devices: where tensors in its result may lie beside the host's memory: torch orders streams behind those.
    """

    def __init__(
        self, number: Number, settle: Callable[[], object], devices: Sequence[torch.device] = ()
    ) -> None:
        super().__init__(devices=list(devices))
        self._number, self._settle, self._devices = number, settle, devices
        self._callbacks = itertools.count(1)

    def wait(self) -> Any:
        """As torch's."""
        self._settle()
        return super().wait()

    def set_exception(self, error: Any) -> None:
        """As torch's; and C++ code that asks for the tensors of the result gets the error, too."""
        self._set_unwrap_func(_Failure.unwrap)
        self.set_result(_Failure(error))

    def _next(self) -> Number:
        return Number((*self._number.path, 0, next(self._callbacks)), self._number.group)

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """As torch's."""
        number = self._next()

        def act(_: Any) -> None:
            with Numbers(number.group, number).only():
                callback(self)

        super().add_done_callback(act)

    def then(self, callback: Callable[[Any], Any]) -> Future:
        """As torch's: a future of what the callback makes of this one."""
        number = self._next()
        following = Future(number, self._settle, self._devices)

        def act(_: Any) -> None:
            try:
                with Numbers(number.group, number).only():
                    result = callback(self)
            except Exception as error:
                following.set_exception(error.with_traceback(None))
            else:
                following.set_result(result)

        super().add_done_callback(act)
        return following
