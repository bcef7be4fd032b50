"""The description of a cluster: hosts, links, and how unlike its ranks are. From Python or from a TOML file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ringdp import _core
from ringdp.errors import UsageError

DRAWS = 32  # of all ranks, over which the slowest rank's time is averaged
INFINITE = float("inf")


@dataclass(frozen=True)
class Link:
    """latency: seconds from the start of a small message to its arrival, software included; bandwidth: bytes a second
    each way."""

    latency: float
    bandwidth: float


@dataclass(frozen=True)
class Cluster:
    """What the model knows of a cluster.

    ranks_per_host: rank r lies on host r // ranks_per_host.
    inside: between two ranks of a host. between: of a host to the others, shared by its ranks.
    control: seconds for two ranks on different hosts to exchange a few words.
    arithmetic: bytes of result that a rank adds a second.
    per_message: seconds of a rank's time for each message it sends or receives.
    eager: messages of up to so many bytes need not ask before they leave.
    cores: of a host, for what its ranks add and handle; 0: one for each rank.
    inside_by_rank: the receiving rank copies what comes from its own host.
    shares_memory: the ranks of a host share memory, and reduce there (tensors of CPUs).
    operation: seconds that each all-reduce takes besides its messages.
    spread: how unlike the ranks are, as the standard deviation of their compute time (a fraction; normal). It stays.
    jitter: the same for what changes from step to step.
    stragglers, slowdown: so many ranks take `slowdown` times as long.
    """

    name: str
    ranks_per_host: int
    inside: Link
    between: Link
    control: float
    arithmetic: float = INFINITE
    per_message: float = 0.0
    eager: float = INFINITE
    cores: int = 0
    inside_by_rank: bool = False
    shares_memory: bool = False
    operation: float = 0.0
    spread: float = 0.0
    jitter: float = 0.0
    stragglers: int = 0
    slowdown: float = 1.0
    seed: int = 0

    @classmethod
    def from_toml(cls, path: str | Path) -> Cluster:
        """Reads a file whose keys are the fields; `inside` and `between` are tables of latency and bandwidth.

        UsageError: names the file and what is wrong in it.
        """
        try:
            table = tomllib.loads(Path(path).read_text())
        except (OSError, ValueError) as error:  # no TOML, no text, a number that is too long
            raise UsageError(f"{path}: {error}") from None
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(table) - known):
            raise UsageError(f"{path}: unknown {', '.join(unknown)} (there are: {', '.join(sorted(known))})")
        try:
            for key in ("inside", "between"):
                table[key] = Link(**table[key])
            return cls(**{"name": Path(path).stem, **table})
        except (KeyError, TypeError) as error:
            raise UsageError(f"{path}: {error}: see ringdp/plan/cluster.py for the fields") from None

    def native(self, ranks_per_host: int | None = None) -> Any:
        """The description as csrc/collectives/timing.h takes it."""
        c = _core.schedules.Cluster()
        c.ranks_per_host = ranks_per_host or self.ranks_per_host
        c.inside = _core.schedules.Link(self.inside.latency, self.inside.bandwidth)
        c.between = _core.schedules.Link(self.between.latency, self.between.bandwidth)
        for name in ("arithmetic", "per_message", "eager", "cores", "inside_by_rank"):
            setattr(c, name, getattr(self, name))
        return c

    def hosts(self, ranks: int) -> int:
        return -(-ranks // self.ranks_per_host)

    def slowest(self, ranks: int) -> float:
        """How many times the mean rank's compute time the slowest of `ranks` takes: seeded, the mean of 32 draws."""
        random = np.random.default_rng(self.seed)
        width = (self.spread**2 + self.jitter**2) ** 0.5
        drawn = 1.0
        if width > 0 and ranks > 1:
            drawn = float(np.mean([1 + width * random.standard_normal(ranks).max() for _ in range(DRAWS)]))
        return max(drawn, self.slowdown) if self.stragglers > 0 and ranks > 1 else drawn
