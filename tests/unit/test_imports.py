"""What importing costs: no framework is asked for, not even in vain, and nothing is loaded before it is used."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from driver.environ import environment

FRAMEWORKS = ("torch", "tensorflow", "jax", "jaxlib", "keras", "optax", "cupy", "ml_dtypes")

# Whoever looks for a framework is noted, whether it is installed or not; a `try: import` would not be seen otherwise.
WATCH = f"""
import atexit, json, os, sys

class Watch:
    asked = []

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {FRAMEWORKS!r}:
            self.asked.append(name)

def tell():
    with open(os.environ["SEEN"], "w") as file:
        json.dump({{"asked": Watch.asked, "modules": sorted(sys.modules)}}, file)

sys.meta_path.insert(0, Watch())
atexit.register(tell)
"""


def run(program: str, folder: Path) -> tuple[list[str], set[str]]:
    """The frameworks that were looked for, and all modules that were loaded in the end."""
    seen = folder / "seen.json"
    env = environment() | {"SEEN": str(seen), "OMPI_MCA_btl": "self"}
    command = [sys.executable, "-c", WATCH + program]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(seen.read_text())
    return found["asked"], set(found["modules"])


def of_others(modules: set[str]) -> set[str]:
    """Packages that are neither Python's own nor ours."""
    known = {*sys.stdlib_module_names, "ringdp", "__main__", "sitecustomize", "usercustomize"}
    return {name.partition(".")[0] for name in modules if not name.startswith(("_", "ringdp"))} - known


def ringdp_command(*words: str) -> str:
    return (
        f"import sys; sys.argv = {['ringdp', *words]!r}; from ringdp.cli.main import main; sys.exit(main())"
    )


PROGRAMS = {
    "ringdp": "import ringdp; ringdp.RingdpError, ringdp.Average",
    "an operation": "import ringdp; ringdp.allreduce, ringdp.init",
    "ringdp.numpy": "import ringdp.numpy",
    "one rank": "import numpy, ringdp; ringdp.init(); ringdp.allreduce(numpy.ones(3)); ringdp.shutdown()",
    "ringdp --help": ringdp_command("--help"),
    "ringdp info": ringdp_command("info"),
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=list(PROGRAMS))
def test_no_framework_is_looked_for(program: str, tmp_path: Path) -> None:
    asked, modules = run(program, tmp_path)
    assert asked == []
    assert of_others(modules) <= {"numpy", "mpi4py", "cython_runtime"}  # the last is of mpi4py


def test_the_launcher_starts_without_numpy(tmp_path: Path) -> None:
    for program in (PROGRAMS["ringdp"], PROGRAMS["ringdp --help"]):
        _, modules = run(program, tmp_path)
        assert of_others(modules) == set()


def test_importing_loads_few_modules_of_ours(tmp_path: Path) -> None:
    """What is slow to import is what imports much. `make bench` measures the time."""
    _, modules = run("import ringdp", tmp_path)
    assert {name for name in modules if name.startswith("ringdp")} == {"ringdp"}
    _, with_numpy = run("import ringdp.numpy", tmp_path)
    assert len({name for name in with_numpy if name.startswith("ringdp")}) < 40
    _, numpy_alone = run("import numpy", tmp_path)
    assert len(with_numpy - numpy_alone) < 150, sorted(with_numpy - numpy_alone)


def test_a_watcher_sees_what_is_asked_for_in_vain(tmp_path: Path) -> None:
    program = "try:\n    import cupy.cuda\nexcept ImportError:\n    pass\n"
    assert "cupy" in run(program, tmp_path)[0]
