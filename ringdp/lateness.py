"""Who is slow: which rank comes last to the operations, how often, and by how much.

Each rank's flight recorder has when it came to its last 4,096 operations anyway: nothing is measured for this, and
nothing exchanged before somebody asks. Ranks of one host have one clock. Between hosts the clocks are compared by the
operations themselves: all ranks have come to an operation before it is done on any, and it is done on all within about
the time of a message.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ringdp import flight, watch, world
from ringdp.errors import UsageError
from ringdp.numpy.ops import operations as calls
from ringdp.process_sets import ProcessSet, global_process_set
from ringdp.requests import usable

_NAME = "ringdp.stragglers"  # of this module's own operation
_UNCOUNTED = (flight.KINDS.index("barrier"), flight.VOTE)
_DONE = flight.STAGES.index("DONE")
_NUMBERS = ("number", "key", "sequence", "bytes"), ("submitted", "changed", "step")
_RECORD = np.dtype(  # of csrc/guard/flight.h
    [(name, "<u8") for name in _NUMBERS[0]]
    + [(name, "<i8") for name in _NUMBERS[1]]
    + [("process_set", "<i4"), ("lane", "<i2"), ("kind", "u1"), ("stage", "u1"), ("name", "S56")]
)
assert _RECORD.itemsize == flight.RECORD_BYTES
_NOT_YET, _FAILED = 0, -1  # in the place of when an operation was done

# Who is named: it comes last half-way from its fair share to always, by what can be felt, and costs time.
_LEAST_SECONDS, _LEAST_FRACTION = 1e-3, 0.02


@dataclass(frozen=True)
class Stragglers:
    """Of some operations in which these ranks took part. Of lists there is one entry for each of `ranks`."""

    operations: int
    seconds: float  # from the first of them to the last
    ranks: list[int]
    last: list[int]  # to so many of the operations the rank came last
    behind: list[
        float
    ]  # then by so many seconds after the median of the others; the median: a stall is no habit
    waited: list[float]  # the part of `seconds` in which the median of the others waited for it

    @property
    def slowest(self) -> int | None:
        """The rank that is to blame; None: none stands out.

        It comes last to half of the operations and more (on few ranks: half-way from a fair share to all: 75 % on two,
        67 % on three), mostly by 1 ms or more, and at least 2 % of the time goes by waiting for it.
        """
        share = (1 + 1 / max(1, len(self.ranks))) / 2
        for place, rank in enumerate(self.ranks):
            if (
                self.operations
                and self.last[place] >= share * self.operations
                and self.behind[place] >= _LEAST_SECONDS
                and self.waited[place] >= _LEAST_FRACTION
            ):
                return rank
        return None

    def __str__(self) -> str:
        over = f"over {self.operations} operations in {self.seconds:.1f} s on {len(self.ranks)} ranks:"
        if not self.operations or len(self.ranks) < 2:
            return f"{over} nothing to compare"
        rank = self.slowest
        place = int(np.argmax(self.last)) if rank is None else self.ranks.index(rank)
        often = (
            f"rank {self.ranks[place]} came last to {100 * self.last[place] / self.operations:.0f} % of them"
        )
        late = f"by {1e3 * self.behind[place]:.1f} ms"
        if rank is None:
            return f"{over} none stands out ({often}, {late})"
        return (
            f"{over} {often}, {late}; {100 * self.waited[place]:.0f} % of the time the others waited for it"
        )


def stragglers(operations: int = 100, process_set: ProcessSet = global_process_set) -> Stragglers:
    """Who comes last to the operations, how often, and by how much. Collective, and not for every step: it exchanges
    some kilobytes for each rank. Between two calls it costs nothing.

    `if step % 100 == 0: figure = ringdp.stragglers()`, and rank 0 prints it. A rank comes to an operation when it is
    submitted: a bucket when its last gradient is there, on a GPU when the host has come so far. Barriers
    and votes do not count.

    Args:
        operations: that each rank looks back at, at most; 4,096 are kept.
        process_set: the ranks that take part, by whose operations they are compared.

    Raises:
        UsageError: `operations` is not from 1 to 4,096.
        NotInitializedError: before `init()`.
    """
    if not 1 <= operations <= flight.RECORDS:
        raise UsageError(
            f"stragglers() can look back at 1 to {flight.RECORDS} operations, not {operations!r}"
        )
    number = usable(process_set)
    calls.barrier(process_set)  # all that was submitted before stands in the recorders
    mine = watch.current()
    rows = _rows(mine.records() if mine else b"", number, operations)
    head = np.array([[world.rank(), _clock(), len(rows)]], np.int64)
    told = calls.allgather(np.concatenate([head, rows]), _NAME, process_set)
    ranks, clocks, tables = [], [], []
    at = 0
    while at < len(told):
        rank, clock, count = told[at].tolist()
        ranks.append(rank)
        clocks.append(clock)
        tables.append(told[at + 1 : at + 1 + count])
        at += 1 + count
    return compare(ranks, clocks, tables)


def compare(ranks: Sequence[int], clocks: Sequence[int], tables: Sequence[NDArray[np.int64]]) -> Stragglers:
    """The figure.

    Args:
        ranks: whose the tables are.
        clocks: of each rank; ranks with the same number read the same one.
        tables: of each rank, shape (operations, 3): which operation, when the rank came to it, when it was done there
            (0: it is not yet; -1: it has failed), in nanoseconds of the rank's clock.
    """
    shared = tables[0][:, 0]
    for table in tables[1:]:
        shared = shared[np.isin(shared, table[:, 0])]
    shared.sort()
    of_ranks = [table[np.isin(table[:, 0], shared)] for table in tables]
    times = np.stack([table[table[:, 0].argsort()] for table in of_ranks], axis=1)
    times = times[(times[:, :, 2] != _FAILED).all(axis=1)]
    came, done = times[:, :, 1], times[:, :, 2]
    came = came - _offsets(clocks, came, done)
    nobody = [0] * len(ranks)
    if not len(came) or len(ranks) < 2:
        return Stragglers(0, 0.0, list(ranks), nobody, [0.0] * len(ranks), [0.0] * len(ranks))
    span = (came.max() - came.min()) / 1e9
    last = came.argmax(axis=1)
    count, behind, waited = nobody[:], [0.0] * len(ranks), [0.0] * len(ranks)
    for place in range(len(ranks)):
        mine = came[last == place]
        if not len(mine):
            continue
        others = np.median(np.delete(mine, place, axis=1), axis=1)
        count[place] = len(mine)
        behind[place] = float(np.median(mine[:, place] - others)) / 1e9
        waited[place] = float(_union(others, mine[:, place]) / 1e9 / span) if span else 0.0
    return Stragglers(len(came), float(span), list(ranks), count, behind, waited)


def _offsets(clocks: Sequence[int], came: NDArray[np.int64], done: NDArray[np.int64]) -> NDArray[np.int64]:
    """What to subtract from the clock of each rank to have that of the first."""
    offsets = np.zeros(len(clocks), np.int64)
    ended = (done > _NOT_YET).all(axis=1)
    for clock in set(clocks) - {clocks[0]}:
        there = [place for place, other in enumerate(clocks) if other == clock]
        here = [place for place, other in enumerate(clocks) if other == clocks[0]]
        if not ended.any():
            continue
        first = done[ended][:, here].min(axis=1)
        offsets[there] = int(np.median(done[ended][:, there].min(axis=1) - first))
    return offsets


def _union(begin: NDArray[np.float64], end: NDArray[np.int64]) -> float:
    """The length of what the intervals cover: operations overlap."""
    order = begin.argsort()
    begin, until = begin[order], np.maximum.accumulate(end[order])
    fresh = np.maximum(begin[1:], until[:-1])
    return float(until[0] - begin[0] + np.maximum(0, until[1:] - fresh).sum())


def _rows(records: bytes, process_set: int, most: int) -> NDArray[np.int64]:
    """As `compare` takes them, the newest first. An operation of a plan has a number that all ranks know it by; one
    with a name is known by how many of that name came after it."""
    of_set = np.frombuffer(records, _RECORD)
    counts = (of_set["process_set"] == process_set) & ~np.isin(of_set["kind"], _UNCOUNTED)
    found = of_set[counts & (of_set["name"] != _NAME.encode())][: -most - 1 : -1]
    later: Counter[int] = Counter()
    numbers = found["sequence"].copy()
    for place, key in enumerate(found["key"].tolist()):
        if found["lane"][place] == 0:
            numbers[place] = later[key]
            later[key] += 1
    stage = found["stage"]
    done = np.where(stage == _DONE, found["changed"], np.where(stage == flight.FAILED, _FAILED, _NOT_YET))
    return np.column_stack([_mixed(found["lane"], found["key"], numbers), found["submitted"], done])


def _mixed(*columns: NDArray[Any]) -> NDArray[np.int64]:
    """One number of 63 bits for several (FNV-1a, by 64-bit words)."""
    mixed = np.full(len(columns[0]), 0xCBF29CE484222325, np.uint64)
    for column in columns:
        mixed = (mixed ^ column.astype(np.uint64)) * np.uint64(0x100000001B3)
        mixed ^= mixed >> np.uint64(29)
    return (mixed >> np.uint64(1)).astype(np.int64)


def _clock() -> int:
    """Which CLOCK_MONOTONIC this process reads: that of the running kernel."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
        return int(boot[:15], 16)
    except (OSError, ValueError):
        return world.rank()  # no other rank's, as far as anybody knows
