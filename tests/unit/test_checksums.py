"""RINGDP_CHECKSUM: a bit that is flipped between two ranks is an error on every rank, and no output is returned.

The ranks are threads, and the bit is flipped by the local transport. Each flip is tried without checksums as well:
there the result is wrong, so it is one that matters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from unit.test_engine_local import (
    LONG,
    Pending,
    allreduce,
    bucket,
    coded,
    local_ranks,
    open_plan,
    shut_down,
    submit,
    total,
)

from ringdp import _core
from ringdp.constants import Dtype, OpKind, ReduceOp
from ringdp.errors import ChecksumError, HorovodInternalError, MismatchError, PeerError

COUNT = 3001
TEXT = r"rank (\d): .* failed: a message from rank (\d) to rank (\d) was damaged on its way: segment \d+ of the \d+"
Half = _core.schedules.Half

# Each submits one operation on every rank, and says what its output must be on each.
Work = Callable[[Sequence[Any]], tuple[list[Pending], list[np.ndarray]]]


def named(engines: Sequence[Any]) -> tuple[list[Pending], list[np.ndarray]]:
    size = len(engines)
    pending = [allreduce(e, "x", coded(e.rank, COUNT, "int32")) for e in engines]
    return pending, [total(size, COUNT, "int32")] * size


def planned(engines: Sequence[Any]) -> tuple[list[Pending], list[np.ndarray]]:
    lane, size = open_plan(engines), len(engines)
    pending = [bucket(e, lane, 0, coded(e.rank, COUNT, "int32")) for e in engines]
    return pending, [total(size, COUNT, "int32")] * size


def half(engine: Any, lane: int, data: np.ndarray, which: Any) -> Any:
    where = data.ctypes.data, data.size, int(Dtype[data.dtype.name])
    return engine.submit_bucket(0, lane, 0, 5, *where, int(ReduceOp.Sum), 1.0, 1.0, which)


def own_part(engine: Any) -> slice:
    return slice(*engine.own_chunk(0, COUNT, int(Dtype.int32)))


def first_half(engines: Sequence[Any]) -> tuple[list[Pending], list[np.ndarray]]:
    """What is compared is the own chunk alone."""
    lane, size = open_plan(engines), len(engines)
    pending, wanted = [], []
    for e in engines:
        data = coded(e.rank, COUNT, "int32")
        pending.append(Pending(half(e, lane, data, Half.reduce_scatter), data, data[own_part(e)]))
        wanted.append(total(size, COUNT, "int32")[own_part(e)])
    return pending, wanted


def second_half(engines: Sequence[Any]) -> tuple[list[Pending], list[np.ndarray]]:
    lane = open_plan(engines)
    whole = coded(17, COUNT, "int32")
    pending = []
    for e in engines:
        data = np.full_like(whole, 77)
        data[own_part(e)] = whole[own_part(e)]
        pending.append(Pending(half(e, lane, data, Half.all_gather), data, data))
    return pending, [whole] * len(engines)


def cast_under_way(engines: Sequence[Any]) -> tuple[list[Pending], list[np.ndarray]]:
    size, pending = len(engines), []
    for e in engines:
        wide = coded(e.rank, COUNT)
        wire = np.zeros(COUNT, np.uint16)
        submission = _core.Submission(
            OpKind.allreduce, "x", 0, wire.ctypes.data, wire.ctypes.data, Dtype.bfloat16, (COUNT,), ReduceOp.Sum,
            1.0, 1.0, -1, (), Dtype.float32, wide.ctypes.data, wide.ctypes.data,
        )  # fmt: skip
        pending.append(Pending(e.submit(submission), (wide, wire), wide))
    return pending, [total(size, COUNT)] * size


def scattered(engines: Sequence[Any]) -> tuple[list[Pending], list[np.ndarray]]:
    wanted = np.array_split(total(len(engines), COUNT, "int32"), len(engines))
    pending = []
    for e in engines:
        output = np.full_like(wanted[e.rank], 77)
        pending.append(submit(e, OpKind.reducescatter, "x", coded(e.rank, COUNT, "int32"), output))
    return pending, list(wanted)


def broadcast(engines: Sequence[Any]) -> tuple[list[Pending], list[np.ndarray]]:
    pending = []
    for e in engines:
        output = np.full(COUNT, 77, "int32")
        pending.append(submit(e, OpKind.broadcast, "x", coded(e.rank, COUNT, "int32"), output, root=1))
    return pending, [coded(1, COUNT, "int32")] * len(engines)


@pytest.fixture(autouse=True)
def _idle_engines_look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each pair of engines takes a while to end."""
    monkeypatch.setenv("RINGDP_IDLE_LOOKS", "1000")


def is_wrong(pending: list[Pending], wanted: list[np.ndarray]) -> bool:
    results = [p.result() for p in pending]  # of all: their memory is in use until then
    return any((got != want).any() for got, want in zip(results, wanted, strict=True))


def fail_everywhere(pending: list[Pending]) -> None:
    """Every rank says the same of the same pair."""
    told = set()
    for rank, p in enumerate(pending):
        with pytest.raises(ChecksumError, match=TEXT) as raised:
            p.result()
        match = re.match(TEXT, str(raised.value))
        assert match and int(match[1]) == rank
        assert match[2] != match[3]
        told.add((match[2], match[3]))
    assert len(told) == 1


WAYS: list[tuple[list[int], str, Work]] = [
    *(([], a, named) for a in ("ring", "recursive_doubling", "halving_doubling", "double_tree")),
    *(([], a, planned) for a in ("ring", "halving_doubling", "double_tree")),
    *(([], a, work) for a in ("ring", "halving_doubling") for work in (first_half, second_half)),
    *(([], a, cast_under_way) for a in ("ring", "double_tree")),
    ([], "auto", scattered),
    ([], "auto", broadcast),
]
ON_HOSTS: list[tuple[list[int], str, Work]] = [
    *((hosts, "two_level", work) for hosts in ([0, 0, 1, 1], [0, 1, 0, 1]) for work in (named, planned)),
    ([0, 0, 1, 1], "two_level", first_half),
    ([0, 0, 1, 1], "two_level", second_half),
    ([0, 0, 1, 1], "two_level", cast_under_way),
    ([0, 0, 0], "ring", named),  # in one host, by messages all the same
]
CASES = [
    *((size, *way) for size in (2, 3, 4) for way in WAYS),
    *((len(way[0]), *way) for way in ON_HOSTS),
]


@pytest.mark.parametrize(
    ("size", "hosts", "algorithm", "work"),
    CASES,
    ids=lambda v: v.__name__ if callable(v) else "-".join(map(str, v)) if isinstance(v, list) else str(v),
)
@pytest.mark.parametrize("message", [0, 5, 9])
def test_a_flipped_bit_is_an_error_on_every_rank(
    size: int, hosts: list[int], algorithm: str, work: Work, message: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGDP_ALGORITHM", algorithm)
    monkeypatch.setenv("RINGDP_LETTER_BYTES", "0")
    monkeypatch.setenv("RINGDP_SEGMENT_BYTES", "512")
    bit = 14 + 16 * 2 * message  # of bfloat16 an exponent's
    monkeypatch.setenv("RINGDP_CHECKSUM", "0")
    engines = _core.local_engines(size, message, hosts, flip=message, bit=bit)
    assert is_wrong(*work(engines))
    assert shut_down(engines) == [True] * size

    monkeypatch.setenv("RINGDP_CHECKSUM", "1")
    engines = _core.local_engines(size, message, hosts, flip=message, bit=bit)
    fail_everywhere(work(engines)[0])
    for _ in range(2):  # the job goes on
        for other in (named, planned):
            assert not is_wrong(*other(engines))
    assert shut_down(engines) == [True] * size


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("kind", [OpKind.allgather, OpKind.alltoall])
@pytest.mark.parametrize("message", [0, 1, 4, 8])
def test_a_flipped_bit_in_sizes_or_rows_is_an_error_before_anybody_believes_it(
    size: int, kind: OpKind, message: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGDP_CHECKSUM", "1")
    monkeypatch.setenv("RINGDP_SEGMENT_BYTES", "512")

    def start(name: str) -> list[Pending]:
        splits = [200] * size if kind == OpKind.alltoall else []
        return [submit(e, kind, name, coded(e.rank, 200 * size), splits=splits) for e in engines]

    engines = _core.local_engines(size, message, flip=message, bit=50)  # of a size: some petabytes more
    fail_everywhere(start("damaged"))
    for p in start("next"):
        p.result()
        rows = p.handle.take_output().view("float32")
        if kind == OpKind.allgather:
            assert (rows == np.concatenate([coded(r, 200 * size) for r in range(size)])).all()
    assert shut_down(engines) == [True] * size


def test_descriptions_of_what_differs_are_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGDP_CHECKSUM", "1")
    for message in (0, 8):
        engines = _core.local_engines(3, message, flip=message, bit=3)
        fail_everywhere([allreduce(e, "x", coded(e.rank, 9 + (e.rank == 1))) for e in engines])
        for p in [allreduce(e, "x", coded(e.rank, 9 + (e.rank == 1))) for e in engines]:
            with pytest.raises(MismatchError, match=r"ranks 0, 2: allreduce of float32\[9\]"):
                p.result()
        assert shut_down(engines) == [True] * 3


# --- messages by which the ranks agree ------------------------------------------------------------------------------

NOTE_BITS = 8 * 56  # of what comes before the payload


def outcome(act: Callable[[], Any], right: np.ndarray) -> Any:
    """Whether the result is right, or what was raised."""
    try:
        return bool((act() == right).all())
    except HorovodInternalError as error:
        return error


def outcomes_of_small_ones(engines: Sequence[Any]) -> list[list[Any]]:
    """By operation and rank, until all ranks raise."""
    size, outcomes = len(engines), []
    for i in range(30):
        pending: list[Any] = []
        for e in engines:
            try:
                pending.append(allreduce(e, f"n{i}", coded(e.rank, 5, "int32")).result)
            except HorovodInternalError as error:
                pending.append(error)
        right = total(size, 5, "int32")
        outcomes.append([outcome(p, right) if callable(p) else p for p in pending])
        if all(isinstance(one, Exception) for one in outcomes[-1]):
            break
    return outcomes


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("message", [0, 3, 7])
@pytest.mark.parametrize("bit", [NOTE_BITS + 37, 100], ids=["payload", "note"])
def test_a_flipped_bit_in_a_small_tensor_that_goes_along_with_its_name(
    size: int, message: int, bit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here ranks that have heard all they need may return the right sum; but none a wrong one, and all hear of it."""
    monkeypatch.setenv("RINGDP_ALGORITHM", "recursive_doubling")
    monkeypatch.setenv("RINGDP_CHECKSUM", "1")
    engines = _core.local_engines(size, message, flip_in_meetings=message, bit=bit)
    outcomes = outcomes_of_small_ones(engines)
    shut_down(engines, 0)
    assert not any(one is False for each in outcomes for one in each)
    errors = outcomes[-1]
    assert all(isinstance(one, Exception) for one in errors)
    (found,) = (rank for rank, one in enumerate(errors) if isinstance(one, ChecksumError))
    text = rf"rank {found}: a message from rank \d to rank {found} was damaged on its way"
    assert re.search(text, str(errors[found]))
    for rank, error in enumerate(errors):
        if rank != found:
            assert isinstance(error, PeerError)
            assert f"rank {found} has failed" in str(error)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_without_checksums_the_small_sum_is_wrong(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGDP_ALGORITHM", "recursive_doubling")
    monkeypatch.setenv("RINGDP_CHECKSUM", "0")
    engines = _core.local_engines(size, 1, flip_in_meetings=0, bit=NOTE_BITS + 37)
    outcomes = outcomes_of_small_ones(engines)
    assert False in outcomes[0]
    assert shut_down(engines) == [True] * size


# --- when there are any ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "hosts", "meetings"),
    [("1", [0, 1, 2], 3), ("0", [0, 1, 2], 0), ("1", [0, 0, 0], 0)],
    ids=["on", "off", "in shared memory"],
)
def test_only_what_goes_by_messages_is_checked(
    option: str, hosts: list[int], meetings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGDP_CHECKSUM", option)
    monkeypatch.setenv("RINGDP_LETTER_BYTES", "0")
    with local_ranks(3, hosts=hosts) as engines:
        for i in range(3):
            for p in [allreduce(e, f"x{i}", coded(e.rank, 100_000)) for e in engines]:
                assert (p.result() == total(3, 100_000)).all()
        assert [e.counters()["damage"] for e in engines] == [meetings] * 3
        assert {e.checks_messages for e in engines} == {option == "1"}


def test_a_rank_alone_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGDP_CHECKSUM", "1")
    with local_ranks(1) as engines:
        assert (allreduce(engines[0], "x", coded(0, 100_000)).result() == total(1, 100_000)).all()
        assert engines[0].counters()["damage"] == 0


def test_the_option_is_one_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGDP_CHECKSUM", "yes")
    with pytest.raises(ValueError, match="RINGDP_CHECKSUM=yes is not one of 0, 1"):
        _core.local_engines(1, 0)


@pytest.mark.parametrize("message", [0, 3, 6])
def test_a_plan_ends_with_a_damaged_bucket(message: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after any failure of a bucket: no parameter may change. All ranks find it in the same bucket."""
    monkeypatch.setenv("RINGDP_CHECKSUM", "1")
    monkeypatch.setenv("RINGDP_ALGORITHM", "ring")
    engines = _core.local_engines(3, 2, flip=message, bit=9)
    lane = open_plan(engines)
    buckets = [[bucket(e, lane, i, coded(e.rank, COUNT)) for i in range(4)] for e in engines]
    votes = [e.vote(0, lane, [1]) for e in engines]
    damaged = []
    for mine in buckets:
        for i, p in enumerate(mine):
            try:
                assert (p.result() == total(3, COUNT)).all()
            except ChecksumError:
                damaged.append(i)
            except PeerError as error:
                assert "failed in an earlier operation" in str(error)
                assert damaged and damaged[-1] < i
    assert len(damaged) == 3 and len(set(damaged)) == 1
    assert all(v.sleep(LONG) for v in votes)
    for e in engines:
        with pytest.raises(PeerError, match="has failed in an earlier step"):
            bucket(e, lane, 9, coded(0, 5)).result()
    assert shut_down(engines) == [True] * 3
