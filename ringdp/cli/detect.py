"""What `ringdp info` detects, as plain data, and what of it is missing."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ringdp import launch, mpi, profile
from ringdp.cli import main as cli
from ringdp.cli import mpirun as mpiruns

# Each framework's distributions: the first one installed is shown. Ours for it is ringdp.NAME.
FRAMEWORKS = {
    "torch": ("torch",),
    "tensorflow": ("tensorflow", "tensorflow-cpu", "tensorflow-gpu", "tf-nightly"),
    "keras": ("keras",),
    "jax": ("jax",),
    "cupy": ("cupy", "cupy-cuda13x", "cupy-cuda12x", "cupy-cuda11x"),
}
_PROBE_SECONDS = 30
_LAUNCHER_PREFIXES = ("OMPI_", "PMIX_", "PRTE_", "PMI_", "HYDI_", "MPI_LOCAL", "SLURM_")


def _probe_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Without the launcher's traces: a child that has them would be this rank a second time."""
    child = {name: value for name, value in environ.items() if not name.startswith(_LAUNCHER_PREFIXES)}
    child.update({n: v for n, v in environ.items() if n.startswith(("OMPI_MCA_", "PRTE_MCA_", "PMIX_MCA_"))})
    child["OMPI_MCA_btl"] = "self"  # Open MPI's shared memory would leave a file in /dev/shm
    package = str(Path(__file__).resolve().parents[2])
    child["PYTHONPATH"] = os.pathsep.join(filter(None, [package, environ.get("PYTHONPATH")]))
    return child


def probe(which: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """The answer of one probe of probe.py, or {"error": one line} when it failed, crashed or hung."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("probe.py")), which]
    try:
        answer = subprocess.run(
            command,
            env=_probe_environment(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {_PROBE_SECONDS} s"}
    lines = answer.stdout.strip().splitlines()
    try:
        found = json.loads(lines[-1])
    except (IndexError, ValueError):
        found = None
    if isinstance(found, dict):  # what happens after the answer, at the end of MPI, does not matter
        return found
    if answer.returncode < 0:
        return {"error": f"crashed with {signal.Signals(-answer.returncode).name}"}
    said = [line.strip() for line in answer.stderr.strip().splitlines() if line.strip()]
    return {"error": _error_line(said) or f"ended with code {answer.returncode}"}


def _error_line(lines: Sequence[str]) -> str:
    """The line that says what was wrong: that of the exception, else the last one."""
    named = [line for line in lines if line.partition(":")[0].endswith(("Error", "Exception"))]
    return (named or list(lines) or [""])[-1]


def installed(distributions: Iterable[str]) -> str | None:
    """The version of the first distribution that is installed; nothing is imported."""
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    return None


def integrations() -> dict[str, bool]:
    """Whether this ringdp has a package for each framework; none is imported."""
    specs = {name: importlib.util.find_spec(f"ringdp.{name}") for name in FRAMEWORKS}
    return {name: spec is not None and spec.origin is not None for name, spec in specs.items()}


def verdict(used: Mapping[str, Any], built: Mapping[str, str]) -> str:
    """Whether the MPI that is loaded is of the family that ringdp was built for, in words."""
    if not built.get("family"):
        return "not built yet"
    if "library" not in used:
        return "cannot be told, as no MPI could be loaded"
    if mpi.family(used["library"]) == built["family"]:
        return "fits"
    return "DOES NOT FIT the MPI in use"


def _mpi(environ: Mapping[str, str]) -> dict[str, Any]:
    used, built = probe("mpi", environ), mpiruns.built_for()
    try:
        mpirun = str(mpiruns.find_mpirun(environ))
    except mpiruns.LaunchError as error:
        mpirun = f"none: {error}"
    fits = verdict(used, built)
    # Ours asks it, which a unit made for another MPI cannot.
    gpus = probe("gpu_memory", environ) if fits == "fits" else {"error": "not asked"}
    return {"used": used, "built_for": built, "fits": fits, "mpirun": mpirun, "gpu_memory": gpus}


def cuda_kernels(record: str) -> str:
    """What this ringdp has of kernels for GPUs, in words, from the build's record."""
    by, _, gpus = record.partition(", ")
    if not gpus:
        return "not built: there was no nvcc, or RINGDP_WITH_CUDA=0; RINGDP_NVCC names one"
    return f"built by {by} for {', '.join(gpus.split())}"


def _record_of_kernels() -> str:
    try:
        from ringdp import _build
    except ImportError:
        return ""
    return str(getattr(_build, "CUDA", ""))


def _shared_memory() -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        usage = os.statvfs("/dev/shm")
        found["dev_shm_bytes"] = usage.f_blocks * usage.f_frsize
        found["dev_shm_free_bytes"] = usage.f_bavail * usage.f_frsize
    except OSError as error:
        found["dev_shm_error"] = error.strerror
    try:
        os.close(os.memfd_create("ringdp-info"))
        found["memfd"] = True
    except OSError:
        found["memfd"] = False
    return found


def collect(environ: Mapping[str, str]) -> dict[str, Any]:
    """Everything `ringdp info` knows, as plain data: the output of --json."""
    traces = launch.launcher_traces(environ)
    found: dict[str, Any] = {
        "ringdp": {"version": cli.version(), "path": str(Path(__file__).resolve().parents[1])},
        "python": {"version": platform.python_version(), "path": sys.executable},
        "host": {"name": socket.gethostname(), "system": platform.platform(), "machine": platform.machine()},
        "launcher": vars(traces) if traces else None,
        "mpi": _mpi(environ),
        "core": probe("core", environ),
        "cores": {
            "of_host": os.cpu_count(),
            "bound_to": sorted(os.sched_getaffinity(0)),
            "cgroup_limit": launch.cgroup_cores(),
            "usable": launch.cores_of_process(),
            "OMP_NUM_THREADS": environ.get("OMP_NUM_THREADS"),
            "threads": launch.threads_of_process(environ),
        },
        "profile": profile.described(),
        "shared_memory": _shared_memory(),
        "cuda": probe("cuda", environ),
        "nccl": probe("nccl", environ),
        "cuda_kernels": cuda_kernels(_record_of_kernels()),
        "packages": {name: installed([name]) for name in ("numpy", "mpi4py")},
        "frameworks": {name: installed(names) for name, names in FRAMEWORKS.items()},
        "integrations": integrations(),
    }
    found["missing"] = missing(found)
    return found


def missing(found: Mapping[str, Any]) -> list[str]:
    """What is needed, or is often wanted, and is not there: a line each, with how to get it."""
    lines, ours = [], found["mpi"]
    lines += [f"{n}: pip install {n}" for n, version in found["packages"].items() if version is None]
    if "error" in ours["used"] and (found["packages"]["mpi4py"] or ours["mpirun"].startswith("none")):
        lines.append(
            f"an MPI that loads ({ours['used']['error']}): {mpiruns.INSTALL}, or load your cluster's"
        )
    if ours["fits"].startswith("DOES NOT"):
        lines.append(
            f"a ringdp built for the MPI in use (this one was for {ours['built_for']['family']}): "
            "pip install --no-cache-dir --force-reinstall --no-deps ringdp"
        )
    if "error" in found["core"]:
        lines.append(f"the compiled core ({found['core']['error']}): pip install . in the source folder")
    if not found["shared_memory"]["memfd"]:
        lines.append("memfd_create (shared memory between the ranks of a host): Linux 3.17 or newer")
    if not any(found["frameworks"].values()):
        lines.append("a framework, if more than NumPy is wanted: pip install torch")
    if found["cuda"].get("devices") and "version" not in found["nccl"]:
        lines.append("NCCL for the GPUs: pip install nvidia-nccl-cu12 (or -cu13, as your CUDA)")
    return lines
