"""Runs mpirun as a child: passes signals on, waits, and leaves no process behind.

Signals are blocked and taken one by one with sigwaitinfo(), which also says where each came from: Ctrl-C in a terminal
reaches mpirun directly, and must not reach it twice (the second one makes it give up on an orderly end).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SI_KERNEL = 0x80  # si_code of a signal that the terminal sent, to the whole foreground group
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_GRACE = 2.0  # seconds an orphan gets to end by itself, and again after SIGTERM


def run(command: Sequence[str], environ: Mapping[str, str], family: str, say: Callable[[str], None]) -> int:
    """As `run_and_tell`: the exit code alone."""
    return run_and_tell(command, environ, family, say)[0]


def run_and_tell(
    command: Sequence[str], environ: Mapping[str, str], family: str, say: Callable[[str], None]
) -> tuple[int, bool]:
    """Start `command`, pass signals on until it has ended, end what it left; returns the exit code for the shell, and
    whether somebody has sent a signal that ends it.

    `family` is that of the mpirun, "openmpi" or "mpich", as they take different signals. Must be called in the main
    thread of a process without other children.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # ranks whose mpirun was killed become our children
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # What the caller ignores (nohup: SIGHUP) stays ignored, here and in mpirun.
    signals = {s for s in _PASSED_ON if signal.getsignal(s) is not signal.SIG_IGN} | {signal.SIGCHLD}
    shares_terminal = sys.stdin is not None and sys.stdin.isatty()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    parent = os.getpid()

    def in_child() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)  # the job ends with us, even if we are killed
        if os.getppid() != parent:
            os._exit(128 + signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    try:
        # In a terminal mpirun stays in the foreground group, to read what is typed; elsewhere it gets a group of its
        # own, so that a signal to the whole group of the caller arrives there once, from here.
        child = subprocess.Popen(
            command, env=dict(environ), preexec_fn=in_child, process_group=None if shares_terminal else 0
        )
        status, ending = _wait(child.pid, signals, family, say)
        child.returncode = status  # reaped here, not by Popen
        _end_orphans(signals, say)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return _exit_code(status, ending), ending != 0


def _exit_code(status: int, ending: int) -> int:
    """What a shell expects: 128 + n for an end by signal n, passed on or not; else the code of the job."""
    if status < 0:
        return 128 - status
    # After a signal Open MPI's mpirun exits with 1, MPICH's mpiexec with the number of the signal that ended the ranks.
    if ending and status in (1, ending, signal.SIGTERM, signal.SIGKILL, 128 + signal.SIGKILL):
        return 128 + ending
    return status


def _wait(
    child: int, signals: set[signal.Signals], family: str, say: Callable[[str], None]
) -> tuple[int, int]:
    """Pass signals on until `child` has ended: its status (-n: killed by signal n), and the last ending signal."""
    ending = 0
    while True:
        info = signal.sigwaitinfo(signals)
        if info.si_signo == signal.SIGCHLD:
            ended = _reap()
            if child in ended:
                return ended[child], ending
            continue
        number = signal.Signals(info.si_signo)
        if number in _ENDING:
            ending = int(number)
        if info.si_code == _SI_KERNEL:
            continue  # the terminal has sent it to mpirun as well
        _pass_on(child, number, family, say)


def _reap() -> dict[int, int]:
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = os.waitstatus_to_exitcode(status)


def _pass_on(child: int, number: signal.Signals, family: str, say: Callable[[str], None]) -> None:
    if family == "mpich" and number == signal.SIGHUP:
        number = signal.SIGTERM  # Hydra would die of it at once and leave its ranks behind
    if family == "mpich" and number == signal.SIGUSR2:
        # Hydra dies of it too, and cannot pass it on: give it to the ranks of this host.
        ranks = [rank for proxy in _children(child) for rank in _children(proxy)]
        say(
            f"SIGUSR2 reaches the {len(ranks)} ranks of this host only, as MPICH's mpiexec does not pass it on"
        )
        for rank in ranks:
            _kill(rank, number)
        return
    _kill(child, number)


def _kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # ended in the meantime


def _children(pid: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                state, parent = file.read().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(name))
    return found


def _end_orphans(signals: set[signal.Signals], say: Callable[[str], None]) -> None:
    """Whatever mpirun left behind is our child now: wait a little for it, then SIGTERM, then SIGKILL.

    The wait comes first because helpers such as multiprocessing's resource tracker end by themselves when their rank
    is gone, and clean up while they do.
    """
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        left = _children(os.getpid())
        if left and number:
            say(
                f"ending {len(left)} processes that the job left behind ({number.name}): {', '.join(map(str, left))}"
            )
            for pid in left:
                _kill(pid, number)
        end = time.monotonic() + _GRACE
        while _children(os.getpid()) and time.monotonic() < end:
            signal.sigtimedwait(signals, 0.05)  # a second Ctrl-C does not cut the cleaning short
            _reap()
        if not _children(os.getpid()):
            _reap()
            return
