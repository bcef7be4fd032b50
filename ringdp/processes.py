"""Processes as the kernel shows them in /proc: their states, when they began, their children, their signals.

Any process may end while it is looked at: then there is none. Its name may hold whatever it likes, spaces, brackets and
line ends too.
"""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Process:
    """What /proc/PID/stat says."""

    pid: int
    state: str  # the kernel's letter: R, S, D, T, Z, …
    parent: int
    born: int  # in ticks since the machine has started: a number may be given again

    @property
    def has_ended(self) -> bool:
        """Its parent alone has not collected it yet."""
        return self.state in "ZXx"

    @property
    def is_stopped(self) -> bool:
        """By SIGSTOP and its kind, or by a debugger."""
        return self.state in "Tt"


@dataclass(frozen=True)
class Signals:
    """What a process does with signals: a bit for each, from SIGHUP = 1 on."""

    caught: int = 0
    ignored: int = 0
    blocked: int = 0

    def catches(self, number: int) -> bool:
        """Whether it has a handler for this one."""
        return bool(self.caught >> (number - 1) & 1)


def find(pid: int) -> Process | None:
    """The process of this number; None if there is none."""
    return parse_stat(_read(f"/proc/{pid}/stat"))


def parse_stat(text: bytes) -> Process | None:
    """Of what is in /proc/PID/stat; None where that is nothing, or something else."""
    number, _, rest = text.partition(b" (")
    fields = rest.rpartition(b") ")[2].split()
    if len(fields) < 20 or len(fields[0]) != 1:
        return None
    try:
        return Process(int(number), fields[0].decode(), int(fields[1]), int(fields[19]))
    except ValueError:
        return None


def children(pid: int) -> list[int]:
    """The processes that it has started, or inherited, and that have not ended."""
    found = (find(int(name)) for name in os.listdir("/proc") if name.isdecimal())
    return [one.pid for one in found if one is not None and one.parent == pid and not one.has_ended]


def signals(process: int | str) -> Signals:
    """Of a process by its number, or of "self"; none at all if it is gone."""
    return parse_status(_read(f"/proc/{process}/status"))


def parse_status(text: bytes) -> Signals:
    """Of what is in /proc/PID/status. (Its first line is the name; the kernel writes a line end in it as \\n.)"""
    words: dict[bytes, int] = {}
    for line in text.splitlines()[1:]:
        name, _, value = line.partition(b":")
        if name in (b"SigCgt", b"SigIgn", b"SigBlk"):
            try:
                words[name] = int(value, 16)
            except ValueError:
                return Signals()
    return Signals(words.get(b"SigCgt", 0), words.get(b"SigIgn", 0), words.get(b"SigBlk", 0))


def space() -> int:
    """The process namespace of this process, in which numbers mean what they mean here; 0: not known."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:  # gone, before it was opened or while it was read; or hidden
        return b""
