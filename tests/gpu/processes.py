"""Processes whose ranks are threads, each with a GPU of the stand-ins: what they begin with is gpu/in_process.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
LIMIT = 60.0
# The host can touch the memory of the stand-in, and MPI is said to take that of GPUs.
MPI = {
    "RINGDP_GPU_TRANSPORT": "mpi",
    "RINGDP_STANDIN_OPEN": "1",
    "RINGDP_MPI_TAKES_GPU_MEMORY": "yes",
}
BEGIN = """
import os, sys, threading, time
import numpy as np
import standin
standin.use(devices=4)
from gpu.in_process import *
from ringdp import _core
"""


def run(body: str, limit: float = LIMIT, **environ: str) -> subprocess.CompletedProcess[str]:
    """A Python process of its own."""
    env = {
        **os.environ,
        "PYTHONPATH": str(TESTS),
        "RINGDP_TIMEOUT": "5",
        "RINGDP_IDLE_LOOKS": "1000",
        **(MPI if environ.get("RINGDP_GPU_TRANSPORT") == "mpi" else {}),
        **environ,
    }
    code = BEGIN + textwrap.dedent(body)
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=limit
    )


def says(body: str, what: str, **environ: str) -> None:
    """The process ends with an error that says so."""
    done = run(body, **environ)
    assert done.returncode == 1, done.stderr
    assert re.search(what, done.stderr), done.stderr


def works(body: str, limit: float = LIMIT, **environ: str) -> str:
    done = run(body, limit, **environ)
    assert done.returncode == 0, done.stderr
    return done.stdout
