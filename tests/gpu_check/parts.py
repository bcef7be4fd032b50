"""The table of parts: what each asks, and how long it may take. The most telling ones come first."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from gpu_check.results import Results

ONLY_A_FEW = "GPU_CHECK_ONLY_A_FEW"  # a variable of the environment, by which `sanitizer` starts `kernels`


@dataclass(frozen=True)
class Part:
    module: str  # in this folder; its function `run` is the part
    asks: str
    limit: float  # seconds
    required: bool = True  # a green report has at least one result of it that is ok

    def function(self) -> Callable[[Results], None]:
        run: Callable[[Results], None] = importlib.import_module(f"gpu_check.{self.module}").run
        return run


PARTS = {
    "machine": Part("machine", "what there is: GPUs, driver, NCCL, kernels", 60),
    "kernels": Part("kernels", "every kernel, bit for bit against float64 and the CPU's kernels", 150),
    "staged": Part("staged", "the rank suite, two ranks on one GPU, through host memory", 180),
    "nccl": Part("nccl", "the rank suite by NCCL: one rank, and as many as there are GPUs", 180),
    "bandwidth": Part("bandwidth", "copies, and all-reduces beside them", 90),
    "overlap": Part("overlap", "an exchange while the GPU computes", 60),
    "graphs": Part("graphs", "exchanges inside CUDA graphs", 90),
    "mpi": Part(
        "by_mpi", "the rank suite by MPI from GPU to GPU, if it says that it can", 120, required=False
    ),
    "torch": Part("torch_training", "two ranks train on one GPU with PyTorch", 120, required=False),
    "torch suite": Part("torch_suite", "PyTorch's rank suite, with tensors on GPUs", 150, required=False),
    "sanitizer": Part("sanitizer", "the kernels under compute-sanitizer", 200, required=False),
}
