"""The core without Python and without MPI: the tests in the .cc files beside this one, compiled into one executable.

On this machine's architecture always; with --all also for aarch64, under an emulator, and with ThreadSanitizer. The
emulator runs aarch64's instructions, not its memory ordering, which is weaker than that of x86-64: what is ordered by
accident still works there. ThreadSanitizer goes by what C++ promises, on any machine.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from driver.phases import ROOT

from ringdp._build import FLAGS, VERSION

HERE = Path(__file__).parent
# By file, in the order in which they stand there.
TESTS = {
    file.stem: re.findall(r"^TEST\((\w+)\)", file.read_text(encoding="utf-8"), re.MULTILINE)
    for file in sorted(HERE.glob("*.cc"))
}
NAMES = [name for names in TESTS.values() for name in names]
BINDINGS = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc" / "bindings").glob("*.cc"))
MPI_UNIT = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc" / "transport" / "mpi").glob("*.cc"))

AARCH64_CXX = "aarch64-linux-gnu-g++"
AARCH64 = "aarch64 is not tested: Debian: apt install g++-aarch64-linux-gnu qemu-user"
LIMIT = 120.0  # seconds for one test, under the emulator too


# --- compiling ------------------------------------------------------------------------------------------------------


def program(name: str, why: str) -> str:
    """The path of a program; skips, saying why, where there is none."""
    return shutil.which(name) or pytest.skip(f"{why} ({name} is missing)")


def cxx() -> list[str]:
    """The compiler that ringdp is built with: CXX, or the first on PATH."""
    named = shlex.split(os.environ.get("CXX", ""))
    for command in [named] if named else [["g++"], ["c++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    pytest.skip("there is no C++ compiler: Debian: apt install g++")


def run(*command: str, env: dict[str, str] | None = None, limit: float = LIMIT) -> str:
    """What the command writes to its standard output; fails with all that it wrote unless it exits with 0."""
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=limit, env={**os.environ, **(env or {})}
    )
    if done.returncode != 0:
        written = (done.stdout + done.stderr).splitlines()
        shown = [shlex.join(command), *written[:60]]  # the first error is the one to read
        pytest.fail("\n".join([*shown, f"exit code {done.returncode}"]), pytrace=False)
    return done.stdout


def make(name: str, compiler: list[str], flags: str) -> str:
    """The path of the executable, made in build/native/<name>, where what did not change is kept."""
    jobs = os.environ.get("RINGDP_BUILD_JOBS") or str(len(os.sched_getaffinity(0)))
    out = f"build/native/{name}"
    words = [program("make", "Debian: apt install make"), "-s", "-j", jobs, "-f", "tests/native/Makefile"]
    run(*words, f"OUT={out}", f"CXX={shlex.join(compiler)}", f"FLAGS={flags}", limit=900)
    return str(ROOT / out / "run")


@pytest.fixture(scope="module")
def native() -> list[str]:
    """How to call the executable of this machine's architecture; compiled quickly rather than to run fast."""
    return [make("here", cxx(), f"{FLAGS} -O1")]


@pytest.fixture(scope="module")
def aarch64() -> list[str]:
    """The same for aarch64, compiled as it is installed there."""
    compiler = program(AARCH64_CXX, AARCH64)
    emulator = program("qemu-aarch64", AARCH64)
    libraries = Path(run(compiler, "-print-file-name=libc.so.6").strip()).resolve().parent
    return [emulator, "-L", str(libraries.parent), make("aarch64", [compiler], FLAGS)]


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The same with ThreadSanitizer."""
    probe = tmp_path_factory.mktemp("sanitizer") / "probe"
    source = probe.with_suffix(".cc")
    source.write_text("int main() { return 0; }\n")
    words = [*cxx(), "-fsanitize=thread", str(source), "-o", str(probe)]
    if subprocess.run(words, capture_output=True).returncode:
        pytest.skip("this compiler comes without ThreadSanitizer: Debian's g++ and clang have it")
    if subprocess.run([probe], capture_output=True).returncode:
        pytest.skip("ThreadSanitizer does not run on this kernel")
    return [make("thread-sanitizer", cxx(), f"{FLAGS} -O1 -g -fsanitize=thread")]


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


@pytest.mark.slow
@pytest.mark.parametrize("name", TESTS["engine"])
def test_no_data_races(sanitized: list[str], name: str) -> None:
    run(*sanitized, name)


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


def test_a_check_that_fails_is_noticed(native: list[str]) -> None:
    done = subprocess.run([*native, "--fail"], capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 1
    assert re.search(r"FAILED: .*main\.cc:\d+: 1 \+ 1 == 3 as it must", done.stderr)


def test_a_name_that_is_none_is_refused(native: list[str]) -> None:
    done = subprocess.run([*native, "no_such_test"], capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 1 and "there is no test no_such_test" in done.stderr
