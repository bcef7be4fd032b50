"""Runs mpirun as a child: passes signals on, waits, and leaves no process behind.

A launcher that outlasts its ranks is ended as well: when the link to a host is cut, Open MPI's waits for its daemon
there until TCP gives up.

A first SIGTERM reaches ranks that can stop in order (ringdp/preempt.py) as SIGUSR1, and mpirun gets it itself only when
their time is over: mpirun gives ranks half a second at the most.

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
from dataclasses import dataclass

from ringdp.cli.processes import can_stop, has_ranks
from ringdp.processes import children

EXIT_CODE = 128 + signal.SIGTERM  # of ranks that have stopped in order
GRACE = 30.0  # seconds that ranks have for their step and their hooks, unless the user says
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SI_KERNEL = 0x80  # si_code of a signal that the terminal sent, to the whole foreground group
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LOOK = 1.0  # seconds between two looks at whether mpirun outlasts its ranks
_ENDS = 5.0  # seconds that mpirun has to end after a fault, from its last rank here on: it takes one or two
_FORCED = 4.0  # seconds of SIGTERMs, one at each look: the first alone makes Open MPI's wait on
_GRACE = 2.0  # seconds an orphan gets to end by itself, and again after SIGTERM


@dataclass
class _Job:
    """What is waited for."""

    child: int
    family: str
    say: Callable[[str], None]
    grace: float | None  # None: the user has not said
    ending: int = 0  # the last signal that mpirun got to end the job
    until: float | None = None  # the ranks were asked to stop, and have time until then
    has_passed_on_a_wish: bool = False  # a SIGUSR1, after which ranks may stop and exit with 143
    is_over: Callable[[], bool] = lambda: False  # a rank has said why the job ends
    over: bool = False  # it has been seen to be so
    has_had_ranks: bool = False  # on this host
    is_forced: bool = False  # mpirun was ended, as it outlasts its ranks
    alone_since: float | None = None  # since the job is over and no rank is left here

    def asks_to_stop(self) -> bool:
        """Ask the ranks, if they understand it; not twice."""
        if self.until is not None or self.grace == 0 or not can_stop(self.child, self.grace is not None):
            return False
        seconds = GRACE if self.grace is None else self.grace
        self.until = time.monotonic() + seconds
        self.say(
            f"SIGTERM: asking the ranks to stop after this step; they have {seconds:g} s (a second SIGTERM ends them)"
        )
        _pass_on(self.child, signal.SIGUSR1, self.family, self.say)
        return True

    def look(self) -> None:
        """What time brings: ranks that have not stopped in it, and an mpirun that outlasts them."""
        now = time.monotonic()
        if self.until is not None and now >= self.until:
            self.say("the ranks have not stopped in time: ending them")
            self.end_by(signal.SIGTERM)
        if not self.has_had_ranks:
            self.has_had_ranks = has_ranks(self.child)
            return
        self.over = self.over or self.is_over()
        if not self.over or has_ranks(self.child):
            self.alone_since = None
            return
        if self.alone_since is None:
            self.alone_since = now
        outlasts = now - self.alone_since - _ENDS
        if 0 <= outlasts < _LOOK:
            self.say("all ranks here have ended, and mpirun waits for hosts that do not answer: ending it")
        if outlasts >= 0:
            self.is_forced = True
            _kill(self.child, signal.SIGTERM if outlasts < _FORCED else signal.SIGKILL)

    def end_by(self, number: signal.Signals) -> None:
        """Let mpirun end the ranks."""
        self.ending, self.until = int(number), None if self.until is None else float("inf")
        _pass_on(self.child, number, self.family, self.say)


def run(
    command: Sequence[str],
    environ: Mapping[str, str],
    family: str,
    say: Callable[[str], None],
    grace: float | None = None,
) -> int:
    """As `run_and_tell`: the exit code alone."""
    return run_and_tell(command, environ, family, say, grace)[0]


def run_and_tell(
    command: Sequence[str],
    environ: Mapping[str, str],
    family: str,
    say: Callable[[str], None],
    grace: float | None = None,
    is_over: Callable[[], bool] = lambda: False,
) -> tuple[int, bool]:
    """Start `command`, pass signals on until it has ended, end what it left; returns the exit code for the shell, and
    whether somebody has sent a signal that ends it.

    `family` is that of the mpirun, "openmpi" or "mpich", as they take different signals. `grace`: seconds that ranks
    which can stop in order have for it after SIGTERM; 0: none. `is_over`: whether a rank of this host has said why the
    job ends; then mpirun must end soon after the last of them. Must be called in the main thread of a process without
    other children.
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
        job = _Job(child.pid, family, say, grace, is_over=is_over)
        status = _wait(job, signals)
        child.returncode = status  # reaped here, not by Popen
        _end_orphans(signals, say)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    code = _exit_code(status, job.ending, job.until is not None)
    if job.is_forced and code == 0:
        code = 1  # Open MPI's, when it loses a daemon at its end
    return code, job.ending != 0 or job.until is not None or (job.has_passed_on_a_wish and code == EXIT_CODE)


def _exit_code(status: int, ending: int, asked: bool = False) -> int:
    """What a shell expects: 128 + n for an end by signal n, passed on or not; else the code of the job. `asked`: the
    ranks have got SIGUSR1 in place of SIGTERM."""
    if status < 0:
        return 128 - status
    if asked and status in (signal.SIGUSR1, 128 + signal.SIGUSR1):  # one that had nothing to stop after yet
        return EXIT_CODE
    # After a signal Open MPI's mpirun exits with 1, MPICH's mpiexec with the number of the signal that ended the ranks.
    if ending and status in (1, ending, signal.SIGTERM, signal.SIGKILL, 128 + signal.SIGKILL):
        return 128 + ending
    return status


def _wait(job: _Job, signals: set[signal.Signals]) -> int:
    """Pass signals on until the child has ended: its status (-n: killed by signal n)."""
    while True:
        info = _next_signal(signals, job.until)
        if info is None:
            job.look()
        elif info.si_signo == signal.SIGCHLD:
            ended = _reap()
            if job.child in ended:
                return ended[job.child]
        elif info.si_code == _SI_KERNEL:  # the terminal has sent it to mpirun as well
            if info.si_signo in _ENDING:
                job.ending = info.si_signo
        elif info.si_signo in _ENDING:
            if info.si_signo != signal.SIGTERM or not job.asks_to_stop():
                job.end_by(signal.Signals(info.si_signo))
        else:
            job.has_passed_on_a_wish |= info.si_signo == signal.SIGUSR1
            _pass_on(job.child, signal.Signals(info.si_signo), job.family, job.say)


def _next_signal(signals: set[signal.Signals], until: float | None) -> signal.struct_siginfo | None:
    """None if there is none until then, or until the next look."""
    left = _LOOK if until is None else min(_LOOK, until - time.monotonic())
    return signal.sigtimedwait(signals, max(0.0, left))


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
        ranks = [rank for proxy in children(child) for rank in children(proxy)]
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


def _end_orphans(signals: set[signal.Signals], say: Callable[[str], None]) -> None:
    """Whatever mpirun left behind is our child now: wait a little for it, then SIGTERM, then SIGKILL.

    The wait comes first because helpers such as multiprocessing's resource tracker end by themselves when their rank
    is gone, and clean up while they do.
    """
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        left = children(os.getpid())
        if left and number:
            say(
                f"ending {len(left)} processes that the job left behind ({number.name}): {', '.join(map(str, left))}"
            )
            for pid in left:
                _kill(pid, number)
        end = time.monotonic() + _GRACE
        while children(os.getpid()) and time.monotonic() < end:
            signal.sigtimedwait(signals, 0.05)  # a second Ctrl-C does not cut the cleaning short
            _reap()
        if not children(os.getpid()):
            _reap()
            return
