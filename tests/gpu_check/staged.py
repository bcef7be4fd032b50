"""Through host memory: two ranks on one GPU, all operations and dtypes."""

from __future__ import annotations

from gpu_check.results import Results
from gpu_check.suite import run_suite


def run(results: Results) -> None:
    run_suite(results, "two ranks on one GPU", 2, "host")
