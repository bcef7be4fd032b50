"""Where one backward pass begins and ends, seen from the hooks of parameters.

A pass begins with the first hook that fires, and ends when autograd calls back after its last node. One
backward may run inside another (reentrant activation checkpointing does that): then the callback of an inner
one says nothing about the outer. Where hooks fire in inner passes alone, no callback of the outer can be had;
there the pass ends as soon as every gradient is in.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType
from weakref import WeakMethod

import torch

_BACKWARD = {torch.autograd.backward.__code__, torch.autograd.grad.__code__}
_task: Callable[[], int] = torch._C._current_graph_task_id


def backward_depth() -> int:
    """How many backward passes are running inside one another, as seen from a hook."""
    frame: FrameType | None = sys._getframe(1)
    depth = 0
    while frame is not None:
        depth += frame.f_code in _BACKWARD
        frame = frame.f_back
    # What is computed on a GPU has a thread of autograd's own, in which the outermost call of backward() is not seen;
    # those inside it are, as they go on in the same thread.
    return depth + in_thread_of_autograd()


def in_thread_of_autograd() -> bool:
    """True in the threads that PyTorch's engine has for each GPU."""
    if not hasattr(_thread, "is_autograds"):
        with open(f"/proc/self/task/{threading.get_native_id()}/comm") as name:
            _thread.is_autograds = name.read().startswith("pt_autograd")
    return bool(_thread.is_autograds)


_thread = threading.local()


class Passes:
    """The passes that one optimizer's parameters see."""

    def __init__(self, all_in: Callable[[], bool], ended: Callable[[], None]) -> None:
        """`all_in()`: has every gradient come in this pass? `ended()` is called at the end of each pass.

        Both are methods of one object, which is not kept alive.
        """
        self.running = False
        self.number = 0  # of the pass that runs, or ran last
        self._all_in, self._ended = WeakMethod(all_in), WeakMethod(ended)
        self._tasks: set[int] = set()  # of this pass: backward runs with a callback
        self._has_outer = False  # the outermost one is among them

    def hook(self) -> bool:
        """To be called by every hook; True for the first one of a pass."""
        task = _task()
        if task in self._tasks:
            return False
        inner = backward_depth() > 1
        # A second outermost run, without the callback of the first: that one was ended by an exception.
        begins = not self.running or (self._has_outer and not inner)
        if begins:
            self.stop()
            self.running = True
            self.number += 1
        self._tasks.add(task)
        self._has_outer |= not inner
        callback = partial(self._run_ended, self.number, inner)
        torch.autograd.Variable._execution_engine.queue_callback(callback)  # type: ignore[attr-defined]
        return begins

    def stop(self) -> None:
        """Forget the pass that runs."""
        self.running = self._has_outer = False
        self._tasks.clear()

    def _run_ended(self, number: int, inner: bool) -> None:
        if not self.running or number != self.number:
            return
        all_in, ended = self._all_in(), self._ended()
        if all_in is None or ended is None or (inner and (self._has_outer or not all_in())):
            return
        self.stop()
        ended()
