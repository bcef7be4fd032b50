"""Where NVIDIA's wheels put NCCL. Which one is used: csrc/device/libraries.h."""

from __future__ import annotations

import os
import sys


def files_of_wheels() -> list[str]:
    """The libnccl.so.2 of the wheels nvidia-nccl-cu12 and -cu13 that are installed, in the order of sys.path."""
    files = (os.path.join(folder, "nvidia", "nccl", "lib", "libnccl.so.2") for folder in sys.path)
    return [file for file in files if os.path.exists(file)]
