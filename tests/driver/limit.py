"""Runs one command within a hard limit of time, with signs of life meanwhile."""

import os
import shlex
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

SIGN_OF_LIFE = 20.0  # seconds between two lines about a command that is still running
GRACE = 5.0  # seconds between SIGTERM, on which mpirun ends its ranks, and SIGKILL


@dataclass(frozen=True)
class Outcome:
    code: int | None  # None: it was ended at its limit
    seconds: float


def run_limited(command: list[str], env: dict[str, str], cwd: Path, log: Path, limit: float) -> Outcome:
    """Runs `command` in a session of its own with no standard input; what it writes goes to `log`."""
    began = time.monotonic()
    with log.open("wb") as out:
        out.write(f"$ {shlex.join(command)}\n".encode())
        out.flush()
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = wait(process, began, limit)
        finally:
            end_group(process)
    return Outcome(code, time.monotonic() - began)


def default_signals() -> None:
    """For a process that is to get signals, before it begins: a shell that starts the tests in the background ignores
    these for all that it starts."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def wait(process: subprocess.Popen[bytes], began: float, limit: float) -> int | None:
    said = began
    while True:
        left = began + limit - time.monotonic()
        if left <= 0:
            return None
        try:
            return process.wait(min(left, 1.0))
        except subprocess.TimeoutExpired:
            pass
        if time.monotonic() - said >= SIGN_OF_LIFE:
            said = time.monotonic()
            print(f"   ... {said - began:.0f} s of at most {limit:.0f} s", flush=True)


def end_group(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                continue
