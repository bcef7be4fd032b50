"""`start_timeline`, `stop_timeline`: what rank 0's operations are doing, as a trace for https://ui.perfetto.dev and
chrome://tracing.

An operation is a slice on the track of its name (on another one where two of them overlap), and its stages are slices
inside: SUBMIT until the engine has it, AGREE until all ranks have come to it, REDUCE until it is done. One that goes
along with its name ends with AGREE.
(The stages are those of csrc/engine/stage.h; the core keeps the times, csrc/engine/timeline.h.)
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from ringdp import world
from ringdp.errors import UsageError

VARIABLE = "RINGDP_TIMELINE"
MOST = 1_000_000  # operations, of some 150 bytes in memory and 600 in the file
STAGES = "SUBMIT", "AGREE", "REDUCE"
_begun: dict[str, int] = {}  # how often for this value of the variable


def start_timeline(file_path: str, mark_cycles: bool = False) -> None:
    """Begin to record rank 0's operations. On other ranks nothing happens, so all may call it, or rank 0 alone.

    The file is written by `stop_timeline()`, or when rank 0 shuts down; a job that is killed leaves it empty. It holds
    at most a million operations, and how many came after these.

    Args:
        file_path: on rank 0, of the trace (JSON); what it holds is replaced. RINGDP_TIMELINE names one to begin with.
        mark_cycles: Horovod's; there are no cycles to mark.

    Raises:
        UsageError: a timeline is being recorded already.
        OSError: the file cannot be written.
        NotInitializedError: before `init()`.
    """
    here = world.current()
    if here.place.rank != 0:
        return
    if here.timeline is not None:
        raise UsageError(f"start_timeline: {here.timeline} is being recorded; call stop_timeline() first")
    path = Path(file_path).absolute()
    path.write_text("")  # a path that cannot be written is heard of now
    here.timeline = path
    here.engine.start_timeline(MOST)


def stop_timeline() -> None:
    """Write what was recorded since `start_timeline()`, and record no more. Does nothing where nothing is recorded.

    Raises:
        NotInitializedError: before `init()`.
        OSError: the disk is full.
    """
    finish(world.current())


def start_from_environment(here: world.World) -> None:
    """As RINGDP_TIMELINE says; of `init()`, whose second call in a process takes `name.2.json`, and so on.

    Raises:
        UsageError: the file cannot be written.
    """
    given = os.environ.get(VARIABLE)
    if not given or here.place.rank != 0:
        return
    path = Path(given)
    _begun[given] = number = _begun.get(given, 0) + 1
    if number > 1:  # ringdp was initialised before, and that timeline is written
        path = path.with_stem(f"{path.stem}.{number}")
    try:
        start_timeline(str(path))
    except OSError as error:
        raise UsageError(f"{VARIABLE}={given} cannot be written: {error}") from error


def finish(here: world.World) -> None:
    """Write the file, if there is to be one."""
    if here.timeline is None:
        return
    path, here.timeline = here.timeline, None
    records, lost = here.engine.stop_timeline()
    with path.open("w", encoding="utf-8") as file:
        write(file, records, lost, here.place.rank)


def write(file: TextIO, records: Sequence[tuple[Any, ...]], lost: int, rank: int) -> None:
    """The trace: `{"traceEvents": […], "otherData": {"lost": …}}`, an event a line.

    Args:
        records: as the core's `stop_timeline` gives them: (name, kind, process set, bytes, submitted, agreeing,
            reducing, ended), times in seconds, None for a stage that an operation has not come to.
        lost: operations that are not among them.
        rank: the trace's process.
    """
    file.write('{"traceEvents": [\n' + json.dumps(named("process_name", rank, 0, f"rank {rank}")))
    tracks: dict[tuple[int, str], list[tuple[int, float]]] = {}  # number, and when its last operation ended
    made = 0
    for record in sorted(records, key=lambda record: record[4]):
        begin, ended, events = record[4], record[-1], []
        of_set = record[2], label_of(record[0])
        lanes = tracks.setdefault(of_set, [])
        lane = next((i for i, (_, until) in enumerate(lanes) if until <= begin), len(lanes))
        if lane == len(lanes):
            made += 1
            lanes.append((made, ended))
            suffix = f" (process set {of_set[0]})" if of_set[0] else ""
            suffix += f" ({lane + 1})" if lane else ""
            events.append(named("thread_name", rank, made, of_set[1] + suffix))
        number = lanes[lane][0]
        lanes[lane] = number, ended
        events += slices(record, rank, number)
        file.writelines(",\n" + json.dumps(event) for event in events)
    file.write(f'\n], "displayTimeUnit": "ms", "otherData": {{"lost": {lost}}}}}\n')


def label_of(name: str) -> str:
    """What an operation's track is called: calls that are numbered share one."""
    label = name.split(", call ")[0]
    return "unnamed" if label.rpartition(".")[0] == "unnamed" else label


def named(what: str, rank: int, track: int, name: str) -> dict[str, Any]:
    """An event that names a process or a track."""
    return {"ph": "M", "name": what, "pid": rank, "tid": track, "args": {"name": name}}


def slices(record: tuple[Any, ...], rank: int, track: int) -> Iterator[dict[str, Any]]:
    """The operation, and its stages inside."""
    name, kind, process_set, size, *came, ended = record
    args = {"tensor": name, "bytes": size, "process set": process_set}
    begins = [(stage, at) for stage, at in zip(STAGES, came, strict=True) if at is not None]
    ends = [at for _, at in begins[1:]] + [ended]
    spans = [(kind, begins[0][1], ended, args)]
    spans += [(stage, at, until, {}) for (stage, at), until in zip(begins, ends, strict=True)]
    for label, begin, end, shown in spans:
        times = {"ts": round(begin * 1e6, 3), "dur": round((end - begin) * 1e6, 3)}
        yield {"ph": "X", "name": label, "cat": kind, "pid": rank, "tid": track, **times, "args": shown}
