"""How the C++ tests are compiled and run: by tests/native/Makefile, with the compiler that ringdp is built with."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from driver.lock import locked
from driver.phases import ROOT

from ringdp._build import FLAGS

HERE = Path(__file__).parent
# By file, in the order in which they stand there.
TESTS = {
    file.stem: re.findall(r"^TEST\((\w+)\)", file.read_text(encoding="utf-8"), re.MULTILINE)
    for file in sorted(HERE.glob("*.cc"))
}
NAMES = [name for names in TESTS.values() for name in names]
TARGETS = sorted(
    name
    for file in (HERE.parent / "fuzz").glob("*.cc")
    for name in re.findall(r"^FUZZ\((\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
)
QUICKLY = f"{FLAGS} -O1"  # compiled quickly rather than to run fast
LIMIT = 120.0  # seconds for one test, under the emulator too


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


def make(name: str, compiler: list[str], flags: str) -> Path:
    """build/native/<name>, with the executables `run`, the tests, and `fuzz`; what did not change there is kept."""
    jobs = os.environ.get("RINGDP_BUILD_JOBS") or str(len(os.sched_getaffinity(0)))
    out = f"build/native/{name}"
    words = [program("make", "Debian: apt install make"), "-s", "-j", jobs, "-f", "tests/native/Makefile"]
    with locked(ROOT / out):
        run(*words, f"OUT={out}", f"CXX={shlex.join(compiler)}", f"FLAGS={flags}", limit=1500)
    return ROOT / out
