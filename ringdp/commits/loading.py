"""A commit on its way to all ranks: each file is read by one of them, and sent to the others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ringdp.commits import files
from ringdp.commits.agreed import Candidate, Commits
from ringdp.commits.files import Kind, Refused
from ringdp.errors import UsageError
from ringdp.numpy.ops import operations
from ringdp.state import broadcast_object

Payload = bytes | bytearray | memoryview


class Loading:
    """One commit. `state()` and `parts()` are collective."""

    def __init__(self, commits: Commits, candidate: Candidate) -> None:
        self._commits, self._candidate = commits, candidate
        self.manifest = candidate.manifest
        self._rank = commits.world.place.rank

    def state(self) -> Payload:
        """What all ranks have alike."""
        writer = min(rank for kind, rank in self.manifest.files if kind == Kind.state)
        return self._sent(Kind.state, writer)

    def own(self) -> Payload | None:
        """The part of the rank that had this one's number, if as many ranks as there are have committed and this one
        can read it."""
        mine = Kind.part, self._rank
        as_many = self.manifest.ranks == self._commits.world.place.size
        if not as_many or self._rank not in self._candidate.seen_by.get(mine, ()):
            return None
        return self._read(*mine)

    def parts(self) -> Iterator[tuple[int, Payload]]:
        """The parts of all ranks that have committed, one after the other, with their numbers."""
        for rank in range(self.manifest.ranks):
            if (Kind.part, rank) in self.manifest.files:
                yield rank, self._sent(Kind.part, rank)

    def _read(self, kind: Kind, of_rank: int) -> bytearray:
        label = self.manifest.label(kind, of_rank)
        path = self._commits.path_of(self.manifest.commit)
        try:
            return files.read(path, label, self.manifest.files[kind, of_rank])
        except Refused as refused:  # it was right a moment ago
            raise UsageError(f"rank {self._rank}: {refused}") from None

    def _sent(self, kind: Kind, of_rank: int) -> Payload:
        reader = self._commits.reader(self._candidate, kind, of_rank)
        data, problem = bytearray(), None
        if reader == self._rank:
            try:
                data = self._read(kind, of_rank)
            except UsageError as error:
                problem = str(error)
        problem = broadcast_object(problem, reader, "elastic.resume")
        if problem is not None:
            raise UsageError(problem)
        sent = np.frombuffer(data, np.uint8) if data else np.empty(self._size(kind, of_rank), np.uint8)
        operations.broadcast_(sent, reader, "elastic.resume.data")
        return sent.data

    def _size(self, kind: Kind, of_rank: int) -> int:
        return self.manifest.files[kind, of_rank].size
