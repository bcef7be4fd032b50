"""What all ranks of the job make of a folder: which commit all can have, and when the next may begin.

The constructor and the methods that say so are collective: called on all ranks, in the same order.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ringdp import profile, world
from ringdp.commits import files
from ringdp.commits.files import Kind, Put, Refused
from ringdp.commits.folder import Commit, Folder, Manifest
from ringdp.commits.sharers import Sharers
from ringdp.commits.writer import Task, Writer
from ringdp.constants import Max
from ringdp.numpy.ops import operations
from ringdp.state import allgather_object


@dataclass
class Candidate:
    """A commit, as the hosts see it together. The same on all ranks."""

    manifest: Manifest
    seen_by: dict[tuple[Kind, int], list[int]]  # the ranks that can read a file


class Commits:
    """The commits in one folder, and the rank's thread that writes them."""

    def __init__(self, path: Path) -> None:
        """Make the folder, and look who shares it. Collective.

        Raises:
            UsageError: it cannot be made on some host, or belongs to another user there; on every rank.
        """
        self.world = world.current()
        self.folder = Folder(path)
        self._rank, self._ranks = self.world.place.rank, self.world.place.size
        self._sharers = Sharers(self.world, self.folder)
        listed = self._listed()
        self._number = max(number for number, _, _ in listed.values())  # of the last commit that was begun
        self.refused = sum(
            refused for _, _, refused in listed.values()
        )  # files, without a look at what is in them
        found = self._together({first: manifests for first, (_, manifests, _) in listed.items()})
        # Those of which all is there first, and of these the newest.
        found.sort(key=lambda c: (c.manifest.is_whole, c.manifest.commit), reverse=True)
        self.candidates = [candidate for candidate in found if candidate.manifest.is_usable]
        self.unfinished = len(found) - len(self.candidates)
        previous = self.candidates[0].manifest.commit if self.candidates else None
        members = self._sharers.members if self._sharers.writes_state else []
        self.writer = Writer(self.folder, self._rank, members, previous, self._say)
        self._skipped = 0

    # --- committing ---

    def begin(self) -> Commit | None:
        """The next commit; None if some rank still writes the one before: then this one is not written. Collective."""
        busy = np.array([not self.writer.is_ready()], np.int64)
        if operations.allreduce(busy, name="elastic.commit", op=Max).item():
            self._skipped += 1
            if self._skipped == 1 and self._rank == 0:
                self._say(
                    f"a commit is not written, as the one before (number {self._number}) still is: commit less often, "
                    "or to a faster disk (said once)"
                )
            return None
        self._number += 1
        return Commit(self._number, self._sharers.token)

    def write(self, commit: Commit, state: Put, part: Put, sharded: bool) -> None:
        """Let the thread write it. Nothing that they write may change meanwhile."""
        manifest = Manifest(commit, self._ranks, sharded, self.about())
        self.writer.start(Task(manifest, part, state if self._sharers.writes_state else None))

    def about(self) -> dict[str, str]:
        """What the bits of a training depend on beside its script: to be compared when it goes on."""
        placement = hashlib.blake2b(str(self._sharers.first).encode(), digest_size=4).hexdigest()
        return {
            "ranks": str(self._ranks),
            "placement": f"{len(set(self._sharers.first))} hosts ({placement})",
            "profile": profile.described(),
            "RINGDP_ALGORITHM": os.environ.get("RINGDP_ALGORITHM") or "auto",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or "not set",
        }

    # --- finding ---

    def verified(self) -> Iterator[Candidate]:
        """The commits whose every file all ranks together have read and found right, the one to begin from first.
        Collective, for each one that is taken."""
        for candidate in self.candidates:
            bad = [text for texts in allgather_object(self._problems(candidate)) for text in texts]
            if not bad:
                self.writer.previous = candidate.manifest.commit
                yield candidate

    def _problems(self, candidate: Candidate) -> list[str]:
        """Of the files that this rank is to look at; also said on stderr."""
        manifest, bad = candidate.manifest, []
        for (kind, of_rank), contents in manifest.files.items():
            if self.reader(candidate, kind, of_rank) != self._rank:
                continue
            try:
                files.check(self.path_of(manifest.commit), manifest.label(kind, of_rank), contents)
            except Refused as refused:
                bad.append(str(refused))
                self._say(f"commit {manifest.commit.number} is refused: {refused}")
        return bad

    def reader(self, candidate: Candidate, kind: Kind, of_rank: int) -> int:
        """Which rank reads a file for all: the one that has taken its writer's place, if it can."""
        can = candidate.seen_by[kind, of_rank]
        return of_rank if of_rank in can else can[of_rank % len(can)]

    def path_of(self, commit: Commit) -> Path:
        """Of its folder."""
        return self.folder.path / commit.name

    # --- opening ---

    def _listed(self) -> dict[int, tuple[int, list[Manifest], int]]:
        """By first rank of a host: the greatest number there, the manifests, and how many files were refused."""
        mine, refused = None, list[str]()
        if self._sharers.is_first:
            there = self.folder.commits()
            manifests = self.folder.manifests(refused.append)
            mine = there[0].number if there else 0, manifests, len(refused)
        for reason in refused if self._sharers.writes_state else ():
            self._say(f"refused: {reason}")
        return {rank: listed for rank, listed in enumerate(allgather_object(mine)) if listed is not None}

    def _together(self, of_hosts: dict[int, list[Manifest]]) -> list[Candidate]:
        """Each commit, with what all hosts have of it. `of_hosts`: by first rank of each."""
        found: dict[Commit, Candidate] = {}
        for first, manifests in sorted(of_hosts.items()):
            there = [rank for rank in range(self._ranks) if self._sharers.first[rank] == first]
            for manifest in manifests:
                candidate = found.setdefault(manifest.commit, Candidate(manifest, {}))
                candidate.manifest.add(manifest)
                for file in manifest.files:
                    candidate.seen_by.setdefault(file, []).extend(there)
        return list(found.values())

    def _say(self, text: str) -> None:
        print(f"ringdp: rank {self._rank}: {self.folder.path}: {text}", file=sys.stderr, flush=True)
