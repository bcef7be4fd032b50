"""Stand-ins for libcuda and libnccl: what ringdp asks of a GPU, without one.

They are looked up as the real ones are (csrc/device/libraries.h). Device memory cannot be touched by the host, streams
are threads, and what is not ordered shows, as everything takes a random time. What would hang or give anything at all
ends the process and says why (misuse.h). They prove no timing, no deadlock inside NCCL and nothing of how a driver
behaves: docs/gpu.md says what only a GPU can show. Their own tests: tests/gpu/test_standin_*.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from standin.build import build

MODULES = Path(__file__).parent / "modules"  # a stand-in for CuPy


def use(devices: int = 1, delay_us: int = 50) -> None:
    """In this process, and in those that it starts; before ringdp asks for CUDA."""
    cuda, nccl = build()
    os.environ["RINGDP_CUDA_LIBRARY"], os.environ["RINGDP_NCCL_LIBRARY"] = str(cuda), str(nccl)
    os.environ["RINGDP_STANDIN_DEVICES"] = str(devices)
    os.environ.setdefault("RINGDP_STANDIN_RANK_DEVICES", "1")  # each process has GPUs of its own
    os.environ.setdefault("RINGDP_STANDIN_DELAY_US", str(delay_us))
    if str(MODULES) not in sys.path:
        sys.path.insert(0, str(MODULES))


def let_mpi_in() -> None:
    """As with an MPI that takes memory of GPUs: the host can touch that of the stand-in, and MPI is said to take it."""
    os.environ["RINGDP_STANDIN_OPEN"] = "1"
    os.environ["RINGDP_MPI_TAKES_GPU_MEMORY"] = "yes"
