"""All that docs/promises.md says of how long things take, measured and printed. On a machine that does nothing else:
some fifteen minutes.

    .venv/bin/python tests/faults/times.py [PART ...]

Parts: `host`, each fault on one host; `hosts`, on two, where root can make them; `launchers`, what each of them makes
of a fault (MPICH's as well where there is a .venv-mpich); `recorder`, what a record and the figure of who is slow cost.
"""

import json
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TIMES = ROOT / "build" / "fault-times.jsonl"
MPICH = ROOT / ".venv-mpich" / "bin" / "python"
RUN = "tests/run.py"
LAUNCHERS = "tests/faults/launchers.py"
PARTS = {
    "host": [[sys.executable, RUN, "faults"]],
    "hosts": [[sys.executable, RUN, "cluster", "-k", "test_faults"]],
    "launchers": [[python, LAUNCHERS] for python in (sys.executable, str(MPICH)) if Path(python).exists()],
    "recorder": [[sys.executable, "-m", "ringdp", "run", "-n", "2", "tests/perf/flight.py"]],
}


def lines() -> list[str]:
    return TIMES.read_text().splitlines() if TIMES.exists() else []


def print_table(noted: list[str]) -> None:
    """Of the jobs that have noted their times: [row of the table of faults, name, ranks, noticed, over]."""
    found = defaultdict(list)
    for row, name, ranks, noticed, over in map(json.loads, noted):
        found[row, name, ranks].append((noticed, over))
    print("\n| row | fault | ranks | jobs | noticed, s | over, s |\n|---|---|---|---|---|---|")
    for (row, name, ranks), times in sorted(found.items()):
        medians = " | ".join(f"{statistics.median(column):.2f}" for column in zip(*times, strict=True))
        print(f"| {row} | {name} | {ranks} | {len(times)} | {medians} |", flush=True)


def main() -> int:
    failed = 0
    for part in sys.argv[1:] or PARTS:
        print(f"\n== {part}", flush=True)
        before = len(lines())
        failed += sum(
            subprocess.run(command, cwd=ROOT, check=False).returncode != 0 for command in PARTS[part]
        )
        if noted := lines()[before:]:
            print_table(noted)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
