"""What the figures were measured on and with, in words, without the name of the machine."""

import datetime
import importlib.metadata
import os
import platform
import re
from pathlib import Path


def about(mpi: str, load: float) -> dict[str, str]:
    """Lines for the document; `mpi` is the library's name and version, `load` that before the run."""
    return {
        "date": datetime.date.today().isoformat(),
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
        "caches": ", ".join(_caches()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"Linux {platform.release().split('-')[0]}, huge pages: {_chosen('enabled')}, in shared memory: "
        f"{_chosen('shmem_enabled')}",
        "busy with others": f"{load:.1f} processes in the minute before the last run",
        "MPI": mpi,
        "Python": f"{platform.python_version()}, " + ", ".join(map(_version, ("numpy", "mpi4py", "torch"))),
        "ringdp": importlib.metadata.version("ringdp"),
    }


def load() -> float:
    """How busy the machine is besides: processes that want to run, over the last minute."""
    return os.getloadavg()[0]


def _processor() -> str:
    text = Path("/proc/cpuinfo").read_text()
    found = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _caches() -> list[str]:
    lines = []
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, size = (index / "level").read_text().strip(), (index / "size").read_text().strip()
        if (index / "type").read_text().strip() != "Instruction":
            shared = (index / "shared_cpu_list").read_text().strip()
            lines.append(f"L{level} {size}{'' if shared == '0' else ' shared'}")
    return lines


def _chosen(file: str) -> str:
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage", file).read_text()
    except OSError:
        return "none"
    found = re.search(r"\[(\w+)\]", text)
    return found[1] if found else "unknown"


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"no {package}"
