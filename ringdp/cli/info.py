"""`ringdp info`: prints what was detected on this host, and what is missing with how to get it."""

from __future__ import annotations

import argparse
import json
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from ringdp import launch
from ringdp.cli import detect

_EXAMPLES = """examples:
  ringdp info                        what this host has
  ringdp info --json                 the same for programs
  ringdp run -n 2 -- ringdp info     besides, how the ranks are bound to cores"""


def ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] → "0-2,5"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def _mpi_lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    used, built = found["used"], found["built_for"]
    if "error" in used:
        lines = [("MPI in use", f"none: {used['error']}")]
    else:
        lines = [
            (
                "MPI in use",
                f"{launch.library_name(used['library'])} (MPI {used['standard']}, mpi4py {used['mpi4py']})",
            ),
            ("libmpi loaded", used["path"] or "not found in the memory map"),
            ("thread level", used["thread_level"]),
        ]
    made_for = f"{built.get('version') or built.get('family')}: " if built else ""
    lines += [("built for", f"{made_for}{found['fits']}"), ("mpirun", found["mpirun"])]
    return [*lines, ("GPUs by MPI", taken(found["gpu_memory"]))]


def taken(answer: Mapping[str, Any]) -> str:
    """What an MPI says of the memory of GPUs, in words."""
    if "error" in answer:
        return f"cannot be told: {answer['error']}"
    if answer["taken"] is None:
        return "it does not say whether it takes their memory (RINGDP_MPI_TAKES_GPU_MEMORY)"
    return (
        "it says that it takes their memory"
        if answer["taken"]
        else "it says that it takes none of their memory"
    )


def _gpu_lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    cuda, nccl = found["cuda"], found["nccl"]
    if "driver" in cuda:
        devices = ", ".join(cuda["devices"]) or f"no device ({cuda.get('no_device', 'none visible')})"
        first = f"driver for CUDA {cuda['driver']} ({cuda['path']}), {devices}"
    else:
        first = f"none: {cuda.get('missing') or cuda.get('error')}"
    second = (
        f"{nccl['version']} ({nccl['path']})"
        if "version" in nccl
        else f"none: {nccl.get('missing') or nccl.get('error')}"
    )
    third = "of PyTorch and CuPy; not yet run on a GPU (docs/gpu.md)"
    kernels = ("CUDA kernels", found["cuda_kernels"])
    return [("CUDA", first), kernels, ("NCCL", second), ("GPU tensors", third)]


def _core_lines(cores: Mapping[str, Any]) -> list[tuple[str, str]]:
    limit = "none" if cores["cgroup_limit"] is None else f"{cores['cgroup_limit']:g} cores"
    set_by = "OMP_NUM_THREADS" if cores["OMP_NUM_THREADS"] else "OMP_NUM_THREADS is not set"
    return [
        ("cores", f"{cores['usable']} usable of {cores['of_host']}; cgroup limit: {limit}"),
        ("binding", f"cores {ranges(cores['bound_to'])}"),
        ("threads", f"{cores['threads']} ({set_by})"),
    ]


def _shm_line(shm: Mapping[str, Any]) -> str:
    memfd = f"memfd {'available' if shm['memfd'] else 'NOT available'}"
    if "dev_shm_error" in shm:
        return f"/dev/shm: {shm['dev_shm_error']}; {memfd}"
    size, free = (shm[key] / 2**20 for key in ("dev_shm_bytes", "dev_shm_free_bytes"))
    return f"/dev/shm {size:.0f} MiB, {free:.0f} MiB free; {memfd}"


def _framework_lines(versions: Mapping[str, str | None], ours: Mapping[str, bool]) -> list[tuple[str, str]]:
    lines = []
    for name, version in versions.items():
        if version is None:
            lines.append((name, f"not installed; ringdp.{name} is for it" if ours[name] else "not installed"))
        else:
            by = f"by ringdp.{name}" if ours[name] else f"but this ringdp has no ringdp.{name}"
            lines.append((name, f"{version}, {by}"))
    return lines


def render(found: Mapping[str, Any]) -> str:
    """The report for people: one fact a line."""
    core, launcher = found["core"], found["launcher"]
    started = f"{launcher['launcher']} ({launcher['trace']})" if launcher else "no launcher (no trace of one)"
    lines = [
        ("ringdp", f"{found['ringdp']['version']} ({found['ringdp']['path']})"),
        ("Python", f"{found['python']['version']} ({found['python']['path']})"),
        ("host", f"{found['host']['name']}, {found['host']['system']}"),
        ("started by", started),
        *_mpi_lines(found["mpi"]),
        ("kernels", core.get("kernels") or f"none: {core['error']}"),
        *_core_lines(found["cores"]),
        ("profile", found["profile"]),
        ("shared memory", _shm_line(found["shared_memory"])),
        *_gpu_lines(found),
        *((name, version or "not installed") for name, version in found["packages"].items()),
        *_framework_lines(found["frameworks"], found["integrations"]),
    ]
    text = "\n".join(f"{name:<14} {value}" for name, value in lines)
    if not found["missing"]:
        return f"{text}\n\nNothing that is needed is missing."
    return "\n".join([text, "", "Missing:", *(f"  {line}" for line in found["missing"])])


def _rank_line(rank: int, environ: Mapping[str, str]) -> str:
    bound = ranges(sorted(os.sched_getaffinity(0)))
    threads = launch.threads_of_process(environ)
    return f"rank {rank} on {socket.gethostname()}: cores {bound}, threads {threads}"


def main(argv: Sequence[str]) -> int:
    p = argparse.ArgumentParser(
        prog="ringdp info",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("--json", action="store_true", help="print JSON")
    options = p.parse_args(argv)
    traces = launch.launcher_traces(os.environ)
    if traces and traces.rank:  # rank 0 reports; of the others only what differs between ranks is of interest
        if not options.json:
            print(_rank_line(traces.rank, os.environ))
        return 0
    found = detect.collect(os.environ)
    print(json.dumps(found, indent=2) if options.json else render(found))
    return 0
