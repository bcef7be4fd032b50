"""Goes on for a long time with what differs each time: `python tests/soak.py --seconds 3600 [--seed N]`.

Jobs of real processes to which things happen (tests/faults/drawn.py), scenarios of ranks in this process
(tests/native/play.h) and inputs for what parses (tests/fuzz), by turns. What is counted is what came out as it must;
the first thing that did not ends the soak, and says how to do it again. A line a minute says how far it is; the last
ones are a table.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH, where set, leaves it out

from driver.environ import environment
from faults.drawn import draw
from faults.drawn_run import Lost, try_job
from native.building import QUICKLY, cxx, make

SLICE = {"jobs": 120.0}  # seconds of a part before the next one
SLICE_OF_OTHERS = 20.0
GRACE = 300.0  # seconds that a part may take to end
MINUTE = 60.0

# What a part is given: seconds, and the number of its first seed. What it gives: how many of which it has done.
Part = Callable[[float, int], Iterator[tuple[str, int]]]


class Failed(Exception):
    """What went wrong, and how to see it again."""


class Soak:
    """What has been done so far."""

    def __init__(self, seconds: float, seed: int) -> None:
        self.began, self.seed = time.monotonic(), seed
        self.end, self.said = self.began + seconds, self.began
        self.done: Counter[str] = Counter()

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def count(self, what: str, times: int) -> None:
        self.done[what] += times
        if time.monotonic() - self.said >= MINUTE:
            self.said = time.monotonic()
            faults = sum(n for name, n in self.done.items() if name.startswith("fault: "))
            print(
                f"... {self.said - self.began:.0f} s: {self.done['jobs']} jobs, {faults} faults, "
                f"{self.done['operations']} operations, {self.done['scenarios']} scenarios, "
                f"{self.done['inputs']} inputs; lost: 0",
                flush=True,
            )

    def table(self, lost: int) -> str:
        """Of all that was counted."""
        rows = [*sorted(self.done.items()), ("lost", lost), ("seconds", round(time.monotonic() - self.began))]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"  {name:{width}} {count:10}" for name, count in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=None, help="the first one; default: by the clock")
    parser.add_argument("--only", choices=("jobs", "scenarios", "inputs"), help="one part alone")
    parser.add_argument("--ranks", type=int, nargs="+", default=(2, 3, 4), help="of jobs: drawn from these")
    args = parser.parse_args()
    seed = args.seed if args.seed is not None else int(time.time()) * 1000
    soak = Soak(args.seconds, seed)
    print(f"soak: {args.seconds:g} s from seed {seed} on", flush=True)
    parts = all_parts(args.only, tuple(args.ranks))
    lost = 0
    try:
        while soak.left > 0:
            for name, part in parts.items():
                share = SLICE.get(name, SLICE_OF_OTHERS)
                for what, count in part(min(share, max(1.0, soak.left / len(parts))), seed):
                    soak.count(what, count)
                    if soak.left <= 0:
                        break
            seed += 1_000_000
    except Failed as error:
        lost = 1
        print(f"{error}\n", flush=True)
    print(soak.table(lost), flush=True)
    print("soak: FAILED" if lost else f"soak: nothing lost (--seed {soak.seed})", flush=True)
    return lost


def all_parts(only: str | None, ranks: tuple[int, ...]) -> dict[str, Part]:
    """One after the other in each round."""
    parts: dict[str, Part] = {}
    if only in (None, "jobs"):
        parts["jobs"] = partial(jobs, ranks=ranks)
    if only != "jobs":
        native = make("here", cxx(), QUICKLY)
        if only in (None, "scenarios"):
            parts["turns"] = partial(played, native, "turns", "scenarios")
            parts["threads"] = partial(played, native, "threads", "scenarios in threads")
        if only in (None, "inputs"):
            parts["inputs"] = partial(inputs, native)
    return parts


def jobs(seconds: float, first: int, ranks: tuple[int, ...]) -> Iterator[tuple[str, int]]:
    """Real processes: tests/faults/drawn.py. At least one."""
    end, seed = time.monotonic() + seconds, first
    while seed == first or time.monotonic() < end:
        with tempfile.TemporaryDirectory(prefix="ringdp-soak-") as folder:
            try:
                yield from try_job(draw(seed, ranks), Path(folder), ranks).items()
            except Lost as error:
                again = f"--only jobs --seconds 1 --seed {seed} --ranks {' '.join(map(str, ranks))}"
                raise Failed(f"{error}\nagain: python tests/soak.py {again}") from error
        seed += 1


def played(native: Path, way: str, what: str, seconds: float, first: int) -> Iterator[tuple[str, int]]:
    """Scenarios of ranks that are threads of one process."""
    said = output(native / "run", "--play", way, str(first), "1000000", str(seconds), limit=seconds)
    (count,) = re.findall(r"^(\d+) scenarios played in \w+, each", said, re.MULTILINE)
    yield what, int(count)


def inputs(native: Path, seconds: float, first: int) -> Iterator[tuple[str, int]]:
    """For what parses."""
    targets = output(native / "fuzz", "--list").split()
    each = str(max(0.2, seconds / len(targets)))
    said = output(native / "fuzz", "--seconds", each, "--first", str(first), limit=seconds)
    yield "inputs", sum(int(count) for count in re.findall(r"(\d+) inputs", said))


def output(*words: Path | str, limit: float = 0) -> str:
    """Raises Failed for any exit code but 0."""
    command = [str(word) for word in words]
    try:
        return subprocess.run(
            command, env=environment(), capture_output=True, text=True, check=True, timeout=limit + GRACE
        ).stdout
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise Failed(f"{error.stdout or ''}\n{error.stderr or ''}\n{error}") from error


if __name__ == "__main__":
    sys.exit(main())
