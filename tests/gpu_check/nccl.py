"""By NCCL: one rank, which any GPU can do, and a rank for each GPU where there are several."""

from __future__ import annotations

from gpu_check.results import Results
from gpu_check.suite import MOST_GPUS, gpus, need_gpus, run_suite


def run(results: Results) -> None:
    many = min(gpus(), MOST_GPUS)
    run_suite(results, "one rank", 1, "nccl", share=1.0 if many < 2 else 0.4)
    if many < 2:
        with results.check("a rank for each GPU", "the rank suite by NCCL"):
            need_gpus(2)
    else:
        run_suite(results, "a rank for each GPU", many, "nccl")
