"""Compiles the stand-ins, once for each state of their sources."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
from pathlib import Path

from driver.lock import locked

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FLAGS = [
    "-std=c++17",
    "-O1",
    "-g",
    "-fPIC",
    "-shared",
    "-fvisibility=default",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
]
CUDA = ["cuda.cc", "captures.cc", "graphs.cc", "memory.cc", "streams.cc", "kernels.cc"]
NCCL = [
    f"nccl{part}.cc" for part in ("", "_collectives", "_communicator", "_elements", "_messages", "_shared")
]


def compiler() -> list[str]:
    """CXX, or the first on PATH."""
    named = shlex.split(os.environ.get("CXX", ""))
    for command in [named] if named else [["g++"], ["c++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    raise RuntimeError("there is no C++ compiler: Debian: apt install g++")


def build() -> tuple[Path, Path]:
    """The paths of the stand-ins for libcuda and libnccl."""
    sources = [*HERE.glob("*.cc"), *HERE.glob("*.h"), *(ROOT / "csrc" / "device").glob("*.h")]
    sources += [p for p in (ROOT / "csrc" / "kernels").rglob("*") if p.is_file()]
    digest = hashlib.sha256()
    for source in sorted(sources):
        digest.update(source.read_bytes())
    digest.update(repr((compiler(), FLAGS)).encode())
    folder = ROOT / "build" / "standin" / digest.hexdigest()[:16]
    cuda, nccl = folder / "libcuda.so.1", folder / "libnccl.so.2"
    with locked(folder):
        if not cuda.exists():
            compile_library(cuda, [HERE / name for name in CUDA])
        if not nccl.exists():
            compile_library(
                nccl, [*(HERE / name for name in NCCL), *sorted((ROOT / "csrc" / "kernels").glob("*.cc"))]
            )
    return cuda, nccl


def compile_library(target: Path, sources: list[Path]) -> None:
    """`target` is there when it is whole, and not before."""
    unfinished = target.with_suffix(".tmp")
    words = [
        *compiler(),
        *FLAGS,
        f"-I{ROOT / 'csrc'}",
        "-o",
        str(unfinished),
        *map(str, sources),
        "-lpthread",
        "-ldl",
    ]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(words)}\n{done.stderr}")
    unfinished.rename(target)
