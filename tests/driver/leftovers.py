"""What a command left behind: processes, and files in /dev/shm. Both are failures."""

import os
import signal
import time
from pathlib import Path

from driver.environ import MARK

SHM = Path("/dev/shm")
# Open MPI's own: a run of one rank without mpirun leaves it after a clean exit.
NOT_OURS = ("sm_segment",)
PATIENCE = 3.0  # seconds a process may take to go after the command that started it


def end_processes(mark: str) -> list[str]:
    """Ends whatever still runs with this mark in its environment, and returns a line about each."""
    deadline = time.monotonic() + PATIENCE
    while (found := marked_processes(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    lines = []
    for pid in found:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            os.kill(pid, signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            continue
        lines.append(f"process {pid} left over: {' '.join(words)[:200]}")
    return lines


def marked_processes(mark: str) -> list[int]:
    """Those with this mark, or with one of a part of its run: the mark, a hyphen and more."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            # A zombie has no environment any more: it is its parent's to collect, and holds nothing.
            words = (folder / "environ").read_bytes().split(b"\0")
            if any(word == wanted or word.startswith(wanted + b"-") for word in words):
                found.append(int(folder.name))
        except OSError:  # gone meanwhile, or another user's
            continue
    return found


def shared_files() -> set[str]:
    return {p.name for p in SHM.iterdir() if not p.name.startswith(NOT_OURS)} if SHM.is_dir() else set()


def new_shared_files(before: set[str]) -> list[str]:
    """A line about each of this user's files that came since, that no living process of others maps or holds, and that
    does not go soon: jobs beside the tests have some for a moment.
    """
    deadline = time.monotonic() + PATIENCE
    while (found := _unused(shared_files() - before)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def _unused(names: set[str]) -> list[str]:
    lines = []
    for name in sorted(names):
        try:
            mine = (SHM / name).stat().st_uid == os.getuid()
        except FileNotFoundError:
            continue
        if mine and not in_use(str(SHM / name)):
            lines.append(f"file left over: {SHM / name}")
    return lines


def in_use(path: str) -> bool:
    """Whether a process maps or holds the file: then it belongs to something that runs beside the tests."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if any(
                line.endswith(path) for line in (folder / "maps").read_text(errors="replace").splitlines()
            ):
                return True
            if any(os.readlink(fd) == path for fd in (folder / "fd").iterdir()):
                return True
        except OSError:
            continue
    return False
