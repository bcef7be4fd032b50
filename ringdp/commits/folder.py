"""The commits that a folder holds.

    DIR/commit-00000012-<token>/    a commit, by its number and the token of the job that wrote it
        state-0                     what all ranks have alike
        part-0, part-1, …           what each has for itself
        manifest-0                  names them all, with size and checksum

Ranks that see one folder share it, and the lowest of them writes state and manifest: one of each where all hosts
mount the same folder. Where hosts have folders of their own, each has state, manifest and the parts of its own ranks,
and what the manifests of all hosts name is put together when a commit is looked for. Tokens are drawn anew by each
job, so what an earlier one left behind is never taken for a file of this one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ringdp.commits import files
from ringdp.commits.files import Contents, Kind, Label, Refused

VARIABLE = "RINGDP_COMMIT_DIR"
MOST_OF_A_MANIFEST = 64 << 20  # bytes: of a million ranks

_NAME = re.compile(r"commit-([0-9]{8,18})-([0-9a-f]{16})")
_MANIFEST = re.compile(r"manifest-(0|[1-9][0-9]{0,8})")

Said = Callable[[str], object]


@dataclass(frozen=True, order=True)
class Commit:
    """Which one."""

    number: int
    token: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"commit-{self.number:08d}-{self.token:016x}"


@dataclass
class Manifest:
    """What belongs to a commit: as one manifest says, or those of several hosts together."""

    commit: Commit
    ranks: int
    sharded: bool = False  # without the parts of all ranks, state is missing
    about: dict[str, str] = field(default_factory=dict)  # what bits depend on
    files: dict[tuple[Kind, int], Contents] = field(default_factory=dict)

    def label(self, kind: Kind, rank: int) -> Label:
        """Of one of its files."""
        return Label(self.commit.number, self.commit.token, kind, rank)

    def add(self, other: Manifest) -> None:
        """What another host has of the same commit."""
        self.files = {**other.files, **self.files}

    @property
    def state(self) -> set[Contents]:
        """Size and checksum of what all ranks have alike: of two commits the same if nothing has changed."""
        return {contents for (kind, _), contents in self.files.items() if kind == Kind.state}

    @property
    def is_usable(self) -> bool:
        """All state is there."""
        return bool(self.state) and (not self.sharded or self._has_all_parts)

    @property
    def is_whole(self) -> bool:
        """All is there."""
        return self.is_usable and self._has_all_parts

    @property
    def _has_all_parts(self) -> bool:
        return all((Kind.part, rank) in self.files for rank in range(self.ranks))


class Folder:
    """A folder of commits."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def make(self) -> None:
        """It is there, and ours.

        Raises:
            OSError: it cannot be made.
            Refused: it belongs to another user.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.mkdir(mode=0o700, exist_ok=True)
        files.refuse_others(self.path.stat(), str(self.path))

    def begin(self, commit: Commit) -> Path:
        """The folder of a new commit. Several ranks may begin it."""
        path = self.path / commit.name
        path.mkdir(mode=0o700, exist_ok=True)
        files.refuse_others(path.lstat(), str(path))
        files.sync_folder(self.path)
        return path

    def commits(self) -> list[Commit]:
        """All that have a folder, complete or not, the newest first."""
        try:
            names = os.listdir(self.path)
        except OSError:
            return []
        found = [match for match in map(_NAME.fullmatch, names) if match]
        return sorted((Commit(int(m[1]), int(m[2], 16)) for m in found), reverse=True)

    def manifests(self, say: Said = bool) -> list[Manifest]:
        """Of the commits that have some, the newest first, with those of their files that are there, of the right
        size and ours. (Payloads are not read.) `say` is told what is refused."""
        found = []
        for commit in self.commits():
            merged: Manifest | None = None
            for manifest in self._manifests_of(commit, say):
                if merged is None:
                    merged = manifest
                elif merged.ranks == manifest.ranks:
                    merged.add(manifest)
            if merged is not None:
                merged.files = self._those_there(merged, say)
                found.append(merged)
        return found

    def write_manifest(self, manifest: Manifest, rank: int) -> None:
        """The commit counts from now on."""
        said = {
            "ranks": manifest.ranks,
            "sharded": manifest.sharded,
            "about": manifest.about,
            "files": [[int(kind), r, c.size, c.crc] for (kind, r), c in sorted(manifest.files.items())],
        }
        text = json.dumps(said).encode()
        label = manifest.label(Kind.manifest, rank)
        files.write(self.path / manifest.commit.name, label, lambda sink: sink.write(text))

    def keep(self, kept: Collection[Commit], below: int) -> None:
        """Delete all others of lower numbers."""
        for commit in self.commits():
            if commit.number < below and commit not in kept:
                self.delete(commit)

    def delete(self, commit: Commit) -> None:
        """The manifest goes first, so that it counts no more. What cannot be deleted stays."""
        path = self.path / commit.name
        with contextlib.suppress(OSError):
            for name in sorted(os.listdir(path), key=lambda name: not name.startswith("manifest")):
                os.unlink(path / name)
            os.rmdir(path)

    def _manifests_of(self, commit: Commit, say: Said) -> Iterable[Manifest]:
        path = self.path / commit.name
        try:
            files.refuse_others(path.lstat(), str(path))
            names = sorted(os.listdir(path))
        except OSError:
            return
        except Refused as refused:
            say(str(refused))
            return
        for match in filter(None, map(_MANIFEST.fullmatch, names)):
            try:
                yield _read_manifest(path, commit, int(match[1]))
            except Refused as refused:
                say(str(refused))

    def _those_there(self, manifest: Manifest, say: Said) -> dict[tuple[Kind, int], Contents]:
        path, there = self.path / manifest.commit.name, {}
        for (kind, rank), contents in manifest.files.items():
            try:
                files.contents_of(path, manifest.label(kind, rank), contents)
                there[kind, rank] = contents
            except Refused as refused:
                say(str(refused))
        return there


def newest(path: Path) -> Manifest | None:
    """Of a folder, and of the folders `state-*` in it: the commit that a job would probably begin from."""
    found = [
        manifest
        for folder in (path, *sorted(path.glob("state-*")))
        for manifest in Folder(folder).manifests()
        if manifest.is_usable
    ]
    return max(found, key=lambda manifest: manifest.commit, default=None)


def _read_manifest(folder: Path, commit: Commit, rank: int) -> Manifest:
    """Raises Refused."""
    label = Label(commit.number, commit.token, Kind.manifest, rank)
    text = files.read(folder, label, at_most=MOST_OF_A_MANIFEST)
    try:
        return parse_manifest(commit, json.loads(text))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Refused(f"{folder / label.name}: it is no manifest ({error})") from None


def parse_manifest(commit: Commit, said: Any) -> Manifest:
    """Raises ValueError, TypeError or KeyError for what no manifest says."""
    if not isinstance(said, Mapping):
        raise TypeError("not a mapping")
    ranks, about, listed = said["ranks"], said["about"], said["files"]
    if type(ranks) is not int or not 0 < ranks < 1 << 31:
        raise ValueError("`ranks` is no number of ranks")
    if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
        raise TypeError("`about` is no mapping of texts")
    if not isinstance(listed, list) or not isinstance(said["sharded"], bool):
        raise TypeError("`files` is no list, or `sharded` no truth value")
    found = {}
    for entry in listed:
        if not isinstance(entry, list) or len(entry) != 4 or not all(type(n) is int for n in entry):
            raise TypeError("a file is not described by four numbers")
        kind, rank, size, crc = entry
        if not 0 <= rank < ranks or size < 0 or not 0 <= crc < 1 << 32:
            raise ValueError("a rank, size or checksum that cannot be")
        found[Kind(kind), rank] = Contents(size, crc)
    return Manifest(commit, ranks, said["sharded"], about, found)
