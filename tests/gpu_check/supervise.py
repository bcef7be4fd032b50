"""Runs a part in a process of its own: a crash, a sticky error of CUDA or a hang ends that part, and is its result."""

from __future__ import annotations

import os
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from driver.environ import MARK, environment
from driver.leftovers import end_processes
from driver.limit import run_limited
from driver.phases import ROOT, TESTS

from gpu_check import results, said
from gpu_check.parts import Part
from gpu_check.results import FAILED, OK, SKIPPED, Result

# What says where libraries are, and what the stand-ins do; other options of ringdp are not to decide what is found.
KEPT = ("RINGDP_CUDA_LIBRARY", "RINGDP_NCCL_LIBRARY", "RINGDP_MPI_TAKES_GPU_MEMORY", "RINGDP_STANDIN_")


@dataclass
class Outcome:
    """Of one part."""

    name: str
    asks: str
    seconds: float
    results: list[Result]
    facts: dict[str, object] = field(default_factory=dict)

    def count(self, state: str) -> int:
        return sum(r.state == state for r in self.results)

    @property
    def state(self) -> str:
        if self.count(FAILED) or not self.results:
            return FAILED
        return OK if self.count(OK) else SKIPPED


def environ() -> dict[str, str]:
    """Of a part, and of the ranks that it starts."""
    import standin

    env = environment()
    env.update({k: v for k, v in os.environ.items() if k.startswith(KEPT)})
    folders = [str(TESTS)]
    if "RINGDP_STANDIN_DEVICES" in env:
        folders.append(str(standin.MODULES))
    env["PYTHONPATH"] = os.pathsep.join(folders)
    env[MARK] = uuid.uuid4().hex
    return env


def run_part(name: str, part: Part, limit: float, quick: bool, logs: Path) -> Outcome:
    """`limit`: seconds after which it is ended."""
    asks = part.asks
    if limit <= 0:
        state = FAILED if part.required else SKIPPED
        return Outcome(name, asks, 0, [Result(name, asks, state, "the time for all parts was used up")])
    file, log, env = logs / f"{name}.jsonl", logs / f"{name}.log", environ()
    words = [sys.executable, "-m", "gpu_check.part", name, str(file), f"{limit:.1f}"]
    began = time.monotonic()
    ended = run_limited(words + ["--quick"] * quick, env, ROOT, log, limit)
    left = end_processes(env[MARK])
    found, facts = results.read(file)
    text = log.read_text(errors="replace").partition("\n")[2]  # without the command
    if ended.code is None:
        found.append(Result(name, asks, FAILED, f"no end after {limit:.0f} s; {said.why(text)}"))
    elif ended.code:
        found.append(Result(name, asks, FAILED, f"{how_it_ended(ended.code)}; {said.why(text)}"))
    elif left:
        found.append(Result(name, asks, FAILED, "; ".join(left)))
    elif not found:
        found.append(Result(name, asks, FAILED, "it gave no result"))
    return Outcome(name, asks, round(time.monotonic() - began, 1), found, facts)


def how_it_ended(code: int) -> str:
    return f"its process was ended by signal {-code}" if code < 0 else f"its process ended with code {code}"
