"""ringdp under MPICH: installed from the sdist into an environment of its own, where MPICH comes from its wheel."""

import importlib.util
import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest
from cluster.training import TRAIN, Run, check_training
from driver.environ import environment
from driver.phases import ROOT, TESTS

RANKS = 3
HAS_TORCH = importlib.util.find_spec("torch") is not None


@dataclass(frozen=True)
class Environment:
    """A venv with MPICH and a ringdp made for it; test tools and torch are those of the Python that runs the tests."""

    bin: Path

    def variables(self) -> dict[str, str]:
        env = environment()
        return env | {"PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}"}

    def program(self, name: str) -> str:
        return str(self.bin / name)


@pytest.fixture(scope="module")
def mpich(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("mpich")
    made = Environment(folder / "venv" / "bin")
    do([sys.executable, "-m", "venv", str(folder / "venv")])
    pip = [made.program("python"), "-m", "pip", "-qq", "--no-input", "--disable-pip-version-check", "install"]
    wheels = subprocess.run([*pip, "mpich", "mpi4py", "numpy"], capture_output=True, text=True)
    if wheels.returncode:
        pytest.skip(f"pip cannot install mpich here: {wheels.stderr.strip().splitlines()[-1]}")

    do(
        [sys.executable, "-c", f"import setup; setup.build_sdist({str(folder)!r})"],
        cwd=ROOT,
        unset="PYTHONSAFEPATH",
    )
    (sdist,) = folder.glob("ringdp-*.tar.gz")
    do([*pip, "--no-cache-dir", "--no-deps", str(sdist)], RINGDP_MPICC=made.program("mpicc"))
    # Written after the installation, and searched last: ringdp, numpy and mpi4py are the venv's own.
    borrowed = [sysconfig.get_paths()["purelib"]]
    if HAS_TORCH:
        borrowed.append(str(Path(str(importlib.util.find_spec("torch").origin)).parent.parent))
    site = next((folder / "venv").glob("lib/python*/site-packages"))
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return made


def do(command: list[str], cwd: Path | None = None, unset: str = "", **more: str) -> None:
    env = {k: v for k, v in os.environ.items() if k != unset} | more
    result = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_unit_is_made_for_mpich(mpich: Environment, run: Run) -> None:
    code, output = run([mpich.program("ringdp"), "info"], mpich.variables())
    assert code == 0, output
    assert "MPICH" in output
    assert "Open MPI" not in output


def test_the_rank_suite_passes(mpich: Environment, run: Run) -> None:
    pytest_words = [
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--with-mpi",
        "-m",
        "not slow",
        str(TESTS / "ranks"),
    ]
    command = [mpich.program("mpiexec"), "-n", str(RANKS), mpich.program("python"), *pytest_words]
    code, output = run(command, mpich.variables(), limit=240)
    assert code == 0, output
    assert output.count(" passed") == RANKS, output


@pytest.mark.skipif(not HAS_TORCH, reason="there is no torch in this environment")
@pytest.mark.parametrize("launcher", ["ringdp run", "mpiexec"])
def test_training(mpich: Environment, run: Run, launcher: str) -> None:
    begin = [mpich.program("ringdp"), "run"] if launcher == "ringdp run" else [mpich.program("mpiexec")]
    code, output = run([*begin, "-n", str(RANKS), mpich.program("python"), str(TRAIN)], mpich.variables())
    assert code == 0, output
    check_training(output, RANKS)


def test_a_ringdp_made_for_another_mpi_says_so(mpich: Environment, run: Run, tmp_path: Path) -> None:
    import ringdp
    from ringdp import _build

    if _build.MPI_FAMILY != "openmpi":
        pytest.skip(f"the tests run with {_build.MPI_FAMILY}: there is no ringdp made for Open MPI to try")
    (tmp_path / "ringdp").symlink_to(Path(str(ringdp.__file__)).parent)
    env = mpich.variables() | {"PYTHONPATH": str(tmp_path)}
    code, output = run([mpich.program("python"), "-c", "import ringdp; ringdp.init()"], env)
    assert code == 1, output
    (sentence,) = [line for line in output.splitlines() if "built for" in line]
    assert "openmpi" in sentence
    assert "MPICH" in sentence


STOPS = """
import os, signal, sys, ringdp
ringdp.init()
ringdp.on_preempt(lambda: os.write(1, b"saved %d\\n" % step))  # whole, beside the other ranks
for step in range(100):
    if step == 3 and ringdp.rank() == 1:
        os.kill(os.getpid(), signal.SIGUSR1)
    if ringdp.should_stop():
        ringdp.stop()
"""


@pytest.mark.parametrize("launcher", ["ringdp", "mpiexec"])
def test_a_request_to_stop(mpich: Environment, run: Run, launcher: str) -> None:
    """MPICH catches SIGUSR1 itself when it is initialised."""
    begin = [mpich.program(launcher), *(["run"] if launcher == "ringdp" else [])]
    command = [*begin, "-n", str(RANKS), mpich.program("python"), "-c", STOPS]
    code, output = run(command, mpich.variables())
    assert code == 143, output
    assert output.count("saved 3") == RANKS, output
