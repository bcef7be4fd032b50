"""Reading flight recorders: what csrc/guard/flight.h lays out, from files that may be torn, foreign or made up.

Nothing in a file is trusted: sizes are checked before anything is read, texts are cut at their ends, numbers that name
something are looked up with a default.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

from ringdp import processes
from ringdp.errors import UsageError

MAGIC = 0x3154_4C46_5044_4952
VERSION = 1
HEAD_BYTES, RECORD_BYTES, RECORDS, CALLS = 4096, 120, 4096, 8
SUFFIX = ".flight"
STACKS_AT = HEAD_BYTES + RECORDS * RECORD_BYTES
STACKS = 64 << 10
FILE_BYTES = STACKS_AT + STACKS
KINDS = ("allreduce", "reducescatter", "broadcast", "allgather", "alltoall", "barrier", "open_plan", "join")
VOTE = FAILED = 255
MOST_RANKS = 1 << 22
STAGES = ("SUBMIT", "AGREE", "PACK", "REDUCE", "UNPACK", "DONE")
STANDINGS = ("starting", "running", "leaving", "ended")

_WHO = struct.Struct("<Q4IQ4i2iQQqII64s64s")
HOW = struct.Struct("<I4xQqqq")
_CALL = struct.Struct("<q56s")
_END = struct.Struct("<iiQqqII512s1024s")
RECORD = struct.Struct("<QQQQqqqihBB56s")
_NUMBERS = struct.Struct("<" + f"Q{RECORD_BYTES - 8}x" * RECORDS)
HOW_AT = -(-_WHO.size // 64) * 64
_CALLS_AT = HOW_AT + HOW.size
_END_AT = -(-(_CALLS_AT + CALLS * _CALL.size) // 64) * 64
assert RECORD.size == RECORD_BYTES


@dataclass(frozen=True)
class Record:
    """One operation, or a vote, of a rank. Times: nanoseconds of that host's CLOCK_MONOTONIC."""

    number: int
    key: int
    sequence: int
    bytes: int
    submitted: int
    changed: int
    step: int
    process_set: int
    lane: int
    kind: str
    stage: str
    name: str

    @property
    def has_ended(self) -> bool:
        """Whether it is done, or has failed."""
        return self.stage in ("DONE", "FAILED")

    @property
    def label(self) -> str:
        """As in errors: "allreduce 'x'", "bucket 3 of plan 1", "the vote of plan 1"."""
        if self.kind == "vote":
            return f"the vote of {self.name}"
        return self.name if self.lane > 0 else f"{self.kind} '{self.name}'"


@dataclass
class Flight:
    """What is in one file."""

    path: Path
    rank: int
    size: int
    local_rank: int
    local_size: int
    pid: int
    born: int
    pid_space: int
    wall_offset: int
    generation: int
    host: str
    job: str
    standing: str
    submitted: int
    step: int
    turn_since: int
    signal: int
    signal_address: int
    failed_at: int
    blamed_at: int
    fault: bool  # the job has ended by it
    failure: str
    verdict: str
    calls: list[tuple[int, str]] = field(default_factory=list)  # since, what
    records: list[Record] = field(default_factory=list)  # the oldest first
    stacks: str = ""  # of its Python threads, as far as they were written

    def is_alive(self) -> bool:
        """Whether its process is there: on this host, and where process numbers mean the same."""
        if processes.space() != self.pid_space:
            return True  # nobody here can say
        process = processes.find(self.pid)
        return process is not None and not process.has_ended and process.born == self.born

    @property
    def was_working(self) -> bool:
        """When its process ended, if that has: it had not left in peace."""
        return self.standing in ("starting", "running")

    @property
    def last(self) -> int:
        """When it last came to anything; 0: never."""
        return max((record.changed for record in self.records), default=0)


def _text(raw: bytes) -> str:
    text = raw.split(b"\0", 1)[0].decode(errors="replace")
    return "".join(c if c.isprintable() else "?" for c in text)


def _named(names: tuple[str, ...], number: int) -> str:
    return names[number] if number < len(names) else f"?{number}"


def _record(raw: bytes, at: int) -> Record:
    number, key, sequence, size, submitted, changed, step, process_set, lane, kind, stage, name = (
        RECORD.unpack_from(raw, at)
    )
    return Record(
        number, key, sequence, size, submitted, changed, step, process_set, lane,
        "vote" if kind == VOTE else _named(KINDS, kind),
        "FAILED" if stage == FAILED else _named(STAGES, stage),
        _text(name),
    )  # fmt: skip


def read(path: Path) -> Flight:
    """What is in this file.

    Raises:
        UsageError: it is no flight recorder, or one of another version.
        OSError: it cannot be read.
    """
    if path.stat().st_size != FILE_BYTES:
        raise UsageError(
            f"{path} is no flight recorder: it has {path.stat().st_size} bytes, not {FILE_BYTES}"
        )
    with open(path, "rb") as file:
        raw = file.read(FILE_BYTES)
    return parse(raw, path)


def parse(raw: bytes, path: Path) -> Flight:
    """As `read`, of what a file holds."""
    if len(raw) != FILE_BYTES:
        raise UsageError(f"{path} is no flight recorder: it has {len(raw)} bytes, not {FILE_BYTES}")
    magic, version, head, record_bytes, records, _, rank, size, local_rank, local_size, pid, _, born, space, wall, \
        generation, _, host, job = _WHO.unpack_from(raw, 0)  # fmt: skip
    if (magic, version) != (MAGIC, VERSION) or (head, record_bytes, records) != (
        HEAD_BYTES,
        RECORD_BYTES,
        RECORDS,
    ):
        raise UsageError(f"{path} is no flight recorder of this version of ringdp")
    if not 0 <= rank < size <= MOST_RANKS:
        raise UsageError(f"{path} is a flight recorder of rank {rank} of {size}, which cannot be")
    standing, submitted, step, turn, _ = HOW.unpack_from(raw, HOW_AT)
    signal, _, address, failed_at, blamed_at, fault, _, failure, verdict = _END.unpack_from(raw, _END_AT)
    flight = Flight(
        path, rank, size, local_rank, local_size, pid, born, space, wall, generation, _text(host), _text(job),
        _named(STANDINGS, standing), submitted, step, turn, signal, address, failed_at, blamed_at,
        bool(fault), _text(failure), _text(verdict),
    )  # fmt: skip
    for slot in range(CALLS):
        since, what = _CALL.unpack_from(raw, _CALLS_AT + slot * _CALL.size)
        if since:
            flight.calls.append((since, _text(what)))
    numbers = _NUMBERS.unpack_from(
        raw, HEAD_BYTES
    )  # 0, or one that has been overwritten since: nothing is there
    places = [place for place, n in enumerate(numbers) if max(0, submitted - RECORDS) < n <= submitted]
    found = (_record(raw, HEAD_BYTES + place * RECORD_BYTES) for place in places)
    flight.records = sorted(found, key=lambda record: record.number)
    flight.stacks = "\n".join(map(_text, raw[STACKS_AT:].split(b"\0", 1)[0].splitlines()))
    return flight
