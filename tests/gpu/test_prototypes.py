"""What the core calls in libcuda and libnccl is declared as in the real headers, where they are; nothing of them is
built in."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from gpu.nccl_wheel import KEPT, LIBRARY, WHEEL, fetch
from standin.build import ROOT, compiler


def cuda_include() -> Path:
    """The folder of cuda.h: beside nvcc, or of NVIDIA's wheels."""
    paths = [Path(p).resolve().parent / "include" for p in os.environ.get("PATH", "").split(":") if p]
    named = [Path(os.environ[n], "include") for n in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(n)]
    wheels = Path(sysconfig.get_paths()["purelib"], "nvidia").glob("*/include")
    for folder in [*named, *paths, Path("/usr/local/cuda/include"), *wheels]:
        if (folder / "cuda.h").exists():
            return folder
    pytest.skip("there is no cuda.h: install CUDA's nvcc")


def nccl_include() -> Path:
    """The folder of nccl.h: RINGDP_NCCL_INCLUDE, or of the wheel, installed or kept by the test that fetches it."""
    named = os.environ.get("RINGDP_NCCL_INCLUDE", "")
    inside = Path("nvidia", "nccl", "include")
    for folder in [Path(named), Path(sysconfig.get_paths()["purelib"]) / inside, KEPT / inside]:
        if (folder / "nccl.h").exists():
            return folder
    pytest.skip(f"there is no nccl.h: pip install {WHEEL}, or name its folder in RINGDP_NCCL_INCLUDE")


def compiled(tmp_path: Path, flags: list[str], prototypes: str = "") -> subprocess.CompletedProcess[str]:
    """`prototypes`: the folder of others than the core's."""
    source = ROOT / "tests" / "gpu" / "prototypes.cc"
    ours = [f"-I{prototypes}"] if prototypes else []
    words = [
        *compiler(),
        "-std=c++17",
        *ours,
        f"-I{ROOT / 'csrc'}",
        *flags,
        str(source),
        "-o",
        str(tmp_path / "run"),
    ]
    return subprocess.run(words, capture_output=True, text=True, timeout=120)


def fits(tmp_path: Path, flags: list[str]) -> None:
    done = compiled(tmp_path, flags)
    assert done.returncode == 0, done.stderr
    assert subprocess.run([tmp_path / "run"], timeout=60).returncode == 0


def test_cuda(tmp_path: Path) -> None:
    fits(tmp_path, ["-DWITH_CUDA", "-isystem", str(cuda_include())])


def test_nccl(tmp_path: Path) -> None:
    fits(tmp_path, ["-DWITH_NCCL", "-isystem", str(nccl_include()), "-isystem", str(cuda_include())])


@pytest.mark.parametrize(
    "right, wrong",
    [
        ("(Address * address, size_t bytes)", "(Address * address, int bytes)"),
        ("(Stream stream, Event event, unsigned flags)", "(Stream stream, Event event)"),
        ("kNotReady = 600", "kNotReady = 601"),
    ],
)
def test_a_wrong_prototype_is_noticed(tmp_path: Path, right: str, wrong: str) -> None:
    include = cuda_include()
    text = (ROOT / "csrc" / "device" / "cuda.h").read_text(encoding="utf-8")
    assert text.count(right) == 1
    (tmp_path / "device").mkdir()
    (tmp_path / "device" / "cuda.h").write_text(text.replace(right, wrong), encoding="utf-8")
    done = compiled(tmp_path, ["-DWITH_CUDA", "-isystem", str(include)], prototypes=str(tmp_path))
    assert done.returncode != 0 and "static assertion failed" in done.stderr


@pytest.mark.slow
def test_the_wheel_of_nccl(tmp_path: Path) -> None:
    """Its header, and its library: every function is found there, and says its version without a GPU."""
    fetch()
    fits(tmp_path, ["-DWITH_NCCL", "-isystem", str(nccl_include()), "-isystem", str(cuda_include())])
    code = "from ringdp import _core; print(_core.gpu.nccl())"
    env = {**os.environ, "RINGDP_NCCL_LIBRARY": str(LIBRARY)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert "'usable': True" in done.stdout, done.stdout + done.stderr
