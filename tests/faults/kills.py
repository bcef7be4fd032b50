"""Kills ranks of trainings at random moments, again and again, and compares what comes out with an undisturbed one:

    python tests/faults/kills.py --kills 50 --ranks 4

Each job is a `ringdp run --elastic` of elastic_digits.py, of which all ranks but one are killed one after the other, by
SIGKILL or, of ten one, by SIGSTOP. With `--spares S` so many ranks are killed, and each has another in its place; the
number of ranks stays. The last line is a summary; the exit code is 0 if each kill was recovered from, no sample was
lost or taken twice, and the accuracy was that of the undisturbed training.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # PYTHONSAFEPATH, where set, leaves it out

from driver import leftovers
from driver.environ import MARK, environment

from ringdp.cli.elastic import LOST, recoveries

PROGRAM = Path(__file__).resolve().parent / "elastic_digits.py"
START, LIMIT = 300.0, 500.0  # seconds until all ranks train; for a whole job
TIMEOUT = 20  # RINGDP_TIMEOUT: until a stopped rank is given up
WORSE = 0.02  # of accuracy: a training of other batches may be so much worse, or better


@dataclass
class Run:
    """One job, while it runs."""

    folder: Path
    process: subprocess.Popen[str]
    env: dict[str, str]
    killed: list[str] = field(default_factory=list)

    def alive(self, size: int, since: float = 0.0) -> list[tuple[int, int]]:
        """(pid, rank) of all ranks, when all of so many have begun, or gone on, since that time; else none."""
        found = []
        for path in self.folder.glob("alive-*"):
            if not path.suffix:
                one = json.loads(path.read_text())
                if one["size"] == size and one["time"] > since:
                    found.append((int(path.name.partition("-")[2]), one["rank"]))
        return sorted(found) if len(found) == size else []

    def wait_for(self, size: int, since: float = 0.0) -> list[tuple[int, int]]:
        until = time.monotonic() + START
        while not (found := self.alive(size, since)):
            if self.process.poll() is not None or time.monotonic() > until:
                return []
            time.sleep(0.01)
        return found


def start(folder: Path, ranks: int, epochs: int, pause: float, spares: int = 0) -> Run:
    env = environment() | {"RINGDP_TIMEOUT": str(TIMEOUT)}
    words = [sys.executable, "-m", "ringdp", "run", "--elastic", "-n", str(ranks)]
    words += ["--spares", str(spares), str(PROGRAM), "--epochs", str(epochs), "--pause", str(pause)]
    process = subprocess.Popen(
        words, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=(folder / "output").open("w"),
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    return Run(folder, process, env)


def end(run: Run) -> int | None:
    """The exit code; None if it had to be ended."""
    try:
        return run.process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        leftovers.end_processes(run.env[MARK])
        run.process.wait()
        return None


def kill_some(run: Run, ranks: int, most: int, chance: random.Random, spares: int = 0) -> None:
    """At most so many of them, each at some moment of the training that the others have gone on with: as many as there
    are spares, or all but one where there are none."""
    sizes = [ranks] * min(most, spares) or list(range(ranks, max(1, ranks - most), -1))
    last = 0.0
    for size in sizes:
        found = run.wait_for(size, last)
        if not found:
            return
        time.sleep(chance.uniform(0.0, 0.7))
        pid, rank = chance.choice(found)
        stops = chance.random() < 0.1
        last = time.time()
        try:
            os.kill(pid, signal.SIGSTOP if stops else signal.SIGKILL)
        except ProcessLookupError:
            return  # the training was over
        run.killed.append(f"{'stopped' if stops else 'killed'} rank {rank} of {size}")


def judge(
    run: Run, code: int | None, ranks: int, accuracy: float | None, spares: int = 0
) -> tuple[list[str], dict]:
    """What is wrong with a job that has ended, and its result."""
    wrong = []
    reports = list(run.folder.glob("ringdp-report-*"))
    found = [one for folder in reports for one in recoveries(folder)]
    lost = sum(len(one.get("lost", [])) for one in found)
    if code != (LOST if run.killed else 0):
        wrong.append(f"exit code {code}")
    if lost != len(run.killed):
        wrong.append(f"{lost} of {len(run.killed)} lost ranks were recovered from")
    path = run.folder / "result.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    if not result:
        return [*wrong, "no result"], {}
    if result["size"] != ranks - max(0, len(run.killed) - spares):
        wrong.append(f"{result['size']} ranks at the end")
    if not result["same"]:
        wrong.append("the ranks' parameters differ")
    for number, (missing, twice, may_be) in enumerate(result["passes"]):
        if missing or twice > may_be:
            wrong.append(
                f"in pass {number} {missing} samples were lost, {twice} taken twice (at most {may_be})"
            )
    if accuracy is not None and abs(result["accuracy"] - accuracy) > WORSE:
        wrong.append(f"accuracy {result['accuracy']:.3f} instead of {accuracy:.3f}")
    return wrong, result | {"recoveries": sum(bool(one.get("lost")) for one in found)}


def files_left(launcher: int) -> list[str]:
    """A line about each recorder in shared memory of the job that this `ringdp run` has started."""
    return [f"file left over: {path}" for path in leftovers.SHM.glob(f"ringdp.*-{launcher}-*")]


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--kills", type=int, default=50)
    p.add_argument("--ranks", type=int, default=4)
    p.add_argument("--spares", type=int, default=0, help="processes that take the places of lost ranks")
    p.add_argument("--epochs", type=int, default=15)
    p.add_argument("--pause", type=float, default=0.01, help="seconds more for each step")
    p.add_argument("--seed", type=int, default=None, help="of what is killed and when; default: by the clock")
    args = p.parse_args()
    seed = args.seed if args.seed is not None else int(time.time())
    chance, began = random.Random(seed), time.monotonic()
    kills = recovered = jobs = 0
    accuracy: float | None = None
    accuracies: list[float] = []
    while accuracy is None or kills < args.kills:
        with tempfile.TemporaryDirectory(prefix="kills-") as name:
            run = start(Path(name), args.ranks, args.epochs, args.pause, args.spares)
            if accuracy is not None:
                kill_some(run, args.ranks, args.kills - kills, chance, args.spares)
            code = end(run)
            wrong, result = judge(run, code, args.ranks, accuracy, args.spares)
            wrong += leftovers.end_processes(run.env[MARK]) + files_left(run.process.pid)
            if wrong:
                print((run.folder / "output").read_text(errors="replace"))
                print(
                    f"{'; '.join(run.killed) or 'undisturbed'}: {'; '.join(wrong)}\nkills: FAILED (--seed {seed})"
                )
                return 1
        if accuracy is None:
            accuracy = result["accuracy"]
            print(f"undisturbed, {args.ranks} ranks: accuracy {accuracy:.3f}", flush=True)
            continue
        jobs, kills, recovered = jobs + 1, kills + len(run.killed), recovered + result["recoveries"]
        accuracies.append(result["accuracy"])
        print(f"{'; '.join(run.killed) or 'over too soon'}: accuracy {result['accuracy']:.3f}", flush=True)
    print(
        f"kills: {kills} ranks killed or stopped in {jobs} jobs, {recovered} recoveries, no sample lost; "
        f"{f'{args.ranks} ranks at the end of each; ' if args.spares else ''}accuracy "
        f"{min(accuracies, default=0):.3f} to {max(accuracies, default=0):.3f}, undisturbed {accuracy:.3f}; "
        f"{time.monotonic() - began:.0f} s (--seed {seed})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
