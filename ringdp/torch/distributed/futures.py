"""Futures of collectives, and the calls that are made in their callbacks.

Ranks may come to a callback at different times, between other calls of the group, so what is called there has a
number of its own: it is the k-th call in this callback of that call, on all ranks alike.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

Path = tuple[int, ...]  # a call's number; of a call in a callback, that of the call it belongs to and its own


class _Inside(threading.local):
    numbers: Numbers | None = None


_inside = _Inside()


class Numbers:
    """Gives calls their numbers.

    Args:
        before: what they begin with.
    """

    def __init__(self, before: Path = ()) -> None:
        self._before = before
        self._next = itertools.count(1)

    def take(self) -> Path:
        """The next, or that of the callback in which this thread is."""
        giver = _inside.numbers or self
        return (*giver._before, next(giver._next))

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
        path: of the call that it belongs to.
        settle: waits until it is completed.
    """

    def __init__(self, path: Path, settle: Callable[[], object]) -> None:
        super().__init__()
        self._path, self._settle = path, settle
        self._callbacks = itertools.count(1)

    def wait(self) -> Any:
        """As torch's."""
        self._settle()
        return super().wait()

    def set_exception(self, error: Any) -> None:
        """As torch's; and C++ code that asks for the tensors of the result gets the error, too."""
        self._set_unwrap_func(_Failure.unwrap)
        self.set_result(_Failure(error))

    def then(self, callback: Callable[[Any], Any]) -> Future:
        """As torch's: a future of what the callback makes of this one."""
        following = Future((*self._path, next(self._callbacks)), self._settle)

        def act(_: Any) -> None:
            try:
                with Numbers(following._path).only():
                    result = callback(self)
            except Exception as error:
                following.set_exception(error.with_traceback(None))
            else:
                following.set_result(result)

        self.add_done_callback(act)
        return following
