"""What `ringdp run` says last about a job that has failed: the culprit's line, below the launcher's own.

The survivors have brought the flight recorders of their hosts into the report's folder. Where all ranks of this host
died at once, nobody has: then the recorders are still where they were, and are brought there now.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from ringdp import flight, watch
from ringdp.cli import doctor
from ringdp.errors import UsageError


def folder_of(job: str) -> Path:
    """Where the report of this job goes."""
    return Path(os.environ.get(watch.FOLDER) or os.getcwd()) / f"ringdp-report-{job}"


def is_known(job: str) -> bool:
    """Whether a rank has said why this job ends."""
    folder = folder_of(job)
    return folder.is_dir() and any(one.fault for one in doctor.flights_in(folder)[0])


def bring_recorders(job: str) -> None:
    """Those of this job that are left on this host: into the report, or, of ranks that had left in peace, away."""
    folder = folder_of(job)
    for path in watch.folder_of_recorders().glob(f"{watch.PREFIX}{job}-*{flight.SUFFIX}"):
        with contextlib.suppress(OSError, UsageError):
            one = flight.read(path)
            if one.is_alive():
                continue
            if one.was_working:
                folder.mkdir(mode=0o700, exist_ok=True)
                place = folder / f"rank-{one.rank}{flight.SUFFIX}"
                if one.verdict or not _has_verdict(place):
                    shutil.move(path, place)
        path.unlink(missing_ok=True)


def _has_verdict(path: Path) -> bool:
    """A rank that has begun anew after the fault (`elastic`) has another recorder since, which knows nothing of it."""
    with contextlib.suppress(OSError, UsageError):
        return bool(flight.read(path).verdict)
    return False


def tell(job: str, code: int, say: Callable[[str], None]) -> None:
    """After the job has ended with this exit code."""
    bring_recorders(job)
    folder = folder_of(job)
    if code == 0 or not folder.is_dir():
        return
    flights, _ = doctor.flights_in(folder)
    verdict = doctor.verdict_of(flights) or _of_the_dead(flights)
    if verdict:
        say(f"{verdict} (all about it: ringdp doctor {folder})")


def _of_the_dead(flights: list[flight.Flight]) -> str:
    """Nobody was left to say it."""
    ended = [f for f in flights if f.signal or f.failure]
    if not ended:
        here = {f.local_rank for f in flights}
        are_all = bool(flights) and here == set(range(flights[0].local_size))
        some = ", ".join(f"{one.rank}: {one.pid}" for one in flights[:8]) + ", …" * (len(flights) > 8)
        return (
            f"all {len(flights)} ranks of this host have died at once; where the launcher has killed them because of "
            f"one, its lines above may say which process that was (rank: process: {some})"
            if are_all
            else ""
        )
    first = min(ended, key=lambda f: f.failed_at or 1 << 62)
    why = first.failure or f"signal {first.signal}"
    return f"rank {first.rank} (host {first.host}, process {first.pid}) was ended by {why}"
