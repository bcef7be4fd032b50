"""The handlers of the signals that ask a rank to stop: when there are any, and what they leave to others.

They are Python's, so a program that sets one of its own later replaces ours, and gets ours as the one before. What a
signal means is decided in `ringdp.preempt.handle`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from ringdp import processes
from ringdp.errors import UsageError

VARIABLE, DEFAULT = "RINGDP_PREEMPT_SIGNALS", "TERM,USR1"

_before: dict[int, Any] = {}  # by signal: the handler that ours has replaced
_decide: Callable[[int], bool] = bool
_at_fork_installed = False
_masks = threading.local()


def is_interactive() -> bool:
    """Somebody types at a prompt, and will go on after whatever has happened."""
    return hasattr(sys, "ps1") or bool(sys.flags.interactive)


def wanted(environ: Mapping[str, str]) -> list[signal.Signals]:
    """What RINGDP_PREEMPT_SIGNALS says: names with or without SIG, or "none".

    Raises:
        UsageError: a name that is no signal, or that of one which nobody can catch.
    """
    text = environ.get(VARIABLE) or DEFAULT
    if text.strip().lower() == "none":
        return []
    found = []
    for word in text.split(","):
        name = "SIG" + word.strip().upper().removeprefix("SIG")
        if name not in signal.Signals.__members__:
            raise UsageError(
                f'{VARIABLE}={text}: {word.strip()!r} is no signal (as in "{DEFAULT}", or "none")'
            )
        if name in ("SIGKILL", "SIGSTOP"):
            raise UsageError(f"{VARIABLE}={text}: {name} cannot be caught")
        found.append(signal.Signals[name])
    return found


def install(signals: list[signal.Signals], decide: Callable[[int], bool], of_mpi: int = 0) -> None:
    """Let `decide(number)` be asked about these signals; where it says no, all is as if we were not there.

    Only in the main thread, as Python has it, and in no interactive session. A signal that the user ignores, or that
    somebody has caught in C (faulthandler.register, say), is left to them; but not to MPI (`of_mpi`: see
    `mpi.caught_in_init`).
    """
    global _decide
    if threading.current_thread() is not threading.main_thread() or is_interactive():
        return
    _decide = decide
    caught = processes.Signals(processes.signals("self").caught & ~of_mpi)
    for number in signals:
        before = signal.getsignal(number)
        in_c = before is None or (before is signal.SIG_DFL and caught.catches(number))
        if in_c or before is signal.SIG_IGN or before is _handler:
            continue
        _before[number] = before
        signal.signal(number, _handler)
    _watch_forks()


def restore() -> None:
    """Give back what nobody has replaced since. (In another thread than the main one nothing can be.)"""
    if threading.current_thread() is not threading.main_thread():
        return
    for number, before in list(_before.items()):
        if signal.getsignal(number) is _handler:
            signal.signal(number, before)
        del _before[number]


def _handler(number: int, frame: FrameType | None) -> None:
    before = _before.get(number, signal.SIG_DFL)
    is_noted = _decide(number)
    if callable(before):
        before(number, frame)
    elif not is_noted and before is not signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


# A forked child must die of SIGTERM again: multiprocessing ends its workers by it. Between the fork and the end of our
# hook there the signals are blocked, as one that came in between would be forgotten.


def _watch_forks() -> None:
    global _at_fork_installed
    if not _at_fork_installed:
        _at_fork_installed = True
        os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_begin_child)


def _block() -> None:
    _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, list(_before)) if _before else None


def _unblock() -> None:
    if _masks.before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


def _begin_child() -> None:
    restore()
    _unblock()
