"""Which ranks see the same folder of commits."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from ringdp.commits.files import Refused
from ringdp.commits.folder import Folder
from ringdp.errors import UsageError
from ringdp.state import allgather_object
from ringdp.world import World


class Sharers:
    """Of this rank, which shares the folder with the ranks of its host, and with those of all hosts that mount it.

    Found out by trying: the first rank of each host makes a file there, and looks which of the others' it sees.
    """

    def __init__(self, world: World, folder: Folder) -> None:
        """Make the folder. Collective.

        Raises:
            UsageError: it cannot be made on some host, or belongs to another user there; on every rank.
        """
        self._folder, self._rank, ranks = folder, world.place.rank, world.place.size
        firsts: dict[int, int] = {}
        hosts = getattr(world.job, "hosts", None) or [0] * ranks
        self.first = [
            firsts.setdefault(host, rank) for rank, host in enumerate(hosts)
        ]  # by rank: that of its host
        self.is_first = self.first[self._rank] == self._rank
        self.token = self._made()  # this job's
        visible = self._probed()
        mine = visible[self.first[self._rank]]
        self.members = [rank for rank in range(ranks) if visible[self.first[rank]] == mine]
        self.writes_state = min(self.members) == self._rank

    def _made(self) -> int:
        """The folder is there on all hosts; this job's token."""
        problem, token = "", secrets.randbits(64)
        if self.is_first:
            try:
                self._folder.make()
            except OSError as error:
                problem = f"{self._folder.path}: {error.strerror}"
            except Refused as refused:
                problem = str(refused)
        told = allgather_object((problem, token))
        for rank, (problem, _) in enumerate(told):
            if problem:
                raise UsageError(
                    f"rank {self._rank}: there can be no commits in this folder: on rank {rank}, {problem}"
                )
        return int(told[0][1])

    def _probed(self) -> dict[int, tuple[int, ...]]:
        """By first rank of a host: those of all hosts whose files it sees."""
        is_first, mine = self.is_first, self._probe(self._rank)
        problem = ""
        if is_first:
            try:
                os.close(os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            except OSError as error:
                problem = f"{mine}: {error.strerror}"
        for rank, text in enumerate(allgather_object(problem)):
            if text:
                raise UsageError(f"rank {self._rank}: nothing can be written here: on rank {rank}, {text}")
        seen = tuple(r for r in sorted(set(self.first)) if self._probe(r).exists()) if is_first else ()
        visible = dict(enumerate(allgather_object(seen)))
        if is_first:
            with contextlib.suppress(OSError):
                mine.unlink()
        return visible

    def _probe(self, rank: int) -> Path:
        return self._folder.path / f".probe-{self.token:016x}-{rank}"
