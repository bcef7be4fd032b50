"""The thread that writes this rank's files of a commit, one commit at a time.

Nothing is sent: ranks tell each other by the files themselves. A file has its name when it is whole and on the disk, so
the rank that writes the manifest looks for the names of all others. A rank that could not write its file leaves an
empty one, `failed-<rank>`, so that nobody waits. Training goes on meanwhile, and an exchange that fails, or a rank
that dies, does not disturb what is being written.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ringdp.commits import files
from ringdp.commits.files import Contents, Kind, Put, Refused
from ringdp.commits.folder import Commit, Folder, Manifest

PATIENCE = 600.0  # seconds that the files of others may take
AT_EXIT = 2.0  # seconds that the interpreter's end waits for them: others may have failed


@dataclass(frozen=True)
class Task:
    """What one rank writes of a commit: its part, and the state if it is the one to do that."""

    manifest: Manifest  # without files
    part: Put
    state: Put | None = None


class _GivenUp(Exception):
    """The commit does not count; the text says why."""


class Writer:
    """Of one rank.

    Args:
        folder: where.
        rank: this one's number.
        members: the ranks whose files this one puts into a manifest, itself among them; nobody: another rank does it.
        previous: the last good commit, which is kept until two newer ones are there.
        say: is told why a commit does not count.
    """

    def __init__(
        self,
        folder: Folder,
        rank: int,
        members: Sequence[int],
        previous: Commit | None,
        say: Callable[[str], object],
        patience: float = PATIENCE,
    ) -> None:
        self._folder, self._rank, self._members, self._say = folder, rank, members, say
        self.previous, self._patience = previous, patience
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._task: Task | None = None
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self.written: Commit | None = (
            None  # the last of which this rank's own files, and its manifest, are on the disk
        )

    def is_ready(self) -> bool:
        """Nothing is being written."""
        with self._changed:
            return self._task is None

    def start(self, task: Task) -> None:
        """Write this next. Only where `is_ready()`."""
        with self._changed:
            assert self._task is None
            self._task = task
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="ringdp commits", daemon=True)
                self._thread.start()
                atexit.register(self.close)
            self._changed.notify_all()

    def flush(self, seconds: float | None = None) -> bool:
        """Wait until what was started is on the disk, or has been given up: whether all is."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._task is None, self._patience if seconds is None else seconds
            )

    def close(self, seconds: float = AT_EXIT) -> None:
        """Finish what is being written, but wait no longer than this for other ranks."""
        atexit.unregister(self.close)
        if self._pid != os.getpid() or self._thread is None:
            return  # the thread is not in a forked child
        self.flush(seconds)
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(self._patience)
        self._thread = None

    # --- in the thread ---

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._task is not None or self._closing.is_set())
                task = self._task
            if task is None:
                return
            self._try(task)
            with self._changed:
                self._task = None
                self._changed.notify_all()

    def _try(self, task: Task) -> None:
        commit = task.manifest.commit
        path = self._folder.path / commit.name
        try:
            self._write(task)
            self.written = commit
        except _GivenUp as error:
            if not self._closing.is_set():
                self._say(f"commit {commit.number} does not count: {error}")
        except Exception as error:  # a full disk, or an object that cannot be pickled
            with contextlib.suppress(OSError):
                os.close(
                    os.open(path / f"failed-{self._rank}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                )
            self._say(f"commit {commit.number} does not count: {type(error).__name__}: {error}")

    def _write(self, task: Task) -> None:
        manifest = task.manifest
        path = self._folder.begin(manifest.commit)
        files.write(path, manifest.label(Kind.part, self._rank), task.part)
        if task.state is not None:
            manifest.files[Kind.state, self._rank] = files.write(
                path, manifest.label(Kind.state, self._rank), task.state
            )
        if not self._members:
            return
        manifest.files |= self._parts(path, manifest)
        self._folder.write_manifest(manifest, self._rank)
        kept = {manifest.commit} | ({self.previous} if self.previous else set())
        self._folder.keep(kept, manifest.commit.number)
        self.previous = manifest.commit

    def _parts(self, path: Path, manifest: Manifest) -> dict[tuple[Kind, int], Contents]:
        """Those of all members, when all are there."""
        found: dict[tuple[Kind, int], Contents] = {}
        missing, pause, end = set(self._members), 0.002, time.monotonic() + self._patience
        while True:
            names = set(os.listdir(path))
            for rank in sorted(missing):
                label = manifest.label(Kind.part, rank)
                if label.name in names:
                    found[Kind.part, rank] = self._contents_of(path, label)
                    missing.remove(rank)
                elif f"failed-{rank}" in names:
                    raise _GivenUp(f"rank {rank} could not write its part")
            if not missing:
                return found
            if time.monotonic() > end or self._closing.is_set():
                raise _GivenUp(f"rank {min(missing)} has not written its part in {self._patience:g} s")
            self._closing.wait(pause)
            pause = min(2 * pause, 0.25)

    def _contents_of(self, path: Path, label: files.Label) -> Contents:
        try:
            return files.contents_of(path, label)
        except Refused as error:
            raise _GivenUp(str(error)) from None
