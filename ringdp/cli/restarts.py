"""`ringdp run --restarts K`: a job that has failed is started again, from its last commit (docs/elastic.md)."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ringdp.cli.elastic import LOST
from ringdp.commits import folder as commits
from ringdp.commits.folder import VARIABLE, Folder, Manifest

ATTEMPT = "RINGDP_RESTART"  # for the ranks: 0, then 1, … after each restart
FIRST_PAUSE, LONGEST_PAUSE = (
    0.5,
    30.0,
)  # seconds before a restart; twice as long after each without a new commit
# What a job ends with that was asked to end: by Ctrl-C, or by SIGTERM and what stands for it.
ASKED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


@dataclass(frozen=True)
class Ended:
    """How an attempt ended."""

    code: int
    asked: bool  # somebody has sent a signal that ends the job

    @property
    def has_failed(self) -> bool:
        """It may be started again."""
        return not self.is_done and not self.asked and self.code not in ASKED

    @property
    def is_done(self) -> bool:
        """It has come to its end, with all ranks or without some."""
        return self.code in (0, LOST)

    def __str__(self) -> str:
        try:
            name = f" ({signal.Signals(self.code - 128).name})" if self.code > 128 else ""
        except ValueError:
            name = ""
        return f"exit code {self.code}{name}"


def default_folder(program: Sequence[str]) -> Path:
    """In the working directory, by the program and its arguments: the same command goes on, another begins anew."""
    digest = hashlib.blake2b("\0".join(program).encode(errors="surrogateescape"), digest_size=4).hexdigest()
    return Path("ringdp-commits", f"{Path(program[0]).stem}-{digest}").absolute()


def variables(
    restarts: int | None, commit_dir: str | None, program: Sequence[str], environ: Mapping[str, str]
) -> dict[str, str]:
    """What the ranks are told by the options."""
    if commit_dir is not None:
        folder = Path(commit_dir).absolute()
    elif restarts is None:
        return {}
    else:
        given = environ.get(VARIABLE)
        folder = Path(given).absolute() if given else default_folder(program)
    attempt = {} if restarts is None else {ATTEMPT: "0"}
    return {VARIABLE: str(folder), **attempt}


class Restarts:
    """The attempts of one job.

    Args:
        folder: where its ranks commit.
        most: so many restarts in a row, without a new commit in between.
        say: prints a line.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        folder: Path,
        most: int,
        say: Callable[[str], None],
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._folder, self._most, self._say, self._sleep = folder, most, say, sleep
        self._last = commits.newest(folder)

    def run(self, attempt: Callable[[int], Ended | None]) -> int:
        """Start `attempt(0)`, then `attempt(1)`, … as long as they fail; the exit code of the last one.
        (None: it could not be started.)"""
        if self._last is not None:
            self._say(f"going on from {self._describe(self._last)}; to begin anew, delete the folder")
        number, in_vain, ended = 0, 0, Ended(2, False)
        while True:
            before, now = ended, attempt(number)
            if now is None:
                return before.code
            ended = now
            if ended.is_done:
                remove(self._folder)
            if not ended.has_failed:
                return ended.code
            in_vain = 0 if self._has_new_commit() else in_vain
            if in_vain == self._most:
                self._say(f"the job ended with {ended}: giving up, as {self._why_not()}")
                return ended.code
            number, in_vain = number + 1, in_vain + 1
            pause = min(FIRST_PAUSE * 2 ** (in_vain - 1), LONGEST_PAUSE)
            self._say(
                f"the job ended with {ended}: restart {number} ({in_vain} of {self._most} without a new commit) in "
                f"{pause:g} s, from {self._describe(self._last)}"
            )
            try:
                self._sleep(pause)
            except KeyboardInterrupt:
                return 128 + signal.SIGINT

    def _has_new_commit(self) -> bool:
        """One of another state: a script that commits before it does anything makes no progress by that."""
        before, self._last = self._last, commits.newest(self._folder)
        return self._last is not None and (before is None or before.state != self._last.state)

    def _why_not(self) -> str:
        if self._most == 0:
            return "it may not be restarted (--restarts 0)"
        times = "a restart has" if self._most == 1 else f"{self._most} restarts have"
        return f"{times} brought no new commit; the last is {self._describe(self._last)}"

    def _describe(self, found: Manifest | None) -> str:
        if found is None:
            return f"the beginning, as there is no commit in {self._folder}"
        ranks = "1 rank" if found.ranks == 1 else f"{found.ranks} ranks"
        return f"commit {found.commit.number} of {ranks} in {self._folder}"


def remove(folder: Path) -> None:
    """The job is done: its commits are of no use. What is not a commit stays, and so does a folder that has it."""
    for path in (*folder.glob("state-*"), folder):
        for commit in Folder(path).commits():
            Folder(path).delete(commit)
        with contextlib.suppress(OSError):
            for probe in path.glob(".probe-*"):  # of ranks that were killed while they looked who sees them
                probe.unlink()
            os.rmdir(path)
    if folder.parent.name == "ringdp-commits":
        with contextlib.suppress(OSError):
            os.rmdir(folder.parent)
