"""Runs the tests on the installed ringdp: `python tests/run.py [phase ...] [-k expression] [-n ranks] [--all]`.

Without a phase, all of them run, in the order of the table in driver/phases.py. Every command has a hard limit of time;
a process or a file in /dev/shm that it leaves behind is a failure. The last line is 'N passed, N failed[, N skipped]'.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH, where set, leaves it out

from driver.environ import MARK, environment
from driver.leftovers import end_processes, new_shared_files, shared_files
from driver.limit import run_limited
from driver.phases import PHASES, ROOT, Command, Selection
from driver.results import Results, read_results

NO_TESTS = 5  # pytest's exit code when nothing was selected
LOGS = ROOT / "build" / "test-logs"


def main() -> int:
    args = parse_arguments()
    selection = Selection(args.k, tuple(args.n or ()), args.all)
    end = time.monotonic() + (args.budget or (9000 if args.all else 4500))
    shutil.rmtree(LOGS, ignore_errors=True)
    LOGS.mkdir(parents=True)
    rows: list[tuple[str, Results, float]] = []
    for phase in args.phases or PHASES:
        for command in PHASES[phase](selection):
            print(f"-- {command.label}", flush=True)
            began = time.monotonic()
            results = run_command(command, min(command.limit, end - began), may_be_empty=bool(args.k))
            rows.append((command.label, results, time.monotonic() - began))
            print(f"   {results} in {rows[-1][2]:.1f} s", flush=True)
            for reason, count in results.reasons.items():
                print(f"   {count} skipped: {reason}", flush=True)
    return summarize(rows)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("phases", nargs="*", metavar="phase", help=", ".join(PHASES))
    parser.add_argument("-k", default="", metavar="EXPRESSION", help="only tests that match, as pytest's -k")
    parser.add_argument(
        "-n", type=int, action="append", metavar="RANKS", help="only this number of ranks (repeatable)"
    )
    parser.add_argument("--all", action="store_true", help="the tests marked slow too")
    parser.add_argument(
        "--budget", type=float, metavar="SECONDS", help="for everything (4500; with --all 9000)"
    )
    args = parser.parse_args()
    unknown = [p for p in args.phases if p not in PHASES]
    if unknown:
        parser.error(f"no such phase: {', '.join(unknown)} (there are: {', '.join(PHASES)})")
    return args


def run_command(command: Command, limit: float, may_be_empty: bool) -> Results:
    if limit <= 0:
        results = Results()
        results.fail(f"{command.label} did not run: the time for all tests is used up")
        return results
    env, files = environment() | command.variables, shared_files()
    log = LOGS / f"{command.label.replace(' ', '-')}.log"
    with tempfile.TemporaryDirectory(prefix="ringdp-tests-") as folder:
        outcome = run_limited(with_results(command, folder), env, command.cwd, log, limit)
        left = end_processes(env[MARK]) + new_shared_files(files)
        results = count(command, outcome.code, Path(folder), may_be_empty)
    if outcome.code is None:
        results.fail(f"{command.label} was ended at its limit of {limit:.0f} s")
    for line in left:
        results.fail(f"{command.label}: {line}")
    if results.failed:
        show(log, results)
    return results


def with_results(command: Command, folder: str) -> list[str]:
    if not command.ranks:
        return command.words
    # pytest itself puts the variable's value in: each rank writes a file of its own.
    rank = f"${{{command.rank_variable}}}" if command.rank_variable else "0"
    return [*command.words, f"--junitxml={folder}/rank-{rank}.xml"]


def count(command: Command, code: int | None, folder: Path, may_be_empty: bool) -> Results:
    if command.ranks and code == NO_TESTS:
        results = Results()
        if not may_be_empty:
            results.fail(f"{command.label}: no test was found")
        return results
    results = read_results(folder, command.ranks)
    if not command.ranks and code == 0:
        results.passed = 1
    if code and not results.failed:
        results.fail(f"{command.label}: exit code {code}")
    return results


def show(log: Path, results: Results) -> None:
    lines = log.read_text(errors="replace").splitlines()
    shown = lines if len(lines) <= 400 else [lines[0], f"... (the whole is in {log})", *lines[-400:]]
    print("\n".join(["", *shown, "", *results.problems, ""]), flush=True)


def summarize(rows: list[tuple[str, Results, float]]) -> int:
    total = Results()
    print(f"\n{'':20}{'passed':>8}{'failed':>8}{'skipped':>8}{'seconds':>9}")
    for label, results, seconds in rows:
        total.add(results)
        print(f"{label:20}{results.passed:8}{results.failed:8}{results.skipped:8}{seconds:9.1f}")
    print(f"{'':20}{total.passed:8}{total.failed:8}{total.skipped:8}{sum(r[2] for r in rows):9.1f}")
    for problem in total.problems:
        print(problem)
    print(f"\n{total}", flush=True)
    return 1 if total.failed or not total.passed else 0


if __name__ == "__main__":
    sys.exit(main())
