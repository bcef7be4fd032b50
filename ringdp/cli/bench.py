"""`ringdp bench allreduce`: time, bandwidth and correctness over a range of sizes, beside MPI and gloo.

The columns are those that users of nccl-tests know. For N ranks and n bytes in t seconds, algbw is n / t and busbw is
algbw × 2(N−1)/N: what each rank must send and receive at the least, so it can be held against the speed of a link
whatever N is.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ringdp import launch, profile
from ringdp.cli import measure, table
from ringdp.cli.measure import ITEMSIZE, Row

if TYPE_CHECKING:
    from ringdp.cli.contestants import Contestant

_EXAMPLES = """examples:
  ringdp bench allreduce                               two ranks on this host, 4 B to 64 MiB
  ringdp bench allreduce --ranks 4 -d bfloat16 -o avg
  ringdp bench allreduce -b 1K -e 16M -f 4 --peers mpi,gloo --json out.json
  mpirun -n 8 ringdp bench allreduce -b 64M -e 64M     in a job of your own
  ringdp bench --table --help                          predicted and measured time of each algorithm

#wrong counts the elements, over all ranks, that are not exactly as they must be; with any, the exit code is 1."""

_ALIASES = {"half": "float16", "float": "float32", "double": "float64"}
_OPS = ("sum", "prod", "min", "max", "avg")
_PEERS = ("mpi", "gloo")


# --- arguments ----------------------------------------------------------------------------------------------


def size_in_bytes(text: str) -> int:
    """4, 64K, 1.5M or 1G, in powers of 1024."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([KMGkmg]?)(?:i?[Bb])?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write bytes, or 4K, 64M, 1G")
    return int(float(match[1]) * 1024 ** " KMG".index(match[2].upper() or " "))


def _count_from(lowest: int) -> Any:
    def count(text: str) -> int:
        if not text.isdecimal() or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"{text!r} is no number of {lowest} or more")
        return int(text)

    return count


def _dtype(text: str) -> str:
    name = _ALIASES.get(text, text)
    if name not in ITEMSIZE:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join([*ITEMSIZE, *_ALIASES])}")
    return name


def _peers(text: str) -> list[str]:
    names = list(dict.fromkeys(part for part in text.split(",") if part))
    for name in names:
        if name not in _PEERS:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(_PEERS)}")
    return names


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="ringdp bench",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = p.add_argument
    add("collective", choices=["allreduce"], help="what to measure")
    add("-b", "--minbytes", type=size_in_bytes, default=4, metavar="SIZE", help="smallest size (4)")
    add("-e", "--maxbytes", type=size_in_bytes, default=64 << 20, metavar="SIZE", help="largest size (64M)")
    add("-f", "--stepfactor", type=float, metavar="F", help="each size is F times the one before (4)")
    add("-i", "--stepbytes", type=size_in_bytes, metavar="SIZE", help="or: SIZE more than the one before")
    add("-d", "--datatype", type=_dtype, default="float32", metavar="TYPE", help=f"{', '.join(ITEMSIZE)}")
    add("-o", "--op", choices=_OPS, default="sum", metavar="OP", help=", ".join(_OPS))
    add("-n", "--iters", type=_count_from(1), default=20, metavar="N", help="timed iterations (20)")
    add("-w", "--warmup_iters", type=_count_from(0), default=5, metavar="N", help="untimed ones before (5)")
    add("-c", "--check", type=_count_from(0), default=1, metavar="N", help="checked ones; 0: no check (1)")
    add("--in-place", choices=["both", "yes", "no"], default="both", help="which forms to measure (both)")
    add("--peers", type=_peers, default=[], metavar="LIST", help="beside ringdp: mpi, gloo or mpi,gloo")
    add("--json", metavar="FILE", help="write the results there as well")
    add(
        "--ranks",
        type=_count_from(1),
        metavar="N",
        help="started alone: ranks to start with `ringdp run` (2)",
    )
    return p


def sizes(options: argparse.Namespace) -> Iterator[int]:
    """The sizes in bytes: whole elements, at least one, none twice."""
    item, last, size = ITEMSIZE[options.datatype], 0, float(options.minbytes)
    while size <= options.maxbytes:
        whole = max(1, int(size) // item) * item
        if whole != last:
            yield whole
        last = whole
        size = size + options.stepbytes if options.stepbytes else max(size, 1) * (options.stepfactor or 4)


def _check_range(p: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.minbytes > options.maxbytes:
        p.error(f"-b {options.minbytes} is more than -e {options.maxbytes}: give the smaller one to -b")
    if options.stepfactor and options.stepbytes:
        p.error("give -f or -i, not both")
    if options.stepfactor is not None and options.stepfactor <= 1 or options.stepbytes == 0:
        p.error("sizes must grow: give -f more than 1, or -i more than 0")


# --- the whole run ------------------------------------------------------------------------------------------


def select(
    wanted: Sequence[tuple[str, Contestant | str]], dtype: str, op: str
) -> tuple[list[Contestant], list[str]]:
    """Those that can do it, and a line for each that cannot."""
    able: list[Contestant] = []
    notes = []
    for name, one in wanted:
        reason = one if isinstance(one, str) else one.refusal(dtype, op)
        if reason:
            notes.append(f"{name} is left out: {reason}")
        elif not isinstance(one, str):
            able.append(one)
    return able, notes


def _describe(comm: Any, options: argparse.Namespace, library: str) -> list[str]:
    import socket

    from ringdp.cli.main import version

    hosts = comm.allgather(socket.gethostname())
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    return [
        f"ringdp {version()}, {library}, ranks {comm.size}, hosts {len(set(hosts))}, OMP_NUM_THREADS {threads}",
        f"profile {profile.described()}, algorithm {os.environ.get('RINGDP_ALGORITHM') or 'auto'}",
        f"time: median of {options.iters} iterations after {options.warmup_iters}, of the slowest rank",
        "ratio: time of the contestant / time of ringdp, so above 1 ringdp is the faster one",
    ]


def run(
    comm: Any, wanted: Sequence[tuple[str, Contestant | str]], options: argparse.Namespace, library: str
) -> int:
    """Measures all sizes on all ranks of `comm` and prints on its rank 0; the number of wrong elements.

    `library` is the name of the MPI, for the heading.
    """

    def say(text: str) -> None:
        if comm.rank == 0:
            print(text, flush=True)

    contestants, notes = select(wanted, options.datatype, options.op)
    about = _describe(comm, options, library)
    for note in [*about, *notes]:
        say(f"# {note}")
    rows: list[Row] = []
    if contestants:
        say(table.heading())
    for size in sizes(options) if contestants else ():
        rows += measure.measure(contestants, comm, options, size)
        for row in rows[-len(contestants) :]:
            say(table.line(row))
    if rows:
        say(table.summary(rows))
    if options.json and comm.rank == 0:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"about": about, "ranks": comm.size, "left_out": notes, "rows": rows}, file, indent=2)
            file.write("\n")
    for _, one in wanted:
        if not isinstance(one, str):
            one.close()
    return sum(form["wrong"] or 0 for _, form in table.forms_of(rows))


def _as_a_rank(options: argparse.Namespace) -> int:
    import ringdp

    ringdp.init()
    from mpi4py import MPI

    from ringdp.cli import contestants

    with or_abort():
        comm = MPI.COMM_WORLD.Dup()
        ours = contestants.Ringdp()
        reason = ours.refusal(options.datatype, options.op)
        if reason:
            code = 2
            if comm.rank == 0:
                print(f"ringdp bench: error: {reason}", file=sys.stderr, flush=True)
        else:
            wanted: list[tuple[str, Contestant | str]] = [(ours.name, ours)]
            wanted += [(name, contestants.peer(name, comm)) for name in options.peers]
            library = launch.library_name(MPI.Get_library_version())
            code = 1 if run(comm, wanted, options, library) else 0
    ringdp.shutdown()
    return code


@contextmanager
def or_abort() -> Iterator[None]:
    """Where this rank fails, the others wait in a collective: end them too, or the job hangs."""
    try:
        yield
    except BaseException:
        from mpi4py import MPI

        traceback.print_exc()
        sys.stderr.flush()
        MPI.COMM_WORLD.Abort(1)
        raise


def _starts_alone() -> bool:
    traces = launch.launcher_traces(os.environ)
    return traces is None or (
        "srun" in traces.launcher and traces.size == 1
    )  # an interactive step has one task


def _restart(ranks: int, argv: Sequence[str]) -> int:
    from ringdp.cli import run as runner

    # -P: a folder `ringdp` that happens to lie in the working directory is not the installed package.
    return runner.main(["-n", str(ranks), "--", sys.executable, "-P", "-m", "ringdp", "bench", *argv])


def _without_ranks(argv: Sequence[str]) -> list[str]:
    words, kept = iter(argv), []
    for word in words:
        if word == "--ranks":
            next(words, None)
        elif not word.startswith("--ranks="):
            kept.append(word)
    return kept


def on_ranks(
    p: argparse.ArgumentParser,
    options: argparse.Namespace,
    argv: Sequence[str],
    as_a_rank: Callable[[argparse.Namespace], int],
) -> int:
    """Run it as a rank of the job that this is, or start one where there is none."""
    if _starts_alone():
        return _restart(options.ranks or 2, _without_ranks(argv))
    if options.ranks:
        p.error(
            "--ranks is for starting alone: this already runs under a launcher, which has started the ranks"
        )
    return as_a_rank(options)


def main(argv: Sequence[str]) -> int:
    """0; 1 when an element was wrong; 2 for arguments that make no sense."""
    from ringdp.cli import predict

    if predict.wanted(argv):
        return predict.main(argv)
    p = parser()
    options = p.parse_args(argv)
    _check_range(p, options)
    return on_ranks(p, options, argv, _as_a_rank)
