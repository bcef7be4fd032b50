"""What each launcher makes of a job of which a rank fails: measured, for the table in docs/promises.md.

    .venv/bin/python tests/faults/launchers.py [LAUNCHER ...]          Open MPI's, and srun where Slurm is installed
    .venv-mpich/bin/python tests/faults/launchers.py [LAUNCHER ...]    MPICH's, and srun

(`python3 tests/environment.py --mpi mpich demo` makes .venv-mpich.) Three ranks on this host, RINGDP_TIMEOUT=2; rank 1
is killed in an all-reduce, is stopped in one or raises an exception, the launcher gets SIGTERM, or Slurm ends the job.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster.slurm import INTERFACE, NoSlurm, started
from driver.environ import BIN, MARK, environment
from driver.leftovers import end_processes, new_shared_files, shared_files

from ringdp import _build
from ringdp.cli import doctor

JOB = Path(__file__).with_name("launcher_job.py")
RANKS, RANK, LIMIT = 3, 1, 60
SCANCEL = "scancel"
FAULTS = {
    "killed": ("op=10,stage=REDUCE,do=kill", "none"),
    "stopped": ("op=10,stage=REDUCE,do=stop", "none"),
    "exception": ("", "raise"),
    "SIGTERM to the launcher": ("", "term"),
    SCANCEL: ("", "term"),
}
FAMILY = _build.MPI_FAMILY
LAUNCHERS = {
    "ringdp run": [sys.executable, "-m", "ringdp", "run", "-n", str(RANKS)],
    "mpirun" if FAMILY == "openmpi" else "mpiexec": [
        str(BIN / ("mpirun" if FAMILY == "openmpi" else "mpiexec")), "-n", str(RANKS), sys.executable,
    ],
    "srun": ["srun", f"--mpi={INTERFACE[FAMILY]}", "-n", str(RANKS), "--overcommit", "--time=3", sys.executable],
    "srun --kill-on-bad-exit": [
        "srun", "--kill-on-bad-exit=1", f"--mpi={INTERFACE[FAMILY]}", "-n", str(RANKS), "--overcommit", "--time=3",
        sys.executable,
    ],
}  # fmt: skip


@dataclass
class Seen:
    """Of one job."""

    code: str
    seconds: float  # from the fault to the end
    report: str
    line: str  # where the culprit's line is
    left: list[str]
    output: str


def seen(launcher: list[str], fault: str, slurm: dict[str, str]) -> Seen:
    inject, do = FAULTS[fault]
    before = shared_files()
    with tempfile.TemporaryDirectory(prefix="launchers-") as name:
        folder = Path(name)
        env = environment() | slurm | {"RINGDP_TIMEOUT": "2", "RINGDP_REPORT_AFTER": "1"}
        env[MARK] = uuid.uuid4().hex  # of the job's processes, and not of Slurm's
        env["PATH"] = f"{BIN}{os.pathsep}{slurm.get('PATH', os.environ['PATH'])}"
        if inject:
            env["RINGDP_INJECT"] = f"rank={RANK},{inject}"
        with (folder / "log").open("wb") as log:
            job = subprocess.Popen(
                [*launcher, str(JOB), do, str(RANK)], cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log,
            )  # fmt: skip
        asked = ask_to_stop(job, folder, fault, env) if do == "term" else 0.0
        try:
            code = str(job.wait(LIMIT))
        except subprocess.TimeoutExpired:
            code = f"none: it goes on after {LIMIT} s"
        ended = time.monotonic()
        if job.poll() is None:
            job.kill()
            job.wait()
        began = asked or float(step_of(folder)[1])
        left = [*end_processes(env[MARK]), *new_shared_files(before)]
        output = (folder / "log").read_text(errors="replace").replace("\0", "")
        return Seen(code, ended - began, report_in(folder), line_in(output, fault), left, output)


def step_of(folder: Path) -> list[str]:
    at = folder / "at"
    return at.read_text().split() if at.exists() else ["-1", str(time.monotonic())]


def ask_to_stop(job: "subprocess.Popen[bytes]", folder: Path, fault: str, env: dict[str, str]) -> float:
    end = time.monotonic() + LIMIT
    while int(step_of(folder)[0]) < 3 and time.monotonic() < end and job.poll() is None:
        time.sleep(0.02)
    asked = time.monotonic()
    if fault == SCANCEL:
        subprocess.run(["scancel", "--user=root"], env=env, check=True)  # of this Slurm there is one job
    else:
        job.send_signal(signal.SIGTERM)
    return asked


def report_in(folder: Path) -> str:
    """Whose recorders are there, and whether they name the culprit."""
    found = list(folder.glob("ringdp-report-*"))
    if not found:
        return "none"
    flights, bad = doctor.flights_in(found[0])
    names = doctor.verdict_of(flights).startswith(f"rank {RANK} ")
    ranks = ", ".join(str(one.rank) for one in flights)
    return f"of rank {ranks}" + ("" if names else "; does not name the culprit") + ("; torn" if bad else "")


def line_in(output: str, fault: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    if FAULTS[fault][1] == "term":
        saved = sum("has saved step" in line for line in lines)
        return f"{saved} of {RANKS} ranks have saved"
    named = [n for n, line in enumerate(lines) if f"rank {RANK} (" in line or f"rank {RANK} ended by" in line]
    if not named:
        return "none"
    after = len(lines) - 1 - named[-1]
    return "last" if after == 0 else f"{after} lines after it"


@contextlib.contextmanager
def slurm_for(names: list[str]) -> Iterator[dict[str, str] | None]:
    """What srun needs in its environment; None where there is no Slurm."""
    if not any(name.startswith("srun") for name in names):
        yield None
        return
    try:
        with started() as env:
            yield {key: value for key, value in env.items() if os.environ.get(key) != value}
    except NoSlurm as reason:
        print(f"srun: {reason}", flush=True)
        yield None


def main() -> None:
    names = sys.argv[1:] or list(LAUNCHERS)
    print("| launcher | fault | exit code | over after, s | report | culprit's line | left over |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with slurm_for(names) as slurm:
        for name in names:
            if name.startswith("srun") and slurm is None:
                continue
            for fault in FAULTS:
                if fault == SCANCEL and not name.startswith("srun"):
                    continue
                s = seen(LAUNCHERS[name], fault, slurm or {})
                left = f"{len(s.left)}: {s.left[0][:60]}" if s.left else "nothing"
                print(f"| {name} ({FAMILY}) | {fault} | {s.code} | {s.seconds:.1f} | {s.report} | {s.line} | {left} |",
                      flush=True)  # fmt: skip
                with open("build/launchers.log", "a") as log:
                    print(f"=== {name} ({FAMILY}), {fault}: {s}\n{s.output}", file=log)


main()
