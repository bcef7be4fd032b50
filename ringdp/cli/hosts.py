"""Hosts and slots: what `-H`, `--hostfile` or the batch system says, and how many ranks a host gets."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


class HostError(ValueError):
    """A list of hosts that cannot be understood; the text says where and what is expected."""


@dataclass(frozen=True)
class Host:
    name: str
    slots: int | None = None  # ranks it takes; None: not said


_SLOTS = "[0-9]{1,6}"
_HOST = re.compile(rf"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9._-]*)(:(?P<slots>{_SLOTS}))?")


def parse_host(text: str) -> Host:
    """`name` or `name:slots`; an IPv6 address stands in brackets."""
    match = _HOST.fullmatch(text.strip())
    if not match or (match["slots"] and int(match["slots"]) == 0):
        raise HostError(f"{text.strip()[:80]!r} is no host: write host:slots, such as node1:4")
    return Host(match["name"], int(match["slots"]) if match["slots"] else None)


def parse_hosts(text: str) -> list[Host]:
    """The list after -H: `node1:4,node2:4`. A host without a number has one slot."""
    hosts = [parse_host(part) for part in text.split(",")]
    return [Host(h.name, h.slots or 1) for h in hosts]


def parse_hostfile(path: str | Path) -> list[Host]:
    """A host a line: `node1`, `node1 slots=4` (Open MPI, Horovod) or `node1:4` (MPICH); # begins a comment."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError as error:
        raise HostError(f"cannot read the hostfile {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise HostError(f"the hostfile {path} is no text") from None
    hosts = []
    for number, line in enumerate(lines, 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        try:
            hosts.append(_hostfile_line(words))
        except HostError as error:
            raise HostError(f"{path}, line {number}: {error}") from None
    if not hosts:
        raise HostError(f"the hostfile {path} names no host")
    return hosts


def _hostfile_line(words: Sequence[str]) -> Host:
    host = parse_host(words[0])
    for word in words[1:]:
        key, _, value = word.partition("=")
        if key == "slots" and re.fullmatch(_SLOTS, value) and int(value) > 0:
            host = Host(host.name, int(value))
        elif key not in ("max_slots", "max-slots"):
            raise HostError(f"{word[:80]!r} is not understood: write `{host.name} slots=4`")
    return host


def allocated_hosts(environ: Mapping[str, str]) -> list[Host]:
    """The hosts of the batch job this runs in, as far as their slots matter; empty without one.

    Names come from PBS only; those of Slurm stand in a compressed list that its launcher expands itself.
    """
    tasks = environ.get("SLURM_TASKS_PER_NODE", "")  # "2(x3),1": three hosts of two, one of one
    groups = [re.fullmatch(rf"({_SLOTS})(?:\(x({_SLOTS})\))?", part) for part in tasks.split(",")]
    if tasks and all(groups):
        return [Host("", int(g[1])) for g in groups if g for _ in range(int(g[2] or 1))]
    try:
        names = Path(environ["PBS_NODEFILE"]).read_text().split()  # a line for each slot
    except (KeyError, OSError, UnicodeDecodeError):
        return []
    return [Host(name, slots) for name, slots in Counter(names).items()]


def total_slots(hosts: Sequence[Host]) -> int | None:
    """All slots together, or None when a host does not say how many it has."""
    slots = [host.slots for host in hosts]
    return None if not slots or None in slots else sum(s or 0 for s in slots)


def ranks_per_host(ranks: int, hosts: Sequence[Host]) -> int:
    """The largest number of ranks one host gets when slots are filled in order (no hosts: all are on this one)."""
    if not hosts:
        return ranks
    slots = total_slots(hosts)
    if slots is None or slots < ranks:
        return -(-ranks // len(hosts))
    fullest, left = 0, ranks
    for host in hosts:
        fullest = max(fullest, min(left, host.slots or 0))
        left -= min(left, host.slots or 0)
    return fullest
