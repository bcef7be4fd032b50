"""From GPU to GPU by MPI, where it says that it takes memory of GPUs: to try that with another one may be a crash."""

from __future__ import annotations

import os

from gpu_check.mpi import run_job
from gpu_check.results import OK, Results, Skip
from gpu_check.suite import gpus, run_suite

MIB = 1 << 20
QUICK_SIZES, SIZES = (4 * MIB,), (4 * MIB, 64 * MIB)


def run(results: Results) -> None:
    with results.check("what the MPI says", "it takes memory of GPUs") as said:
        says_yes()
    if said.state != OK:
        return
    run_suite(results, "two ranks", 2, "mpi", share=0.7)
    where = "on two GPUs" if gpus() > 1 else "on one GPU"
    label = "all-reduce by MPI"
    with results.check(label, f"2 ranks {where}, float32, every sum exact") as result:
        sizes = QUICK_SIZES if results.quick else SIZES
        found = run_job("bandwidth_job", 2, "mpi", results.seconds_left(), *map(str, sizes))
        assert found["by"] == ["by_mpi"], f"it was carried out {', '.join(found['by'])}, not by_mpi"
        for row in found["sizes"]:
            nbytes, time = int(row["bytes"]), row["ms"]
            result.figures[f"{nbytes // MIB} MiB"] = (time, "ms")
            result.figures[f"{nbytes // MIB} MiB, bandwidth"] = (nbytes / time / 1e6, "GB/s")


def says_yes() -> None:
    """Skip: it does not."""
    from ringdp.cli import detect, info

    said = os.environ.get("RINGDP_MPI_TAKES_GPU_MEMORY", "auto")
    if said == "yes":  # who has started this knows better
        return
    answer = detect.probe("gpu_memory", os.environ)
    if said == "no" or answer.get("taken") is not True:
        raise Skip(f"RINGDP_MPI_TAKES_GPU_MEMORY={said}; of GPUs and the MPI: {info.taken(answer)}")
