"""PyTorch: two ranks train on one GPU. Where there is a PyTorch that was built for CUDA."""

from __future__ import annotations

import importlib.util

from gpu_check.mpi import run_job
from gpu_check.results import Results, Skip
from gpu_check.suite import MOST_GPUS, gpus, need_gpus


def run(results: Results) -> None:
    what = "the ranks' parameters: the same bits, and close to one process on all data; all skip one rank's overflow"
    for ranks, way, name in (
        (2, "host", "two ranks on one GPU"),
        (min(gpus(), MOST_GPUS), "nccl", "a rank for each GPU"),
    ):
        with results.check(name, what) as result:
            need_torch()
            if way == "nccl":
                need_gpus(2)
            limit = (0.5 if way == "host" else 0.9) * results.seconds_left()
            found = run_job("torch_job", ranks, way, limit)
            assert found["device"] == "cuda", f"it ran on {found['device']}"
            results.fact("torch", found["torch"])
            result.figures["loss at first"], result.figures["at last"] = (
                (found["first"], ""),
                (found["last"], ""),
            )
            result.figures["furthest from one process"] = (found["distance"], "")


def need_installed() -> None:
    if importlib.util.find_spec("torch") is None:
        raise Skip("PyTorch is not installed: make gpu-check TORCH=torch")


def need_torch() -> None:
    need_installed()
    import torch

    if not torch.cuda.is_available():
        raise Skip(f"PyTorch {torch.__version__} sees no GPU")
