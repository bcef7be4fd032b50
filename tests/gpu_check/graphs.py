"""Exchanges in CUDA graphs: by NCCL, on one rank and on a rank for each GPU; with PyTorch, whole steps."""

from __future__ import annotations

from gpu_check.mpi import run_job
from gpu_check.results import Results
from gpu_check.suite import MOST_GPUS, gpus, need_gpus
from gpu_check.torch_training import need_torch


def run(results: Results) -> None:
    many = min(gpus(), MOST_GPUS)
    for ranks, name in ((1, "one rank"), (many, "a rank for each GPU")):
        with results.check(f"replays, {name}", "sums and minima of what is there at each replay") as result:
            if name != "one rank":
                need_gpus(2)
            found = run_job("graphs_job", ranks, "nccl", 0.4 * results.seconds_left())
            result.figures["replays"] = (found["replays"], "")
            result.figures["a replay"] = (found["replay"], "ms")
            result.figures["the same calls"] = (found["calls"], "ms")
    with results.check(
        "ranks that differ", "another graph is replayed on the last rank: named, and no wrong sums"
    ):
        need_gpus(2)
        found = run_job("graphs_differ_job", many, "nccl", 0.5 * results.seconds_left())
        assert "replays another graph" in found["said"], "the difference was not noticed"
    with results.check(
        "steps of PyTorch", "captured, the parameters are as without a graph, on all ranks"
    ) as result:
        need_torch()
        need_gpus(2)
        found = run_job("torch_graph_job", many, "nccl", 0.9 * results.seconds_left())
        result.figures["furthest from steps without"] = (found["distance"], "")
