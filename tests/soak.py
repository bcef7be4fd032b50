"""Goes on for a long time with what differs each time: `python tests/soak.py --seconds 3600 [--first N]`.

Scenarios of ranks in this process (tests/native/play.h) and inputs for what parses (tests/fuzz), by turns. What is
counted is what came out as it must; the first thing that did not ends the soak, and says how to do it again. The last
line is a summary.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH, where set, leaves it out

from driver.environ import environment
from native.building import QUICKLY, cxx, make

SLICE = 20.0  # seconds of each part before the next one
GRACE = 300.0  # seconds that a part may take to end

# What a part is given: seconds, and the number of its first seed. What it gives: how many of which it has done.
Part = Callable[[float, int], Iterator[tuple[str, int]]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--first", type=int, default=None, help="of all seeds; default: by the clock")
    args = parser.parse_args()
    first = args.first if args.first is not None else int(time.time()) * 1000
    parts = all_parts(make("here", cxx(), QUICKLY))
    done: Counter[str] = Counter()
    began, end, number = time.monotonic(), time.monotonic() + args.seconds, first
    while (left := end - time.monotonic()) > 0:
        for part in parts:
            try:
                for what, count in part(min(SLICE, max(1.0, left / len(parts))), number):
                    done[what] += count
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                print(error.stdout or "", error.stderr or "", f"{error}\n", sep="\n", flush=True)
                print(f"soak: FAILED after {summary(done, began)} (--first {first})", flush=True)
                return 1
        number += 1_000_000
        print(f"... {summary(done, began)}", flush=True)
    print(f"soak: nothing lost in {summary(done, began)} (--first {first})", flush=True)
    return 0


def summary(done: Counter[str], began: float) -> str:
    counts = ", ".join(f"{count} {what}" for what, count in sorted(done.items()))
    return f"{time.monotonic() - began:.0f} s: {counts or 'nothing done'}"


def all_parts(native: Path) -> list[Part]:
    """One after the other in each round."""

    def in_turns(seconds: float, first: int) -> Iterator[tuple[str, int]]:
        yield "scenarios", played(native, "turns", seconds, first)

    def in_threads(seconds: float, first: int) -> Iterator[tuple[str, int]]:
        yield "scenarios in threads", played(native, "threads", seconds, first)

    def inputs(seconds: float, first: int) -> Iterator[tuple[str, int]]:
        targets = output(native / "fuzz", "--list").split()
        each = str(max(0.2, seconds / len(targets)))
        said = output(native / "fuzz", "--seconds", each, "--first", str(first), limit=seconds)
        yield "inputs", sum(int(count) for count in re.findall(r"(\d+) inputs", said))

    return [in_turns, in_threads, inputs]


def played(native: Path, way: str, seconds: float, first: int) -> int:
    said = output(native / "run", "--play", way, str(first), "1000000", str(seconds), limit=seconds)
    (count,) = re.findall(r"^(\d+) scenarios played in \w+, each", said, re.MULTILINE)
    return int(count)


def output(*words: Path | str, limit: float = 0) -> str:
    """Raises CalledProcessError for any exit code but 0."""
    command = [str(word) for word in words]
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, check=True, timeout=limit + GRACE
    ).stdout


if __name__ == "__main__":
    sys.exit(main())
