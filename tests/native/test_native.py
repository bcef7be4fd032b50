"""The core without Python and without MPI: the tests in the .cc files beside this one, compiled into one executable.

On this machine's architecture always; with --all also for aarch64, under an emulator. That runs aarch64's instructions,
not its memory ordering, which is weaker than that of x86-64: what is ordered by accident still works there. What C++
promises is checked on any machine by sanitizers (test_sanitizers.py).
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sysconfig
from pathlib import Path

import pytest
from driver.phases import ROOT
from native.building import LIMIT, NAMES, QUICKLY, TARGETS, cxx, make, program, run

from ringdp._build import FLAGS, VERSION

BINDINGS = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc" / "bindings").glob("*.cc"))
MPI_UNIT = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc" / "transport" / "mpi").glob("*.cc"))

AARCH64_CXX = "aarch64-linux-gnu-g++"
AARCH64 = "aarch64 is not tested: Debian: apt install g++-aarch64-linux-gnu qemu-user"


@pytest.fixture(scope="module")
def folder() -> Path:
    """Of the executables of this machine's architecture."""
    return make("here", cxx(), QUICKLY)


@pytest.fixture(scope="module")
def native(folder: Path) -> list[str]:
    """How to call the tests on this machine."""
    return [str(folder / "run")]


@pytest.fixture(scope="module")
def aarch64() -> list[str]:
    """The same for aarch64, compiled as it is installed there."""
    compiler = program(AARCH64_CXX, AARCH64)
    emulator = program("qemu-aarch64", AARCH64)
    libraries = Path(run(compiler, "-print-file-name=libc.so.6").strip()).resolve().parent
    return [emulator, "-L", str(libraries.parent), str(make("aarch64", [compiler], FLAGS) / "run")]


# --- the tests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_here(native: list[str], name: str) -> None:
    run(*native, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_aarch64(aarch64: list[str], name: str) -> None:
    run(*aarch64, name)


@pytest.mark.slow
def test_aarch64_computes_the_same_bits(native: list[str], aarch64: list[str]) -> None:
    bits = run(*native, "--bits")
    assert re.fullmatch(r"[0-9a-f]{16}\n", bits)
    assert run(*aarch64, "--bits") == bits


@pytest.mark.parametrize(("way", "seeds"), [("turns", 400), ("threads", 60)])
def test_scenarios_end_as_they_must(native: list[str], way: str, seeds: int) -> None:
    """Random ranks, operations, orders and faults, by seed: tests/native/play.h."""
    run(*native, "--play", way, "1", str(seeds))


@pytest.mark.slow
@pytest.mark.parametrize(("way", "seeds"), [("turns", 4000), ("threads", 800)])
def test_thousands_of_scenarios_end_as_they_must(native: list[str], way: str, seeds: int) -> None:
    run(*native, "--play", way, "1000", str(seeds), limit=900)


@pytest.mark.parametrize("target", TARGETS)
def test_any_input_is_taken_or_refused(folder: Path, target: str) -> None:
    """See tests/fuzz/README.md."""
    run(str(folder / "fuzz"), "--seconds", "1", target)


@pytest.mark.slow
@pytest.mark.parametrize("source", [*BINDINGS, *MPI_UNIT])
def test_what_needs_python_or_mpi_compiles_for_aarch64(source: str) -> None:
    """With the headers of this machine's Python and MPI, which differ from those of another only in what is 64-bit."""
    compiler = program(AARCH64_CXX, AARCH64)
    includes = mpi_includes() if source in MPI_UNIT else python_includes()
    words = [*shlex.split(FLAGS), "-O0", f'-DRINGDP_VERSION="{VERSION}"', "-Icsrc", *includes]
    run(compiler, *words, "-c", source, "-o", os.devnull)


def mpi_includes() -> list[str]:
    mpicc = program("mpicc", "there is no MPI")
    shown = subprocess.run([mpicc, "-show"], capture_output=True, text=True, check=True).stdout
    return [word for word in shlex.split(shown) if word.startswith("-I")]


def python_includes() -> list[str]:
    found = importlib.util.find_spec("nanobind")
    if found is None or not found.origin:
        pytest.skip("nanobind is missing: pip install nanobind")
    nanobind = Path(found.origin).parent
    folders = [
        nanobind / "include",
        nanobind / "ext" / "robin_map" / "include",
        sysconfig.get_paths()["include"],
    ]
    return [word for folder in folders for word in ("-isystem", str(folder))]


# --- and whether they would notice ----------------------------------------------------------------------------------


def test_every_test_is_run(native: list[str]) -> None:
    assert sorted(run(*native, "--list").split()) == sorted(NAMES)
    assert len(NAMES) == len(set(NAMES)) > 20


def test_every_target_is_fed(folder: Path) -> None:
    assert sorted(run(str(folder / "fuzz"), "--list").split()) == TARGETS
    assert len(TARGETS) == len(set(TARGETS)) > 8


def test_a_check_that_fails_is_noticed(native: list[str]) -> None:
    done = subprocess.run([*native, "--fail"], capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 1
    assert re.search(r"FAILED: .*main\.cc:\d+: 1 \+ 1 == 3 as it must", done.stderr)


def test_a_name_that_is_none_is_refused(native: list[str]) -> None:
    done = subprocess.run([*native, "no_such_test"], capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 1 and "there is no test no_such_test" in done.stderr
