"""What a `State` does with a folder of commits: when each is written, and how it goes on from one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ringdp import world
from ringdp.commits.agreed import Commits
from ringdp.commits.files import Put
from ringdp.commits.folder import VARIABLE, Manifest
from ringdp.commits.loading import Loading, Payload
from ringdp.constants import Min
from ringdp.errors import UsageError
from ringdp.numpy.ops import operations

_folders: dict[Path, int] = {}  # so many states have been given this one


@dataclass(frozen=True)
class Payloads:
    """What is committed: nothing of it changes until it was written."""

    state: Put  # what all ranks have alike
    part: Put  # what this one has
    sharded: bool = False  # all parts are needed to go on


class Holder(Protocol):
    """A state that can be written and read."""

    def _payloads(self) -> Payloads:
        """Of what was saved last, and of this moment's random numbers."""
        ...

    def _put_state(self, state: Payload) -> None:
        """Collective, as are the following."""
        ...

    def _fits(self, own: Payload) -> bool:
        """The part of the rank that had this one's number is all that this one needs. Local."""
        ...

    def _put_parts(self, parts: Iterable[tuple[int, Payload]], as_before: bool) -> None:
        """`as_before`: of this rank alone, which is what it was. Otherwise of all ranks that have committed."""
        ...


def folder_for(given: str | os.PathLike[str] | None) -> Path | None:
    """Where a state is committed: what was given, else what RINGDP_COMMIT_DIR says; None: nowhere.

    States that are made one after the other, in the same order on all ranks and after each restart, get folders of
    their own: the first the folder itself, the others `state-1`, … in it.
    """
    text = _named(given)
    if not text:
        return None
    path = Path(text).absolute()
    number = _folders.get(path, 0)
    _folders[path] = number + 1
    return path / f"state-{number}" if number else path


def is_wanted(given: str | os.PathLike[str] | None) -> bool:
    """A state that is given this would be committed to a folder."""
    return bool(_named(given))


def _named(given: str | os.PathLike[str] | None) -> str:
    return os.environ.get(VARIABLE, "") if given is None else os.fspath(given)


class Kept:
    """The commits of one state.

    Args:
        path: the folder.
        holder: the state.
    """

    def __init__(self, path: Path, holder: Holder) -> None:
        self._path, self._holder = path, holder
        self._commits: Commits | None = None
        self._begun = False  # something was committed, or gone on from

    def write(self) -> None:
        """Let the thread write what was saved last, unless it is still writing. Collective."""
        self._begun = True
        commits = self._open()
        commit = commits.begin()
        if commit is not None:
            payloads = self._holder._payloads()
            commits.write(commit, payloads.state, payloads.part, payloads.sharded)

    def resume(self) -> int | None:
        """Go on from the newest commit that can be used; its number, or None. Collective.

        Raises:
            UsageError: there are some, and none can be used; or it is of another state than this.
        """
        if self._begun:
            return None
        self._begun = True
        commits = self._open()
        candidate = next(commits.verified(), None)
        if candidate is None:
            self._refuse_to_forget(commits)
            return None
        loading = Loading(commits, candidate)
        self._holder._put_state(loading.state())
        own = loading.own()
        fits = own is not None and self._holder._fits(own)
        mine = np.array([fits], np.int64)
        if operations.allreduce(mine, name="elastic.resume", op=Min).item():
            assert own is not None
            self._holder._put_parts([(world.rank(), own)], True)
        else:
            self._holder._put_parts(loading.parts(), False)
        self._tell(candidate.manifest, commits.about())
        return candidate.manifest.commit.number

    def _refuse_to_forget(self, commits: Commits) -> None:
        """None can be used. All ranks agree whether there was one that could be."""
        if commits.candidates or commits.refused or commits.unfinished > 1:
            raise UsageError(
                f"rank {world.rank()}: there are commits in {self._path}, and none can be used (stderr says why). "
                "To begin anew, delete the folder"
            )
        if commits.unfinished and world.rank() == 0:
            print(
                f"ringdp: rank 0: the first commit in {self._path} was not finished: beginning anew",
                file=sys.stderr,
                flush=True,
            )

    def flush(self, seconds: float | None) -> bool:
        """See `State.flush`."""
        return self._commits is None or self._commits.writer.flush(seconds)

    def _open(self) -> Commits:
        if self._commits is None or self._commits.world is not world.current():
            if self._commits is not None:
                self._commits.writer.close()
            self._commits = Commits(self._path)
        return self._commits

    def _tell(self, manifest: Manifest, now: dict[str, str]) -> None:
        """A line from rank 0."""
        if world.rank() != 0:
            return
        differs = [
            f"{what} (was {then}, is {now.get(what)})"
            for what, then in manifest.about.items()
            if now.get(what) != then
        ]
        if not manifest.is_whole:
            differs.append("files of some ranks are missing, and with them their random numbers")
        bits = f", but not bit for bit: {'; '.join(differs)}" if differs else ""
        print(
            f"ringdp: rank 0: going on from commit {manifest.commit.number} of {self._path}{bits}",
            file=sys.stderr,
            flush=True,
        )
