"""What each framework adds to a call, on two ranks, and what importing takes: `python tests/perf/frameworks.py`.

By a Python that has the frameworks (`make bench-frameworks`). Writes the section of figures of docs/frameworks.md,
unless --print says to show it alone; the exit code is 1 if a result was wrong or importing took longer than it may.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from driver.environ import environment, mpirun
from driver.limit import run_limited
from driver.phases import ROOT
from perf import machine
from perf.tables import NOTHING, figure, table

PAGE = ROOT / "docs" / "frameworks.md"
LOGS = ROOT / "build" / "perf"
BEGIN, END = "<!-- written by tests/perf/frameworks.py -->", "<!-- end of figures -->"
# What is needed for a rank's number, and what for a first array: modules come when something of them is asked for.
IMPORTS = "import ringdp", "import ringdp; ringdp.allreduce"
IMPORT_LIMIT = 0.3  # seconds
BUSY = 0.5  # processes beside ours above which figures are doubtful
SIZES = {4: "4 B, µs", 64 << 20: "64 MiB, ms"}


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--print", action="store_true", help="write no page")
    p.add_argument("--quick", action="store_true", help="shorter rounds")
    options = p.parse_args()
    load = machine.load()
    if load > BUSY:
        print(f"!! the machine is not idle: load {load:.1f}; figures will be doubtful", flush=True)
    imports = {statement: import_seconds(statement) for statement in IMPORTS}
    measured = measure(options.quick)
    text = section(measured, imports, machine.about(measured["mpi"], load))
    print(text, flush=True)
    if not options.print:
        head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    wrong = [point for point in measured["points"] if point["wrong"]]
    for point in wrong:
        print(f"!! {point['entry']}: {point['wrong']} wrong elements of {point['bytes']} bytes", flush=True)
    return 1 if wrong or max(imports.values()) > IMPORT_LIMIT else 0


def measure(quick: bool) -> dict[str, Any]:
    LOGS.mkdir(parents=True, exist_ok=True)
    out, log = LOGS / "frameworks.json", LOGS / "frameworks.log"
    out.unlink(missing_ok=True)
    shorter = ["--rounds", "3", "--seconds", "0.5"] if quick else []
    script = str(Path(__file__).with_name("job_frameworks.py"))
    words = [mpirun(), "-n", "2", sys.executable, script, "--out", str(out), *shorter]
    outcome = run_limited(words, environment(), ROOT, log, 400)
    if outcome.code != 0 or not out.exists():
        sys.exit(f"the job ended with {outcome.code}; see {log.relative_to(ROOT)}")
    return dict(json.loads(out.read_text()))


def import_seconds(statement: str, repeats: int = 9) -> float:
    """What the statement adds to the start of Python: the median of processes that take turns with empty ones."""

    def seconds(program: str) -> float:
        began = perf_counter()
        subprocess.run([sys.executable, "-c", program], env=environment(), check=True, cwd=ROOT / "tests")
        return perf_counter() - began

    seconds(statement)  # files that were never read
    return median(seconds(statement) - seconds("pass") for _ in range(repeats))


def section(measured: dict[str, Any], imports: dict[str, float], about: dict[str, str]) -> str:
    points = {(point["entry"], point["bytes"]): median(point["us"]) for point in measured["points"]}
    rows = []
    for entry in dict.fromkeys(name for name, _ in points):
        cells = []
        for size in SIZES:
            us, numpy = points.get((entry, size)), points.get(("NumPy", size))
            shown = figure(us if size == 4 else us / 1e3) if us else NOTHING
            cells += [shown, f"{figure(us / numpy)} ×" if us and numpy else NOTHING]
        rows.append([entry, *cells])
    heading = ["", *(word for size in SIZES.values() for word in (size, "of NumPy's"))]
    lines = [table(heading, rows)]
    for name, reason in measured["left_out"].items():
        lines.append(f"Left out: {name} ({reason}).")
    each = ", ".join(f"`{statement}` {seconds:.2f} s" for statement, seconds in imports.items())
    verdict = "met" if max(imports.values()) <= IMPORT_LIMIT else "**missed**"
    lines.append(f"{each} (with NumPy, which it imports then); at most {IMPORT_LIMIT} s: {verdict}.")
    busy = f"busy with others: {about['busy with others']}"
    lines.append(f"{about['date']}, {about['processor']}, {about['MPI']}; {busy}.")
    return "\n\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
