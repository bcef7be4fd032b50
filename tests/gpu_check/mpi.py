"""Ranks of one job on this machine, of a program of this folder: what they find comes back as JSON."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from driver.environ import mpirun
from driver.limit import run_limited
from driver.phases import ROOT

from gpu_check import said

LEAST = 5.0  # seconds: a part whose time is used up may still try


def ranks_words(ranks: int) -> list[str]:
    return [mpirun(), "-n", str(ranks)]


def environ(way: str) -> dict[str, str]:
    """Of ranks. Through host memory they share one GPU, as is usual where there is one; by NCCL each has its own, and
    by MPI if there are as many."""
    env = {**os.environ, "RINGDP_GPU_TRANSPORT": way, "RINGDP_TIMEOUT": "30"}
    if way not in ("nccl", "mpi"):
        env["CUDA_VISIBLE_DEVICES"] = env.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        if "RINGDP_STANDIN_DEVICES" in env:
            env["RINGDP_STANDIN_DEVICES"] = "1"
    return env


def run_job(module: str, ranks: int, way: str, limit: float, *arguments: str) -> dict[str, Any]:
    """Runs `gpu_check.module` on ranks: what its rank 0 has found, and what all of them `said`.

    Raises AssertionError when it does not end well, with the end of what it said.
    """
    with tempfile.TemporaryDirectory(prefix="ringdp-gpu-check-") as folder:
        log, answer = Path(folder, "log"), Path(folder, "answer.json")
        words = [*ranks_words(ranks), sys.executable, "-m", f"gpu_check.{module}", str(answer), *arguments]
        ended = run_limited(words, environ(way), ROOT, log, max(limit, LEAST))
        text = log.read_text(errors="replace")
        print(text, flush=True)  # into the log of this part
        assert ended.code is not None, f"no end after {limit:.0f} s; {said.why(text)}"
        assert ended.code == 0 and answer.exists(), f"exit code {ended.code}; {said.why(text)}"
        found: dict[str, Any] = json.loads(answer.read_text())
        return {**found, "said": text}


def rank_main(body: Callable[[list[str]], object]) -> None:
    """The main function of such a program, on each rank; what `body` gives on rank 0 is the answer.

    A rank that fails ends the job: the others would wait for it.
    """
    import ringdp

    answer, *arguments = sys.argv[1:]
    ringdp.init()
    try:
        found = body(arguments)
        if ringdp.rank() == 0:
            Path(answer).write_text(json.dumps(found))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        from mpi4py import MPI

        MPI.COMM_WORLD.Abort(1)
    ringdp.shutdown()


def slowest(value: float) -> float:
    """The largest of all ranks' values."""
    from mpi4py import MPI

    return float(MPI.COMM_WORLD.allreduce(value, MPI.MAX))


def together() -> None:
    """No rank goes on before all are here."""
    from mpi4py import MPI

    MPI.COMM_WORLD.Barrier()
