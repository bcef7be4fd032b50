"""Which nvcc setup.py takes, and what it asks of it."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest
from setup_module import load_setup

SAYS = """#!/bin/sh
case "$1" in
--version) echo "Cuda compilation tools, release 12.9, V12.9.86" ;;
--list-gpu-code) printf 'sm_50\\nsm_75\\nsm_80\\nsm_90\\nsm_101\\n' ;;
esac
"""


@pytest.fixture
def setup() -> ModuleType:
    return load_setup()


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Without an nvcc, as far as this test can make it so; returns an empty folder that is on its PATH."""
    for name in ("RINGDP_NVCC", "RINGDP_WITH_CUDA", "CUDA_HOME", "CUDA_PATH", "CXX"):
        monkeypatch.delenv(name, raising=False)
    paths = {**sysconfig.get_paths(), "purelib": str(tmp_path / "packages")}
    monkeypatch.setattr(sysconfig, "get_paths", lambda: paths)
    monkeypatch.setattr(sys, "path", [])
    (tmp_path / "on-path").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "on-path"))
    return tmp_path / "on-path"


def nvcc_in(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "nvcc").write_text(SAYS)
    (folder / "nvcc").chmod(0o755)
    return str(folder / "nvcc")


def test_the_order(setup: ModuleType, machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_system = Path("/usr/local/cuda/bin/nvcc")
    assert setup.path_of_nvcc() == (str(of_system) if of_system.exists() else None)
    wheel = nvcc_in(tmp_path / "packages" / "nvidia" / "cu13" / "bin")
    assert setup.path_of_nvcc() == (str(of_system) if of_system.exists() else wheel)
    home = nvcc_in(tmp_path / "home" / "bin")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert setup.path_of_nvcc() == home
    on_path = nvcc_in(machine)
    assert setup.path_of_nvcc() == on_path
    named = nvcc_in(tmp_path / "named")
    monkeypatch.setenv("RINGDP_NVCC", named)
    assert setup.path_of_nvcc() == named


def test_an_nvcc_of_a_wheel(setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup.shutil, "which", lambda name, path: path)
    wheel = tmp_path / "packages" / "nvidia" / "cuda_nvcc" / "bin"
    wheel.mkdir(parents=True)
    assert str(wheel) in setup.path_of_nvcc().split(os.pathsep)


def test_what_it_is_asked_for(setup: ModuleType, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = nvcc_in(machine)
    monkeypatch.setenv("PATH", os.pathsep.join([str(machine), "/usr/bin", "/bin"]))
    nvcc = setup.find_nvcc()
    assert (nvcc.command, nvcc.version, nvcc.gpus) == ([path], "12.9", ["sm_75", "sm_80", "sm_90"])
    code = nvcc.to_machine_code(Path("x.ptx"), Path("x.fatbin"))
    assert "arch=compute_75,code=[sm_75,sm_80,sm_90]" in code
    assert "-arch=compute_75" in nvcc.to_ptx(Path("x.ptx"), Path("x.d"))
    monkeypatch.setenv("CXX", "clang++ -m64")
    assert setup.find_nvcc().command == [path, "-ccbin", "clang++"]


def test_with_and_without(setup: ModuleType, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc_in(machine)
    monkeypatch.setenv("RINGDP_WITH_CUDA", "0")
    assert setup.find_nvcc() is None
    monkeypatch.setenv("RINGDP_WITH_CUDA", "1")
    monkeypatch.setattr(setup, "path_of_nvcc", lambda: None)
    with pytest.raises(SystemExit, match="RINGDP_WITH_CUDA=1, but there is no nvcc.*RINGDP_NVCC"):
        setup.find_nvcc()
    monkeypatch.setenv("RINGDP_WITH_CUDA", "yes")
    with pytest.raises(SystemExit, match="is 0, 1 or empty, not yes"):
        setup.find_nvcc()
    monkeypatch.delenv("RINGDP_WITH_CUDA")
    assert setup.find_nvcc() is None


def test_a_named_one_that_is_missing(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGDP_NVCC", "/nowhere/nvcc")
    with pytest.raises(SystemExit, match="RINGDP_NVCC=/nowhere/nvcc is not an executable file"):
        setup.find_nvcc()


def test_the_version_of_ptx_is_lowered_once(setup: ModuleType, tmp_path: Path) -> None:
    ptx = tmp_path / "x.ptx"
    ptx.write_text("// .version 9.0\n\n.version 9.0\n.target sm_75\n// .version 9.0\n")
    setup.lower_ptx_version(ptx)
    assert ptx.read_text() == "// .version 9.0\n\n.version 6.3\n.target sm_75\n// .version 9.0\n"
