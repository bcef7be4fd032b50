"""NVIDIA's wheel of NCCL: fetched once, unpacked beside the builds, and never installed."""

from __future__ import annotations

import subprocess
import sys
import zipfile

import pytest
from driver.lock import locked
from standin.build import ROOT

WHEEL = "nvidia-nccl-cu12"
KEPT = ROOT / "build" / "nccl"  # on sys.path it is as if the wheel were installed
LIBRARY = KEPT / "nvidia" / "nccl" / "lib" / "libnccl.so.2"


def fetch() -> None:
    """Skips the test where it cannot be had."""
    with locked(KEPT):
        if not LIBRARY.exists():
            download()


def download() -> None:
    words = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(KEPT), WHEEL]
    got = subprocess.run(words, capture_output=True, text=True, timeout=600)
    if got.returncode:
        pytest.skip(f"{WHEEL} cannot be fetched here: {got.stderr.strip().splitlines()[-1:]}")
    (wheel,) = KEPT.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        wanted = [n for n in archive.namelist() if n.endswith(("/nccl.h", "libnccl.so.2"))]
        archive.extractall(KEPT, wanted)
    wheel.unlink()
