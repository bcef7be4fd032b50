"""PyTorch's rank suite (tests/frameworks/torch) on GPUs. Where there is a PyTorch that was built for CUDA.

Of its files those whose tests make all their tensors themselves: what was made before a test, comes from a file or lies
partly on the CPU would have to be put on the GPU by hand.
"""

from __future__ import annotations

import os

from gpu_check.results import Results, Skip
from gpu_check.suite import MOST_GPUS, Suite, gpus, need_gpus, run_suite
from gpu_check.torch_training import need_installed, need_torch

QUICK = ("operations",)
MORE = ("exchange_options", "scaler", "windows", "join", "weigh", "c10d_collectives")


def files(*about: str) -> list[str]:
    return [f"frameworks/torch/ranks_{name}.py" for name in about]


SUITE = Suite("PyTorch's rank suite", files(*QUICK, *MORE), files(*QUICK))


def run(results: Results) -> None:
    many = min(gpus(), MOST_GPUS)
    for ranks, way, name, share in (
        (2, "host", "two ranks on one GPU", 0.6),
        (many, "nccl", "a rank for each GPU", 1.0),
    ):
        try:
            need_tensors_on_gpus()
            if way == "nccl":
                need_gpus(2)
        except Skip as skip:
            with results.check(name, SUITE.what):
                raise skip
        else:
            run_suite(results, name, ranks, way, share, SUITE)


def need_tensors_on_gpus() -> None:
    """Over the stand-ins, those of any PyTorch."""
    if "RINGDP_STANDIN_DEVICES" not in os.environ:
        need_torch()
    else:
        need_installed()
