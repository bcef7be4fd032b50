"""Through host memory: two ranks on one GPU, all operations and dtypes."""

from __future__ import annotations

from gpu_check import said
from gpu_check.mpi import run_job
from gpu_check.results import Results
from gpu_check.suite import run_suite


def run(results: Results) -> None:
    run_suite(results, "two ranks on one GPU", 2, "host", share=0.8)
    with results.check(
        "no transport named", "ringdp finds out by itself that the ranks share a GPU, and says so"
    ):
        found = run_job("bandwidth_job", 2, "auto", results.seconds_left(), str(1 << 20))
        assert found["by"] == ["by_host_memory"], f"it was carried out {', '.join(found['by'])}"
        assert "use the same GPU" in found["said"], said.why(found["said"])
