"""Measures ringdp beside its peers and the physical limits: `python tests/perf/run.py [scenario ...] [--quick]`.

Without a scenario, all of them. Results go to tests/perf/results/FAMILY.json, baseline.json, docs/performance.md and
docs/pictures. `--check` measures shortly instead, writes none of these, and says what has moved since baseline.json;
its exit code is 1 if something got worse beyond noise. `--document` measures nothing and writes the page again.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from driver.phases import ROOT, mpi_family
from perf import baseline, document, floor, jobs, machine, notes, pictures
from perf.results import Results
from perf.targets import TARGETS

PAGE = ROOT / "docs" / "performance.md"
BUSY = 0.5  # processes beside ours above which figures are doubtful


def main() -> int:
    options = parse_arguments()
    family = mpi_family()
    if options.document:
        write_page()
        return 0
    load = machine.load()
    if load > BUSY:
        print(f"!! the machine is not idle: load {load:.1f}; figures will be doubtful", flush=True)
    before = baseline.load(family)
    if options.check and not before:
        print(f"perf-check: baseline.json knows nothing of {family}: run `make bench` first", file=sys.stderr)
        return 2
    scenarios = options.scenarios or list(jobs.SCENARIOS)
    measured, failed = measure(scenarios, options.quick or options.check)
    if options.check:
        return max(failed, compare(before, Results({"jobs": measured})))
    keep(family, measured, load)
    write_page()
    show_targets(family, scenarios)
    return failed


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("scenarios", nargs="*", metavar="scenario", help=", ".join(jobs.SCENARIOS))
    parser.add_argument("--quick", action="store_true", help="fewer sizes, shorter rounds")
    parser.add_argument("--check", action="store_true", help="compare a quick run with baseline.json")
    parser.add_argument(
        "--document", action="store_true", help="only write the page from the results there are"
    )
    options = parser.parse_args()
    unknown = [name for name in options.scenarios if name not in jobs.SCENARIOS]
    if unknown:
        parser.error(f"no such scenario: {', '.join(unknown)} (there are: {', '.join(jobs.SCENARIOS)})")
    return options


def measure(scenarios: list[str], quick: bool) -> tuple[dict[str, jobs.Result], int]:
    """(results by the job's name, 1 if a job failed or an element was wrong)."""
    measured, code, began = {}, 0, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ringdp-perf-") as folder:
        library = floor.build(Path(folder))
        for scenario in scenarios:
            for job in jobs.SCENARIOS[scenario]:
                print(f"-- {job.name}", flush=True)
                result = measured[job.name] = jobs.run(job, quick, library)
                code |= report(result)
    print(f"   {time.monotonic() - began:.0f} s in all", flush=True)
    return measured, code


def report(result: jobs.Result) -> int:
    """Says how a job went; 1 if it failed or computed wrong sums."""
    wrong = [f"{p['entry']}: {p['wrong']} wrong elements" for p in result.get("points", ()) if p["wrong"]]
    for name, why in result.get("left_out", {}).items():
        print(f"   without {name}: {why}", flush=True)
    for line in wrong:
        print(f"   !! {line}", flush=True)
    ends = [f"{key}: {result[key]}" for key in ("failed", "incomplete", "skipped") if key in result]
    print("   " + (ends[0] if ends else f"{result['seconds']:.0f} s"), flush=True)
    return 1 if wrong or "failed" in result or "incomplete" in result else 0


def keep(family: str, measured: dict[str, jobs.Result], load: float) -> None:
    """Results and ratios beside those of earlier runs, of scenarios that were not repeated now."""
    results = Results.load(family) or Results({})
    results.jobs.update(measured)
    library = next((job["mpi"] for job in results.jobs.values() if "mpi" in job), family)
    results.about = machine.about(library, load)
    results.save(family)
    baseline.save(family, baseline.kept(baseline.ratios(results)))


def write_page() -> None:
    families = {f: found for f in document.NAMES if (found := Results.load(f))}
    if not families:
        sys.exit("there are no results yet: run `make bench`")
    folder = PAGE.parent / "pictures"
    pictures.draw_all(families, folder)
    text = document.document(
        families, notes.parse(notes.FILE.read_text()), [p.name for p in folder.glob("*.svg")]
    )
    PAGE.write_text(text)
    print(f"-- {PAGE.relative_to(ROOT)} is written", flush=True)


def show_targets(family: str, scenarios: list[str]) -> None:
    results = Results.load(family)
    assert results
    for target in TARGETS:
        if target.scenario not in scenarios:
            continue
        print(
            f"   {target.what} ({target.text}): {document.verdict(target, results).replace('*', '')}",
            flush=True,
        )


def compare(before: baseline.Kept, results: Results) -> int:
    now = baseline.kept(baseline.ratios(results))
    both = before.keys() & now.keys()
    found = baseline.moves(before, now)
    for move in found:
        print(move, flush=True)
    worse = sum(move.worse for move in found)
    print(
        f"{len(both)} ratios compared: {worse} worse, {len(found) - worse} better, the others within noise",
        flush=True,
    )
    return 1 if worse or not both else 0


if __name__ == "__main__":
    sys.exit(main())
