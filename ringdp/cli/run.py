"""`ringdp run`: starts N ranks with the mpirun that belongs to the MPI in use."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from ringdp import launch, watch
from ringdp.cli import elastic, restarts
from ringdp.cli import hosts as host_lists
from ringdp.cli import mpirun as mpiruns
from ringdp.cli.horovodrun import EXPLANATIONS
from ringdp.commits.folder import VARIABLE as COMMIT_DIR
from ringdp.mpi import REPORT_LOST_RANKS

_EXAMPLES = """examples:
  ringdp run -n 2 train.py --epochs 5            two ranks on this host
  ringdp run -n 8 -H node1:4,node2:4 train.py    four ranks on each of two hosts
  ringdp run -n 8 --hostfile hosts train.py      the same, from a file of lines `node1 slots=4`
  ringdp run -n 2 python -m package.train        a module; any program works
  ringdp run -n 4 --restarts 3 train.py          start it again when it fails, from its last commit
  ringdp run -n 4 --elastic train.py             go on without ranks that die (Open MPI 5)
  ringdp run -n 4 --elastic --spares 2 train.py  start two more, which take the places of ranks that die
  ringdp run -n 4 --dry-run train.py             print the command line and stop

Each rank gets its share of the cores as OMP_NUM_THREADS, unless that is set already. Signals go on to the ranks, and
the exit code is that of the job (128 + n when signal n ended it; 10 when --elastic has gone on without lost ranks, or
with spares in their places)."""


def _say(text: str) -> None:
    print(f"ringdp run: {text}", file=sys.stderr, flush=True)


def _fail(text: str) -> NoReturn:
    _say(f"error: {text}")
    sys.exit(2)


class _Explain(argparse.Action):
    """An option of horovodrun: says what to do instead and ends."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any) -> NoReturn:
        _fail(f"{args[-1]} is an option of horovodrun that `ringdp run` does not have: {self.const}")


def _number(what: str, least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no number of {what}: give {least} or more")
        return int(text)

    return parse


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return seconds


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="ringdp run",
        usage="ringdp run -n N [-H HOSTS | --hostfile FILE] [options] script.py [arguments]",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument(
        "-n", "-np", "--num-proc", dest="ranks", type=_number("ranks", 1), metavar="N", help="ranks to start"
    )
    p.add_argument("-H", "--hosts", metavar="HOSTS", help="hosts and their slots: node1:4,node2:4")
    p.add_argument(
        "--hostfile", "-hostfile", metavar="FILE", help="a host a line: `node1 slots=4` or `node1:4`"
    )
    p.add_argument("-x", dest="export", action="append", default=[], metavar="VAR[=VALUE]",
                   help="hand this variable to the ranks (may be repeated)")  # fmt: skip
    p.add_argument("--mpirun", metavar="PATH", help="use this mpirun instead of the one found")
    p.add_argument("--mpi-args", type=shlex.split, default=[], metavar="ARGS",
                   help="more options for mpirun: --mpi-args='--bind-to core'")  # fmt: skip
    p.add_argument("--restarts", type=_number("restarts", 0), metavar="K",
                   help="start a failed job again from its last commit, K times without a new one")  # fmt: skip
    p.add_argument(
        "--elastic", action="store_true", help="go on without ranks that are lost (Open MPI 5, elastic.run)"
    )
    p.add_argument(
        "--min-ranks",
        type=_number("ranks", 1),
        metavar="K",
        help="with --elastic: end the job when fewer are left",
    )
    p.add_argument("--spares", type=_number("spares", 0), metavar="S",
                   help="with --elastic: start S processes more, which take the places of lost ranks")  # fmt: skip
    p.add_argument("--commit-dir", metavar="DIR",
                   help="where TorchState commits (with --restarts: ringdp-commits/...)")  # fmt: skip
    p.add_argument("--grace", type=_seconds, metavar="SECONDS",
                   help="time for the ranks to stop in order after SIGTERM (default 30)")  # fmt: skip
    p.add_argument("--dry-run", action="store_true", help="print the command line and stop")
    p.add_argument("--verbose", action="store_true", help="say what was found and started, on stderr")
    p.add_argument("program", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    for names, text in EXPLANATIONS.items():
        p.add_argument(
            *names, dest="horovodrun", action=_Explain, const=text, nargs=0, help=argparse.SUPPRESS
        )
    return p


@dataclass
class Job:
    """What will be started."""

    mpirun: mpiruns.Mpirun
    command: list[str]
    changes: dict[str, str] = field(default_factory=dict)  # variables set for it
    notes: list[str] = field(default_factory=list)  # lines for stderr


def _hosts(options: argparse.Namespace) -> list[host_lists.Host]:
    if options.hosts and options.hostfile:
        raise host_lists.HostError("give -H or --hostfile, not both")
    if options.hosts:
        return host_lists.parse_hosts(options.hosts)
    return host_lists.parse_hostfile(options.hostfile) if options.hostfile else []


def _number_of_ranks(
    options: argparse.Namespace, hosts: Sequence[host_lists.Host], again: bool
) -> tuple[int, int]:
    """And of spares. `again`: after a restart there may be fewer slots than the user has asked for."""
    slots, spares = host_lists.total_slots(hosts), int(options.spares or 0)
    if options.ranks is None and slots is None:
        raise mpiruns.LaunchError("say how many ranks to start: -n N")
    ranks = int(options.ranks or max((slots or 0) - spares, 1))
    if slots is not None and ranks + spares > slots:
        if again:
            ranks = min(ranks, slots)
            return ranks, min(spares, slots - ranks)
        wanted = f"-n {ranks} with --spares {spares}" if spares else f"-n {ranks}"
        raise mpiruns.LaunchError(
            f"{wanted} is more than the {slots} slots of the hosts: give them more (host:slots)"
        )
    return ranks, spares


def _words(options: argparse.Namespace) -> list[str]:
    """The program with its arguments, as the user gave them."""
    words = list(options.program[1:] if options.program[:1] == ["--"] else options.program)
    if not words:
        raise mpiruns.LaunchError("nothing to start: name a script or program after the options")
    return words


def _program(words: Sequence[str], path: str | None) -> list[str]:
    """The program with its arguments; a Python file is started with this Python."""
    if words[0].endswith(".py"):
        if not os.path.isfile(words[0]):
            raise mpiruns.LaunchError(f"there is no script {words[0]}")
        return [sys.executable, *words]
    if words[0] in ("python", "python3"):
        return [sys.executable, *words[1:]]
    found = shutil.which(words[0], path=path)
    if not found:
        raise mpiruns.LaunchError(
            f"there is no program {words[0]}: give its path, or a script that ends in .py"
        )
    return [found, *words[1:]]


def _refuse_inside_a_job(environ: Mapping[str, str]) -> None:
    traces = launch.launcher_traces(environ)
    if traces and traces.means_several:
        raise mpiruns.LaunchError(
            f"this already runs in a job that {traces.launcher} started ({traces.trace}): start the script itself "
            "there, or `ringdp run` without that launcher"
        )


def _changes(options: argparse.Namespace, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables the job needs: this Python's programs on PATH (a venv need not be active), what -x says."""
    programs, path = os.path.dirname(sys.executable), environ.get("PATH", os.defpath)
    folders, in_venv = path.split(os.pathsep), sys.prefix != sys.base_prefix
    changes = {"PYTHONUNBUFFERED": "1"}
    if programs not in (folders[:1] if in_venv else folders):
        changes["PATH"] = programs + os.pathsep + path
    for item in options.export:
        name, equals, value = item.partition("=")
        if not name or (not equals and name not in environ):
            raise mpiruns.LaunchError(
                f"-x {item}: there is no such variable; set it, or write -x {name or 'VAR'}=VALUE"
            )
        if equals:
            changes[name] = value
    return changes


def plan(options: argparse.Namespace, environ: Mapping[str, str], again: bool = False) -> Job:
    """Everything about the job, before anything is started, or started `again`. Raises LaunchError or HostError."""
    _refuse_inside_a_job(environ)
    hosts = _hosts(options)
    ranks, spares = _number_of_ranks(options, hosts, again)
    share_of_unsaid = -(-(ranks + spares) // len(hosts)) if hosts else None
    hosts = [host_lists.Host(h.name, h.slots or share_of_unsaid) for h in hosts]
    changes = _changes(options, environ)
    words = _words(options)
    changes |= restarts.variables(options.restarts, options.commit_dir, words, {**environ, **changes})
    program = _program(words, changes.get("PATH", environ.get("PATH")))
    mpirun = mpiruns.find_mpirun(environ, options.mpirun)
    mpi_args = list(options.mpi_args)
    if options.elastic:
        elastic.refuse(mpirun, mpi_args)
        changes |= elastic.variables(options.min_ranks, spares, {**environ, **changes})
        mpi_args = [*elastic.options(), *mpi_args]
    elif options.spares:
        raise mpiruns.LaunchError("--spares are for ranks that are lost with --elastic: give that, too")
    elif options.min_ranks is not None:
        raise mpiruns.LaunchError("--min-ranks says how many must be left with --elastic: give that, too")
    job = Job(mpirun, [], changes)

    per_host = host_lists.ranks_per_host(ranks, hosts or host_lists.allocated_hosts(environ))
    cores = launch.cores_of_process()
    if "OMP_NUM_THREADS" not in {**environ, **changes}:
        threads = max(1, cores // per_host)
        changes["OMP_NUM_THREADS"] = str(threads)
        where = "" if per_host == ranks else " a host"
        job.notes.append(
            f"{per_host} rank{'s' * (per_host > 1)}{where} on {cores} core{'s' * (cores > 1)}: "
            f"OMP_NUM_THREADS={threads} (set it yourself to override)"
        )
    changes.update(mpiruns.launcher_environment(mpirun, os.geteuid() == 0))
    if mpirun.family == "openmpi" and per_host < ranks and REPORT_LOST_RANKS[0] not in environ:
        changes.update([REPORT_LOST_RANKS])  # `init()` is too late where the program initialises MPI itself
    names = [item.partition("=")[0] for item in options.export]
    if not options.dry_run:
        names.append(watch.JOB)  # set when it is started
    exported = mpiruns.exported_names({**environ, **changes}, names)
    job.command = mpiruns.command_line(mpirun, ranks + spares, program, hosts, exported, mpi_args)
    return job


def main(argv: Sequence[str]) -> int:
    """The exit code of the job; 2 when it could not be started."""
    options = parser().parse_args(argv)
    try:
        job = plan(options, os.environ)
    except (mpiruns.LaunchError, host_lists.HostError) as error:
        _fail(str(error))
    settings = [f"{name}={value}" for name, value in sorted(job.changes.items())]
    if options.dry_run:
        print(shlex.join(["env", *settings, *job.command]))
        return 0
    for note in job.notes:
        _say(note)
    if options.verbose:
        _say(f"mpirun: {job.mpirun}")
        _say(f"environment: {shlex.join(settings)}")
        _say(f"command: {shlex.join(job.command)}")
    if options.restarts is None:
        return _start(job, options).code
    folder = Path(job.changes[COMMIT_DIR])
    return restarts.Restarts(folder, options.restarts, _say).run(
        lambda number: _attempt(options, job, number)
    )


def _attempt(options: argparse.Namespace, first: Job, number: int) -> restarts.Ended | None:
    """The hosts may be others than before. None: it cannot be started any more."""
    if number == 0:
        return _start(first, options)
    try:
        job = plan(options, os.environ, again=True)
    except (mpiruns.LaunchError, host_lists.HostError) as error:
        _say(f"error: {error}")
        return None
    if job.command != first.command:
        _say(f"not as before, but: {shlex.join(job.command)}")
    job.changes[restarts.ATTEMPT] = str(number)
    return _start(job, options)


def _start(job: Job, options: argparse.Namespace) -> restarts.Ended:
    from ringdp.cli import culprit, supervise

    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    environ = {**os.environ, **job.changes, watch.JOB: name}

    def is_over() -> bool:  # with --elastic, ranks of other hosts may go on
        return not options.elastic and culprit.is_known(name)

    code, asked = supervise.run_and_tell(
        job.command, environ, job.mpirun.family, _say, options.grace, is_over
    )
    culprit.tell(name, code, _say)
    if options.elastic:
        code = elastic.tell(culprit.folder_of(name), code, _say)
    return restarts.Ended(code, asked)
