"""Rank suites (tests/ranks, tests/frameworks/torch) on the GPUs of this machine: `mpirun`, every process a rank."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from driver.limit import run_limited
from driver.phases import RANK, ROOT, Selection, mpi_family, pytest_words
from driver.results import read_results

from gpu_check.mpi import LEAST, environ, ranks_words
from gpu_check.results import Results, Skip

MOST_NAMED = 8
MOST_GPUS = 8
SPARE = 10.0  # seconds for what comes after


@dataclass(frozen=True)
class Suite:
    what: str
    files: list[str]
    quick: list[str]


CORE = Suite("the rank suite", ["ranks"], ["ranks/test_collectives.py"])


def run_suite(
    results: Results, name: str, ranks: int, way: str, share: float = 1.0, suite: Suite = CORE
) -> None:
    """`way`: RINGDP_GPU_TRANSPORT; `share`: of the time that is left."""
    limit = max(share * (results.seconds_left() - SPARE), LEAST)
    own = way != "host" and (way == "nccl" or gpus() >= ranks)
    where = "on a GPU" if ranks == 1 else f"on {ranks} GPUs" if own else "on one GPU"
    with (
        results.check(
            name, f"{suite.what}, {ranks} rank{'s' * (ranks > 1)} {where}, each result exact"
        ) as result,
        tempfile.TemporaryDirectory(prefix="ringdp-gpu-check-") as folder,
    ):
        log = Path(folder, "log")
        files = suite.quick if results.quick else suite.files
        ended = run_limited(words_for(files, ranks, way, folder, limit), environ(way), ROOT, log, limit)
        print(log.read_text(errors="replace")[-20_000:], flush=True)  # into this part's log
        found = read_results(Path(folder), ranks)
        for count, what in ((found.passed, "passed"), (found.failed, "failed"), (found.skipped, "skipped")):
            result.figures[what] = (count, "")
        assert ended.code is not None, f"no end after {limit:.0f} s; of the tests {found}"
        named = "; ".join(found.problems[:MOST_NAMED])
        assert not found.failed, f"{found}: {named}"
        assert ended.code == 0 and found.passed, f"exit code {ended.code}; of the tests {found}"


def words_for(files: list[str], ranks: int, way: str, folder: str, limit: float) -> list[str]:
    rank = f"${{{RANK[mpi_family()]}}}"  # pytest itself puts the variable's value in
    words = [sys.executable, *pytest_words(files, Selection(), max(limit, 30)), "--with-mpi"]
    return ranks_words(ranks) + words + [f"--gpu={way}", "--gpu-real", f"--junitxml={folder}/rank-{rank}.xml"]


def gpus() -> int:
    import cupy

    return int(cupy.cuda.runtime.getDeviceCount())


def need_gpus(number: int) -> None:
    if gpus() < number:
        raise Skip(f"it needs {number} GPUs, and there {'is' if gpus() == 1 else 'are'} {gpus()}")
