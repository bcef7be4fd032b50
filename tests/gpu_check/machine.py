"""What there is: GPUs, driver, NCCL, kernels. Facts for the report, and whether the other parts can run at all."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess

from gpu_check.results import Results, Skip

SMI_FIELDS = (
    "name,driver_version,ecc.mode.current,mig.mode.current,pcie.link.gen.current,pcie.link.width.current"
)


def run(results: Results) -> None:
    import ringdp
    from ringdp import _core
    from ringdp.nccl import files_of_wheels

    _core.gpu.look_for_nccl_in(files_of_wheels())
    driver, nccl = _core.gpu.driver(), _core.gpu.nccl()
    results.fact("ringdp", ringdp.__version__)
    results.fact("python", platform.python_version())
    results.fact("processor", processor())
    results.fact("driver", {"for CUDA": version(driver["version"]), "path": driver["path"]})
    results.fact("stand_in", is_stand_in(driver["path"]))
    with results.check("driver", "libcuda is found and gives a GPU") as result:
        assert driver["usable"], driver["missing"]
        result.figures["GPUs"] = (driver["devices"], "")
    with results.check("NCCL", "libnccl is found, with all functions"):
        assert nccl["usable"], nccl["missing"]
        results.fact("nccl", {"version": version_of_nccl(nccl["version"]), "path": nccl["path"]})
    with results.check("CuPy", "it sees as many GPUs as the driver"):
        import cupy

        results.fact("cupy", getattr(cupy, "__version__", "stand-in"))
        assert cupy.cuda.runtime.getDeviceCount() == driver["devices"]
    for number in range(driver["devices"]):
        with results.check(f"GPU {number}", "its kernels load"):
            results.fact(f"gpu {number}", gpu(number))
    with results.check("nvidia-smi", "what it says (not needed)"):
        results.fact("nvidia-smi", smi())


def gpu(number: int) -> dict[str, object]:
    import cupy

    from ringdp import _build, _core

    properties = cupy.cuda.runtime.getDeviceProperties(number)
    about = {
        "name": properties["name"].decode(),
        "compute capability": f"{properties['major']}.{properties['minor']}",
        "memory GiB": round(properties["totalGlobalMem"] / 2**30, 1),
        "multiprocessors": properties.get("multiProcessorCount"),
        "ECC": properties.get("ECCEnabled"),
    }
    assert _core.gpu.kernels.built(), (
        "this ringdp was built without nvcc: it has no kernels (RINGDP_NVCC names one)"
    )
    return {**about, "kernels": _core.gpu.kernels.kind(number), "built by": _build.CUDA}


def version(number: int) -> str:
    """12040 is 12.4."""
    return f"{number // 1000}.{number % 1000 // 10}"


def version_of_nccl(number: int) -> str:
    """22703 is 2.27.3; before 2.9 it was 2804 for 2.8.4."""
    big = 10000 if number >= 10000 else 1000
    return f"{number // big}.{number % big // 100}.{number % 100}"


def is_stand_in(path: str) -> bool:
    """Whether this libcuda is the one of tests/standin, whatever the environment says."""
    return bool(path) and hasattr(ctypes.CDLL(path), "standin_calls")


def processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def smi() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        raise Skip("there is no nvidia-smi on PATH")
    words = [program, f"--query-gpu={SMI_FIELDS}", "--format=csv,noheader"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=20)
    if done.returncode:
        raise Skip(f"nvidia-smi failed: {(done.stdout + done.stderr).strip()[-200:]}")
    return [SMI_FIELDS, *done.stdout.strip().splitlines()]
