"""Asks the GPUs of this machine what only a GPU can show, and writes a report: `make gpu-check`.

Ten minutes at most. The exit code is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from driver.phases import ROOT

from gpu_check import report, supervise
from gpu_check.parts import PARTS
from gpu_check.results import FAILED

ALL_PARTS = 590.0  # seconds
REPORTS, OTHER_REPORTS = ROOT / "docs" / "gpu-reports", ROOT / "build" / "gpu-reports"
LOGS = ROOT / "build" / "gpu-check"
EXAMPLES = """examples:
  make gpu-check                            everything; the report goes to docs/gpu-reports
  make gpu-check ARGS=--quick               shorter; its report cannot count, and goes to build/gpu-reports
  make gpu-check ARGS="--only kernels"      one part (repeatable)
  make gpu-check ARGS="--report /tmp/gpu"   the report goes there

parts:
""" + "\n".join(f"  {name:12} {part.asks}" for name, part in PARTS.items())


def main() -> int:
    options = parse_arguments()
    if options.stand_ins:
        import standin

        os.environ.setdefault("RINGDP_STANDIN_RANK_DEVICES", "")  # ranks find the same GPUs, as real ones do
        standin.use(devices=options.stand_ins)
    LOGS.mkdir(parents=True, exist_ok=True)
    for old in LOGS.iterdir():
        old.unlink()
    began, date = time.monotonic(), datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%MZ")
    outcomes: list[supervise.Outcome] = []
    for name in chosen(options.only):
        print(f"-- {name}: {PARTS[name].asks}", flush=True)
        left = ALL_PARTS - (time.monotonic() - began)
        limit = min(options.limit or PARTS[name].limit, left)
        outcomes.append(supervise.run_part(name, PARTS[name], limit, options.quick, LOGS))
        tell(outcomes[-1])
        if no_gpu(outcomes[0]):
            print(f"there is no GPU to ask: {no_gpu(outcomes[0])}", file=sys.stderr)
            return 2
    made = report.make(outcomes, date, options.quick, time.monotonic() - began, bool(options.stand_ins))
    is_whole = not (options.quick or options.only or options.stand_ins)
    return finish(made, outcomes, options.report or (REPORTS if is_whole else OTHER_REPORTS))


def chosen(only: list[str] | None) -> list[str]:
    """The machine first, whatever was asked for: a report says on what it was."""
    return [name for name in PARTS if name == "machine" or not only or name in only]


def no_gpu(machine: supervise.Outcome) -> str:
    """Why there is none; empty if there is one."""
    return next((r.why for r in machine.results if r.name == "driver" and r.state == FAILED), "")


def tell(outcome: supervise.Outcome) -> None:
    failed = [f"   failed: {r.name}: {r.why[:300]}" for r in outcome.results if r.state == FAILED]
    print("\n".join([*failed[:10], f"   {outcome.state} in {outcome.seconds:.1f} s"]), flush=True)


def finish(made: dict[str, object], outcomes: list[supervise.Outcome], folder: Path) -> int:
    page = report.write(made, folder)
    print(f"\n{report.table(outcomes)}\n\nreport: {page}, and .json beside it; logs: {LOGS}")
    if made["green"]:
        print("green: commit both files, and docs/gpu-reports/README.md says what to change with them")
    else:
        print("not green: " + "; ".join(map(str, made["not green because"])))
    return 1 if any(o.state == FAILED for o in outcomes) else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make gpu-check",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--quick", action="store_true", help="fewer sizes and tests")
    parser.add_argument("--only", action="append", choices=list(PARTS), metavar="PART", help="only this part")
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="where the report goes")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="of each part, in place of its own")
    parser.add_argument(
        "--stand-ins",
        type=int,
        default=0,
        metavar="GPUS",
        help="over the stand-ins of tests/standin, to test this program; such a report never counts",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
