"""The watch of this process: its flight recorder, and the core's thread that sees neighbours die and ends calls of
MPI that nobody else could end (csrc/guard).

`begin()` comes before MPI is touched: a rank that waits there for one that never comes must be able to say so. `meet()`
follows when the ranks can talk, `end()` when they have left.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import math
import os
import re
import secrets
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from ringdp import flight, launch, processes
from ringdp.errors import TransportError, UsageError

TIMEOUT, REPORT_AFTER, START_TIMEOUT = "RINGDP_TIMEOUT", "RINGDP_REPORT_AFTER", "RINGDP_START_TIMEOUT"
FOLDER = "RINGDP_REPORT_DIR"
JOB = "RINGDP_JOB"  # set by `ringdp run`
# Whatever the launcher calls the job, the same on all its ranks.
_NAMES_OF_JOBS = ("PMIX_NAMESPACE", "PMI_JOBID", "HYDRA_JOBID", "SLURM_JOB_ID")
PREFIX = "ringdp."  # of a recorder's name

STALE_AFTER = 60.0  # seconds without a word
LAUNCHER_TAKES = 3.0  # seconds, at the most, to end a job of which a rank has died

_current: Any = None  # ringdp._core.Watch
_groups: list[int] = []
_ends_at_exit = False
_enabled_faulthandler = False
_stack_signal = 0


def current() -> Any:
    """The watch of this process, or None."""
    return _current


def groups() -> list[int]:
    """Of each rank of the job: a number that those have in common which see each other's processes."""
    return list(_groups)


def forget_after_fork() -> None:
    """This process is a forked child: the recorder is its parent's, and so are the neighbours."""
    global _current
    if _current is not None:
        _current.forget_after_fork()
        _current = None


def stepped() -> None:
    """An optimizer of this rank has made a step: the recorder counts them."""
    if _current is not None:
        _current.stepped()


def folder_of_recorders() -> Path:
    """Where this host's flight recorders lie: in memory if there is such a place."""
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())


def name_of_job(environ: dict[str, str] | Any) -> str:
    """What the launcher calls the job; of a process that was started alone, something of its own."""
    if environ.get(JOB):
        return _plain(environ[JOB])
    if launch.launcher_traces(environ) is not None:
        for variable in _NAMES_OF_JOBS:
            if environ.get(variable):
                step = environ.get("SLURM_STEP_ID", "") if variable.startswith("SLURM") else ""
                return _plain(f"{environ[variable]}-{step}".strip("-"))
    return f"alone-{os.getpid()}"


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text)[-48:].strip("-.") or "job"


def begin() -> Any:
    """Open the recorder and start the watch, before this rank knows anybody. What is left of jobs that have died is
    cleared away."""
    global _current, _ends_at_exit
    end(all_left=False)
    if not _ends_at_exit:
        _ends_at_exit = True
        atexit.register(end, all_left=False)
    from ringdp import _core

    traces = launch.launcher_traces(os.environ)
    rank = (traces.rank if traces else None) or 0
    size = (traces.size if traces else None) or 1
    local = (traces.local_rank if traces else None) or 0
    local_size = (traces.local_size if traces else None) or 1
    job = name_of_job(os.environ)
    folder = folder_of_recorders()
    clear_away(folder)
    stem = folder / f"{PREFIX}{job}-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        watch = _core.Watch(str(stem) + flight.SUFFIX, rank, size, local, local_size, job)
    except TransportError:  # no room: only this process sees what it does
        watch = _core.Watch("", rank, size, local, local_size, job)
    watch.start(seconds_of(TIMEOUT, 600))
    _current = watch
    return watch


def clear_away(folder: Path) -> None:
    """Recorders of this user whose process is gone.

    Those of a job of which no rank lives on this host, so that nobody was left to bring them, go into its report, if
    there is one where this job's would be. All others go a minute later: of jobs that were killed as a whole. Of those
    that have just died their own `ringdp run` is about to make a report.
    """
    found = []
    for path in folder.glob(f"{PREFIX}*{flight.SUFFIX}"):
        with contextlib.suppress(OSError, UsageError):
            if path.stat().st_uid == os.getuid():
                found.append(flight.read(path))
    live = {one.job for one in found if one.is_alive()}
    for one in found:
        with contextlib.suppress(OSError):
            if one.is_alive():
                continue
            report = report_folder(_plain(one.job), os.environ.get(FOLDER) or os.getcwd())
            place = report / f"rank-{one.rank}{flight.SUFFIX}"
            last = max(one.path.stat().st_mtime, (one.last + one.wall_offset) / 1e9)
            if one.was_working and one.job not in live and report.is_dir() and not place.exists():
                shutil.move(one.path, place)
            elif time.time() - last > STALE_AFTER:
                one.path.unlink()


def seconds_of(variable: str, fallback: float) -> float:
    """What it says, for calls of MPI."""
    try:
        return float(os.environ.get(variable) or fallback)
    except ValueError:
        return fallback  # the engine will say that it is no number


def recorders() -> str:
    """A pattern of the files of all ranks of this host, as far as they have come to `init()`."""
    return str(folder_of_recorders() / f"{PREFIX}{name_of_job(os.environ)}-*{flight.SUFFIX}")


@contextlib.contextmanager
def guarded(what: str, missing: bool = False, times: float = 1, most: float = math.inf) -> Iterator[None]:
    """Inside is one call of MPI, which takes no deadline: if it has not ended within RINGDP_TIMEOUT seconds, the
    process ends with a line that says so.

    Args:
        what: the call, as people know it: "MPI_Comm_dup".
        missing: of `init()`, which has RINGDP_START_TIMEOUT: say which ranks of this host have not come to it.
        times: so many times as long.
        most: so many seconds at the most.
    """
    watch = _current or _alone()
    end = min(most, times * seconds_of(START_TIMEOUT if missing else TIMEOUT, 600))
    report = min(end, seconds_of(REPORT_AFTER, 60))
    call = watch.enter(what, report, end, recorders() if missing else "")
    try:
        yield
    finally:
        watch.leave(call)
        if watch is not _current:
            watch.close()


def _alone() -> Any:
    """For a call when this rank has left the job, or was in none."""
    from ringdp import _core

    watch = _core.Watch("", 0, 1, 0, 1, "")
    watch.start(0)
    return watch


def report_folder(job: str, base: str, generation: int = 1) -> Path:
    """Where the recorders go after a fault: in another generation ranks have other numbers."""
    return Path(base) / f"ringdp-report-{job}{f'.{generation}' if generation > 1 else ''}"


def meet(watch: Any, comm: Any, place: Any, generation: int = 1) -> None:
    """The ranks know each other: map the recorders of this host's. Collective over `comm`.

    Args:
        generation: of ranks, if some have been lost; 1: as they were started.
    """
    job, base = comm.bcast((name_of_job(os.environ), os.environ.get(FOLDER) or os.getcwd()), root=0)
    folder = report_folder(job, base, generation)
    watch.place(place.rank, place.size, place.local_rank, place.local_size, job, str(folder))
    write_stacks(watch)
    mine = place.rank, socket.gethostname(), watch.path, watch.token
    reached, attached = place.rank, False
    everybody = comm.allgather(mine)
    for rank, host, path, token in everybody:
        if rank != place.rank and host == mine[1] and path and watch.attach(rank, path, token) == "":
            reached, attached = min(reached, rank), True
    _groups[:] = comm.allgather(reached)
    watch.set_places(_groups, [host for _, host, _, _ in everybody])
    # Neighbours hold it, and bring it into a report. That of a rank alone on its host keeps its name, and so do all
    # where the launcher is ours, and looks for them.
    if attached and not os.environ.get(JOB):
        watch.unlink()


def write_stacks(watch: Any) -> None:
    """Let this process write the stacks of its Python threads into its recorder: when it crashes, unless the user
    has that written elsewhere; and when a neighbour asks, by a signal that nobody else uses."""
    global _enabled_faulthandler, _stack_signal
    if watch.stacks < 0:
        return
    _stack_signal = free_signal()
    if _stack_signal:
        faulthandler.register(_stack_signal, file=watch.stacks, all_threads=True, chain=False)
        watch.writes_stacks_on(_stack_signal)
    if not faulthandler.is_enabled():
        faulthandler.enable(file=watch.stacks, all_threads=True)
        _enabled_faulthandler = True


def free_signal() -> int:
    """A real-time signal that nobody handles or blocks in this process; 0: none."""
    mine = processes.signals("self")
    taken = mine.caught | mine.ignored | mine.blocked
    # From above: libraries count from SIGRTMIN on.
    for number in range(signal.SIGRTMAX - 1, signal.SIGRTMIN, -1):
        if not taken & (1 << (number - 1)):
            return number
    return 0


def end(all_left: bool) -> None:
    """This rank has left the job. No file stays, but a report. (Where others have not left it stays as it is until
    this process ends, or begins again: an exception may still end the job, and who is to blame is known here.)"""
    global _current, _enabled_faulthandler, _stack_signal
    watch, _current = _current, None
    if watch is None:
        return
    if all_left:
        watch.ended()
    if _stack_signal:
        faulthandler.unregister(_stack_signal)
    if _enabled_faulthandler:
        faulthandler.disable()
    _stack_signal, _enabled_faulthandler = 0, False
    watch.close()


def exception(rank: int, failure: str, by_peers: bool) -> None:
    """This rank is ended by an exception, and ends the job: bring all recorders of the host into the report. Where
    a rank is dead, the launcher ends the job, with the exit code of that one: give it the time."""
    if _current is None:
        return
    _current.failed_by(failure)
    mine = f"rank {rank} (host {socket.gethostname()}, process {os.getpid()}) was ended by {failure}"
    _current.report((by_peers and _current.blamed) or mine, False, all=True)
    if _current.dead() or _current.heard_of_death:
        time.sleep(LAUNCHER_TAKES)


def failed_alone(failure: str) -> NoReturn:
    """This rank is ended by an exception, and the others go on: by SIGKILL, as MPI tells them of no other end."""
    if _current is not None:
        _current.failed_by(failure)
    os.kill(os.getpid(), signal.SIGKILL)
    raise SystemExit(1)  # never


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Inside, nothing that this rank waits for, and nothing for which other ranks wait for this one, is ended
    before so many seconds have passed: for a validation, or a checkpoint, that takes longer than RINGDP_TIMEOUT.

    It does not hold for ranks that are dead, stopped or unreachable.

    with ringdp.patience(3600):
        if ringdp.rank() == 0:
            validate(model)
        ringdp.barrier()

    Args:
        seconds: from now on.

    Raises:
        UsageError: no positive number.
    """
    if not seconds > 0:
        raise UsageError(f"patience() needs a positive number of seconds, not {seconds!r}")
    watch = _current
    before = watch.be_patient(float(seconds)) if watch is not None else 0
    try:
        yield
    finally:
        if watch is not None:
            watch.patient_until(before)
