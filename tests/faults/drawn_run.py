"""Runs a drawn job (drawn.py) under `ringdp run`, does to it from outside what its ranks cannot, and judges it.

The oracle: each sum is exact, or there is an error on all; the culprit that is named is the right one; after restarts
nothing is lost; nothing is left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from driver import leftovers
from driver.environ import MARK, environment
from faults.drawn import Draw, Fault, digests

from ringdp import processes
from ringdp.cli import doctor

HERE = Path(__file__).parent
SECONDS = 90.0  # for an attempt at the most: some seconds where nothing else runs
START = 45  # RINGDP_START_TIMEOUT


class Lost(Exception):
    """Something was not as it must be."""


class Told:
    """What the ranks have written so far."""

    def __init__(self, folder: Path, ranks: int) -> None:
        self.lines: dict[int, list[dict[str, Any]]] = {}
        for rank in range(ranks):
            path = folder / f"said-{rank}"
            text = path.read_text() if path.exists() else ""
            self.lines[rank] = [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def of(self, what: str, attempt: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        """By rank."""
        for rank, lines in self.lines.items():
            for line in lines:
                if line["what"] == what and attempt in (None, line["attempt"]):
                    yield rank, line

    def pid(self, rank: int, attempt: int) -> int | None:
        return next((line["pid"] for r, line in self.of("begin", attempt) if r == rank), None)

    @property
    def attempts(self) -> int:
        """How many there were, as far as the ranks know."""
        return 1 + max((line["attempt"] for lines in self.lines.values() for line in lines), default=0)


class DrawnJob:
    """One job, from its start to the judgement."""

    def __init__(self, draw: Draw, folder: Path) -> None:
        self.draw, self.folder = draw, folder
        self.output = ""
        self.code: int | None = None
        self._env = {**environment(), **draw.environ, MARK: uuid.uuid4().hex}
        self._env |= {"RINGDP_TIMEOUT": f"{draw.timeout:g}", "RINGDP_START_TIMEOUT": str(START)}
        self._continued: set[int] = set()  # attempts
        self._asked = False
        self._pid = 0

    # --- running ---

    def run(self, ranks: tuple[int, ...]) -> None:
        """To its end, within its time."""
        options = ["--restarts", str(len(self.draw.faults) + 2)] if self.draw.restarts else []
        words = [sys.executable, "-m", "ringdp", "run", "-n", str(self.draw.ranks), *options]
        words += [str(HERE / "drawn_job.py"), str(self.draw.seed), *map(str, ranks)]
        log = self.folder / "output"
        end = time.monotonic() + SECONDS * (1 + len(self.draw.faults) * self.draw.restarts)
        with log.open("wb") as out:
            process = subprocess.Popen(
                words, cwd=self.folder, env=self._env, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip
            self._pid = process.pid
            try:
                while process.poll() is None and time.monotonic() < end:
                    self._from_outside(process)
                    time.sleep(0.02)
                self.code = process.poll()
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait()
        self.output = log.read_text(errors="replace").replace("\0", "")  # Open MPI's banner ends with one
        log.unlink()

    def _from_outside(self, process: subprocess.Popen[bytes]) -> None:
        told = Told(self.folder, self.draw.ranks)
        attempt = told.attempts - 1
        fault = self.draw.fault_of(attempt)
        has_come = any(line["step"] >= fault.step for _, line in told.of("step"))
        if fault.kind == "asked to stop" and not self._asked and has_come:
            self._asked = True
            process.send_signal(signal.SIGTERM)
        if fault.kind in ("stopped for a while", "all stopped for long") and attempt not in self._continued:
            pid = told.pid(fault.rank, attempt)
            found = processes.find(pid) if pid else None
            if found is not None and found.is_stopped:
                self._continued.add(attempt)
                everybody = [line["pid"] for _, line in told.of("begin", attempt)]
                self._pause(everybody if fault.kind == "all stopped for long" else [found.pid], fault.seconds)

    @staticmethod
    def _pause(pids: list[int], seconds: float) -> None:
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            time.sleep(seconds if number == signal.SIGSTOP else 0)

    # --- judging ---

    def judge(self) -> Counter[str]:
        """What was done, counted.

        Raises:
            Lost: something is not as it must be.
        """
        left = self._left_over()  # first: what it finds it ends
        told = Told(self.folder, self.draw.ranks)
        if self.code is None:
            raise Lost("it has not ended in its time")
        for _, line in told.of("wrong"):
            raise Lost(line["text"])
        ended = [int(code) for code in re.findall(r"the job ended with exit code (\d+)", self.output)]
        codes = [*ended, self.code]
        for attempt, code in enumerate(codes):
            self._judge_attempt(told, attempt, code)
        if self.draw.restarts and self.code != 0:
            raise Lost(f"it was given up: exit code {self.code}")
        if self.code == 0:
            self._judge_end(told, len(codes) - 1)
        if left:
            raise Lost(f"left over: {left}")
        done = Counter(jobs=1, attempts=len(codes))
        done["operations"] = sum(line["operations"] for _, line in told.of("step"))
        done.update(f"fault: {self.draw.fault_of(attempt).kind}" for attempt in range(len(codes)))
        return done

    def _judge_attempt(self, told: Told, attempt: int, code: int) -> None:
        fault = self.draw.fault_of(attempt)
        if code not in fault.is_of.codes and not (self.draw.restarts and code == 0 and fault.is_of.ends):
            raise Lost(f"attempt {attempt}: exit code {code}, not one of {fault.is_of.codes}")
        if fault.kind == "a mismatch":
            heard = {rank for rank, _ in told.of("mismatch", attempt)}
            if heard != set(range(self.draw.ranks)):
                raise Lost(f"only ranks {heard} have heard of the mismatch")
        if fault.kind == "asked to stop":
            stopped = {line["step"] for _, line in told.of("stopped")}
            if len(stopped) != 1 or len(list(told.of("stopped"))) != self.draw.ranks:
                raise Lost(f"not all ranks have stopped after the same step: {stopped}")
        if code != 0:
            self._judge_words(told, attempt, fault)

    def _judge_words(self, told: Told, attempt: int, fault: Fault) -> None:
        """Who is named, in what was said in this attempt."""
        text = re.split(r"ringdp run: the job ended with exit code .*", self.output)[attempt]
        culprits = [(r, told.pid(r, attempt)) for r in (fault.rank, fault.other) if r >= 0]

        def is_said(pattern: str, where: str) -> bool:
            return any(re.search(pattern.format(rank=r, pid=pid), where) for r, pid in culprits)

        if fault.is_of.says and not is_said(fault.is_of.says, text):
            raise Lost(f"attempt {attempt}: nobody says {fault.is_of.says!r}")
        if not fault.is_of.verdict:
            return
        lines = [line for line in text.splitlines() if line.startswith("ringdp run: rank ")]
        if len(lines) != 1 or not is_said(r"^ringdp run: " + fault.is_of.verdict, lines[0]):
            raise Lost(f"attempt {attempt}: the launcher's last word is {lines}, not {fault.is_of.verdict!r}")
        folder = re.search(r"ringdp doctor (\S+)\)", lines[0])
        if folder is None:
            raise Lost(f"no report is named: {lines[0]}")
        flights, bad = doctor.flights_in(Path(folder[1]))
        if bad or {one.rank for one in flights} != set(range(self.draw.ranks)):
            raise Lost(f"the report holds ranks {[one.rank for one in flights]}, and {bad}")
        for one in flights:
            is_innocent = one.rank not in (fault.rank, fault.other)
            if one.verdict and is_innocent and not is_said("^" + fault.is_of.verdict, one.verdict):
                raise Lost(f"attempt {attempt}: rank {one.rank} blames another: {one.verdict}")

    def _judge_end(self, told: Told, attempt: int) -> None:
        """Nothing was lost."""
        digests_told = {rank: line["digest"] for rank, line in told.of("end", attempt)}
        if digests_told != (must := dict(enumerate(digests(self.draw)))):
            raise Lost(f"the results add up to {digests_told}, not {must}")

    def _left_over(self) -> list[str]:
        found = leftovers.end_processes(self._env[MARK])
        expected = {f"said-{rank}" for rank in range(self.draw.ranks)}
        names = {path.name for path in self.folder.iterdir()} - expected
        found += sorted(name for name in names if not name.startswith("ringdp-report-"))
        return found + leftovers.new_shared_files(leftovers.shared_files() - self._shared_files())

    def _shared_files(self) -> set[str]:
        """Of this job: their names hold the number of the launcher, or of a rank. (Others may run beside it.)"""
        told = Told(self.folder, self.draw.ranks)
        ours = {self._pid, *(line["pid"] for _, line in told.of("begin"))}
        return {
            name for name in leftovers.shared_files() if ours & {int(n) for n in re.findall(r"\d+", name)}
        }


def try_job(draw: Draw, folder: Path, ranks: tuple[int, ...] = ()) -> Counter[str]:
    """Run it and judge it.

    Args:
        draw: the job.
        folder: an empty one.
        ranks: that `draw` was drawn with, unless they are the usual ones.

    Raises:
        Lost: with all that was said.
    """
    job = DrawnJob(draw, folder)
    job.run(ranks)
    try:
        return job.judge()
    except Lost as error:
        said = "\n".join(
            f"rank {r}: {json.dumps(line)}"
            for r, lines in Told(folder, draw.ranks).lines.items()
            for line in lines[-4:]
        )
        raise Lost(f"{error}\n{draw}\n{job.output}\n{said}") from None
