"""`ringdp bench --table` and `--write-profile FILE`: the cost model beside what is measured.

The table has a line for each size: the time of every algorithm as the profile predicts it and as measured with the
algorithm forced, which of them is chosen, and how many times longer the chosen one took than the best.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ringdp import link, profile
from ringdp.cli import bench, calibrate, forced

_EXAMPLES = """examples:
  ringdp bench --table                                two ranks on this host, 4 B to 16 MiB
  ringdp bench --table --ranks 4 -b 1K -e 1M -f 4
  mpirun -n 8 ringdp bench --table                    in a job of your own
  mpirun -n 8 ringdp bench --write-profile our.profile
  RINGDP_PROFILE=our.profile mpirun -n 8 ringdp bench --table"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="ringdp bench",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = p.add_argument
    add("--table", action="store_true", help="predicted and measured time of each algorithm")
    add("--write-profile", metavar="FILE", help="measure the links and write a profile for RINGDP_PROFILE")
    add("-b", "--minbytes", type=bench.size_in_bytes, default=4, metavar="SIZE", help="smallest size (4)")
    add("-e", "--maxbytes", type=bench.size_in_bytes, default=16 << 20, metavar="SIZE", help="largest (16M)")
    add("-f", "--stepfactor", type=float, default=8, metavar="F", help="each size is F times the last (8)")
    add("-n", "--iters", type=int, default=20, metavar="N", help="timed iterations of each round (20)")
    add("--rounds", type=int, default=3, metavar="N", help="how often the algorithms take turns (3)")
    add("--json", metavar="FILE", help="write the table there as well")
    add("--ranks", type=int, metavar="N", help="started alone: ranks to start with `ringdp run` (2)")
    return p


# --- lines --------------------------------------------------------------------------------------------------

Times = dict[str, float]  # microseconds, by algorithm
Row = dict[str, Any]


def line_of(size: int, predicted: Times, measured: Times, chosen: str) -> Row:
    """`distance` is 1 where the chosen algorithm was the fastest."""
    best = min(measured, key=measured.__getitem__)
    return {
        "size": size,
        "predicted_us": predicted,
        "measured_us": measured,
        "chosen": chosen,
        "best": best,
        "distance": measured[chosen] / measured[best],
    }


def heading(names: Sequence[str]) -> str:
    columns = "".join(f" {name:>21}" for name in names)
    units = f" {'predicted measured us':>21}" * len(names)
    return f"# {'size':>10}{columns}  chosen, and its time / the best one's\n# {'(B)':>10}{units}"


def text_of(row: Row) -> str:
    times = "".join(
        f" {row['predicted_us'][name]:>12.1f} {row['measured_us'][name]:>8.1f}" for name in row["measured_us"]
    )
    best = "" if row["best"] == row["chosen"] else f" ({row['best']})"
    return f"{row['size']:>12}{times}  {row['chosen']} {row['distance']:.2f}{best}"


# --- measuring ----------------------------------------------------------------------------------------------


def sizes_of(options: argparse.Namespace) -> list[int]:
    sizes, size = [], float(options.minbytes)
    while size <= options.maxbytes:
        sizes.append(max(4, int(size) // 4 * 4))
        size *= options.stepfactor
    return list(dict.fromkeys(sizes))


def _rows(comm: Any, options: argparse.Namespace) -> list[Row]:
    from ringdp.constants import Dtype

    sizes = sizes_of(options)
    with forced.algorithm("auto") as engine:
        chosen = [engine.algorithm(size, Dtype.float32) for size in sizes]
        predicted = [engine.costs(size, Dtype.float32) for size in sizes]
    rows = []
    measured = _measure(comm, [name for name, _ in predicted[0]], sizes, options)
    for size, name, costs in zip(sizes, chosen, predicted, strict=True):
        rows.append(line_of(size, {a: seconds * 1e6 for a, seconds in costs}, measured[size], name))
    return rows


def _measure(
    comm: Any, names: Sequence[str], sizes: Sequence[int], options: argparse.Namespace
) -> dict[int, Times]:
    """By size. Each round starts ringdp anew for each algorithm."""
    taken: dict[int, dict[str, list[float]]] = {size: {name: [] for name in names} for size in sizes}
    for _ in range(options.rounds):
        for name in names:
            with forced.algorithm(name):
                for size in sizes:  # long ones need no twenty repetitions
                    iterations = max(3, min(options.iters, (64 << 20) // size))
                    taken[size][name].append(forced.microseconds(comm, size, iterations))
    return {size: {name: median(times) for name, times in of.items()} for size, of in taken.items()}


# --- the whole run ------------------------------------------------------------------------------------------


def _write_profile(comm: Any, hosts: Sequence[int], path: Path) -> list[str]:
    found, notes = calibrate.measured_profile(comm, hosts, path.stem)
    if comm.rank == 0:
        path.write_text("".join(f"# {note}\n" for note in notes) + found.text(), encoding="utf-8")
    return [*(f"# {note}" for note in notes), f"# written: RINGDP_PROFILE={path} ({found.digest:016x})"]


def _table(comm: Any, options: argparse.Namespace) -> list[str]:
    rows = _rows(comm, options)
    if options.json and comm.rank == 0:
        found = {"profile": profile.described(), "ranks": comm.size, "rows": rows}
        Path(options.json).write_text(json.dumps(found, indent=2), encoding="utf-8")
    worst = max(row["distance"] for row in rows)
    end = f"# the choice took at most {worst:.2f} times the best one's time"
    return [heading(list(rows[0]["measured_us"])), *map(text_of, rows), end]


def _as_a_rank(options: argparse.Namespace) -> int:
    from ringdp import mpi
    from ringdp.cli.main import version

    MPI: Any = mpi.load()
    with bench.or_abort():
        comm = MPI.COMM_WORLD.Dup()
        hosts = link.hosts_of(comm, MPI)
        where = f"ranks {comm.size}, hosts {len(set(hosts))}"
        lines = [f"# ringdp {version()}, profile {profile.described()}, {where}"]
        if options.write_profile:
            lines += _write_profile(comm, hosts, Path(options.write_profile))
        if options.table:
            lines += _table(comm, options)
        if comm.rank == 0:
            print("\n".join(lines), flush=True)
        comm.Free()
    return 0


def wanted(argv: Sequence[str]) -> bool:
    """Whether these arguments of `ringdp bench` are for this file."""
    return any(word == "--table" or word.split("=")[0] == "--write-profile" for word in argv)


def main(argv: Sequence[str]) -> int:
    """0; 2 for arguments that make no sense."""
    p = parser()
    options = p.parse_args(argv)
    if (
        options.minbytes > options.maxbytes
        or options.stepfactor <= 1
        or options.iters < 1
        or options.rounds < 1
    ):
        p.error("give -b not more than -e, -f more than 1, -n and --rounds of 1 or more")
    return bench.on_ranks(p, options, argv, _as_a_rank)
