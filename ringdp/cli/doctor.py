"""`ringdp doctor`: one page about a job that has failed: who, where, in which tensor and step, since when, what the
others waited for, and what to try."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from ringdp import flight
from ringdp.errors import UsageError
from ringdp.flight import Flight

_EXAMPLES = """examples:
  ringdp doctor ringdp-report-prterun-node1-4711-1    the folder that a failed job has left
  ringdp doctor                                       the newest one here
  ringdp doctor --stacks FOLDER                       with the Python stacks of all ranks"""

# What to try, by what the verdict says.
_HINTS = (
    (("is stopped",), "Somebody has stopped the process (SIGSTOP, a debugger, a paused virtual machine): continue it "
     "with `kill -CONT PROCESS`, or keep such machines out of the job."),
    (("OutOfMemory", "MemoryError", "Cannot allocate"), "The rank ran out of memory: smaller batches, fewer ranks a "
     "host, or fewer workers of data loaders."),
    (("was ended by",), "An exception ended the rank; its traceback is in the job's output, above the launcher's "
     "lines."),
    (("signal 15",), "The rank was asked to end from outside: by the scheduler (time limit, preemption) or by a "
     "person."),
    (("(signal",), "The process crashed: look at its Python stack below. A library of another version than the one it "
     "was built for is the usual cause."),
    (("is dead",), "Nothing was said before it died: mostly the kernel's out-of-memory killer (`dmesg | grep -i kill`, "
     "memory.events of the job's control group), or the scheduler."),
    (("is lost",), "MPI has lost its connection, and nobody on its host was left to say more: its process was killed "
     "there, or the host or the link to it went down."),
    (("not answer",), "The host or the link to it is down, or all its ranks are stopped: look at the host first, "
     "then at the switch. The job can be started again without it (-H)."),
    (("waits for something else",), "The ranks have come to different operations: their code took different branches. "
     "Name the operations, and see that all ranks come to all of them."),
    (("has not come",), "The rank was alive, and busy elsewhere: validating, saving, waiting for data. If so meant, "
     "put it into `with ringdp.patience(seconds):`, or raise RINGDP_TIMEOUT; its Python stack says where it was."),
    (("does not get through",), "All ranks have come, but data is not delivered: a link that drops packets, a firewall "
     "between the hosts, or an MPI that uses another network than expected."),
)  # fmt: skip


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="ringdp doctor",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("folder", nargs="?", type=Path, help="ringdp-report-… ; default: the newest one here")
    p.add_argument("--stacks", action="store_true", help="print the Python stacks of all ranks")
    return p


def newest(where: Path) -> Path | None:
    """The newest report in a folder."""
    found = [p for p in where.glob("ringdp-report-*") if p.is_dir()]
    return max(found, key=lambda p: p.stat().st_mtime, default=None)


def flights_in(folder: Path) -> tuple[list[Flight], list[str]]:
    """The recorders of a report, by rank, and a line about each file that is none."""
    flights, bad = [], []
    for path in sorted(folder.glob(f"*{flight.SUFFIX}")):
        try:
            flights.append(flight.read(path))
        except (OSError, UsageError) as error:
            bad.append(str(error))
    return sorted(flights, key=lambda f: f.rank), bad


def verdict_of(flights: Iterable[Flight]) -> str:
    """What the first rank has said that has ended the job; later words may be about what came of it, as the launcher
    kills the ranks that are left. Where none has ended it, what most say. "": none says anything."""
    told = [f for f in flights if f.verdict]
    ended = [f for f in told if f.fault]
    if ended:
        return min(ended, key=lambda f: f.blamed_at + f.wall_offset).verdict
    said = Counter(f.verdict for f in told)
    return said.most_common(1)[0][0] if said else ""


def hint(verdict: str) -> str:
    """What to try."""
    return next((text for words, text in _HINTS if any(word in verdict for word in words)), "")


def _seconds(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e9:.1f} s" if nanoseconds < 600e9 else f"{nanoseconds / 60e9:.0f} min"


def _at(one: Flight, now: int) -> str:
    """What this rank was at, `now` being the time of the report."""
    words = []
    if one.signal:
        try:
            name = signal.Signals(one.signal).name
        except ValueError:
            name = str(one.signal)
        words.append(f"ended by {name}")
    if one.failure:
        words.append(one.failure.split("\n")[0][:120])
    for since, what in one.calls:
        words.append(f"in {what} for {_seconds(max(0, now - since))}")
    still = [r for r in one.records if not r.has_ended]
    if still:
        oldest = still[0]
        words.append(f"in {oldest.label} ({oldest.stage}) for {_seconds(max(0, now - oldest.submitted))}")
        if len(still) > 1:
            words.append(f"and {len(still) - 1} more")
    elif one.records:
        last = one.records[-1]
        words.append(
            f"came to nothing for {_seconds(max(0, now - one.last))}; the last was {last.label} ({last.stage})"
        )
    else:
        words.append("it had submitted nothing")
    return ", ".join(words)


def _time_of_report(one: Flight) -> int:
    """Of the recorder's last word, on its own clock."""
    return max(one.failed_at, one.last, int(one.path.stat().st_mtime_ns) - one.wall_offset)


def page(folder: Path, all_stacks: bool = False) -> Iterable[str]:
    """The lines of the page about this report.

    Raises:
        UsageError: there is no recorder in it.
    """
    flights, bad = flights_in(folder)
    if not flights:
        raise UsageError(f"{folder} holds no flight recorder{': ' + '; '.join(bad) if bad else ''}")
    size, hosts = max(f.size for f in flights), list(dict.fromkeys(f.host for f in flights))
    when = max(_time_of_report(f) + f.wall_offset for f in flights) / 1e9
    yield f"job {flights[0].job}: {size} ranks, recorders of {len(flights)} on {', '.join(hosts)}"
    yield f"failed at {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(when))}"
    verdict = verdict_of(flights)
    yield ""
    yield f"culprit: {verdict or 'nobody says who it was'}"
    others = {f.verdict for f in flights if f.verdict and f.verdict != verdict}
    for other in sorted(others):
        ranks = ", ".join(str(f.rank) for f in flights if f.verdict == other)
        yield f"   (rank {ranks} says: {other})"
    if hint(verdict):
        yield f"try: {hint(verdict)}"
    yield ""
    yield "rank  step  host             process  what it was at"
    for one in flights:
        at = _at(one, _time_of_report(one))
        yield f"{one.rank:4d} {one.step:5d}  {one.host[:16]:16s} {one.pid:7d}  {at}"
    missing = sorted(set(range(size)) - {f.rank for f in flights})
    if missing:
        some = ", ".join(map(str, missing[:16])) + (
            f" and {len(missing) - 16} more" if len(missing) > 16 else ""
        )
        yield f"no recorder of rank {some}: of hosts without survivors, or it was not brought here"
    yield from (f"left out: {line}" for line in bad)
    for one in flights:
        is_culprit = verdict.startswith((f"rank {one.rank} ", f"rank {one.rank}:"))
        if (all_stacks or is_culprit) and one.stacks:
            yield ""
            yield f"Python stacks of rank {one.rank}:"
            yield one.stacks.rstrip()


def main(argv: Sequence[str]) -> int:
    """0, or 2 where there is no report."""
    options = parser().parse_args(argv)
    folder = options.folder or newest(Path())
    if folder is None or not folder.is_dir():
        print(
            f"ringdp doctor: there is no {folder or 'ringdp-report-… here'}: name the folder of a report",
            file=sys.stderr,
        )
        return 2
    try:
        for line in page(folder, options.stacks):
            print(line)
    except UsageError as error:
        print(f"ringdp doctor: {error}", file=sys.stderr)
        return 2
    return 0
