"""A job that a test has started on several hosts, until nothing of it is left."""

from __future__ import annotations

import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from driver.environ import MARK
from driver.leftovers import end_processes, marked_processes

LIMIT = 90.0  # seconds, for anything that is waited for


class Started:
    """What its processes print goes to `log` in `folder`, where they run. With the block all of them end."""

    def __init__(self, command: Sequence[str], folder: Path, env: Mapping[str, str]) -> None:
        # Of its processes on all hosts, the launcher's as well.
        self.mark = f"{env.get(MARK, '')}-{uuid.uuid4().hex}"
        self.log = folder / "log"
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env={**env, MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        end_processes(self.mark)

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, what: str, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT
        while not is_so():
            assert time.monotonic() < deadline, f"{what} does not come\n{self.output}"
            time.sleep(0.01)

    def end(self) -> int:
        """The exit code of what was started; other processes may still be there."""
        return self.process.wait(LIMIT)

    def end_of_all(self) -> int:
        """The exit code, when no process is left."""
        code = self.end()
        self.wait_for_processes()
        return code

    def wait_for_processes(self) -> None:
        """Until none is left, on any host."""
        self.wait_for("the end of all processes", lambda: not marked_processes(self.mark))
