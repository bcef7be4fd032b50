"""The engine (csrc/engine) with ranks that are threads of this process: everything but MPI.

A test submits for all ranks in turn, since submissions never block. Inputs encode (rank, index); results are compared
with ==.
"""

from __future__ import annotations

import itertools
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from ringdp import _core
from ringdp.constants import Dtype, OpKind, ReduceOp
from ringdp.errors import (
    DeadlineError,
    DuplicateNameError,
    MismatchError,
    NotInitializedError,
    PeerError,
    UsageError,
)

SIZES = range(1, 10)
LONG = 30.0  # seconds that nothing here takes: what is not done by then hangs


@dataclass
class Pending:
    """An operation in flight, and its arrays, which must live as long."""

    handle: Any
    source: Any
    output: Any

    def result(self) -> Any:
        assert self.handle.sleep(LONG), "this operation hangs"
        self.handle.check()
        return self.output


def submit(
    engine: Any,
    kind: OpKind,
    name: str,
    source: np.ndarray,
    output: np.ndarray | None = None,
    *,
    op: ReduceOp = ReduceOp.Sum,
    process_set: int = 0,
    root: int = -1,
    splits: Sequence[int] = (),
    prescale: float = 1,
    postscale: float = 1,
) -> Pending:
    at = output.ctypes.data if output is not None else 0
    dtype = Dtype[source.dtype.name]
    submission = _core.Submission(
        kind, name, process_set, source.ctypes.data, at, dtype, source.shape, op, prescale, postscale, root, splits
    )  # fmt: skip
    return Pending(engine.submit(submission), source, output)


def allreduce(engine: Any, name: str, source: np.ndarray, **how: Any) -> Pending:
    return submit(engine, OpKind.allreduce, name, source, np.full_like(source, 77), **how)


def gathered(engine: Any, kind: OpKind, name: str, source: np.ndarray, **how: Any) -> np.ndarray:
    pending = submit(engine, kind, name, source, **how)
    pending.result()
    return pending.handle.take_output().view(source.dtype).reshape(-1, *source.shape[1:])


def all_ranks(function: Callable[..., Any], *per_rank: Any) -> list[Any]:
    """`function` of each rank in a thread of its own."""
    with ThreadPoolExecutor(len(per_rank[0])) as pool:
        return list(pool.map(function, *per_rank))


def shut_down(engines: Sequence[Any], seconds: float = LONG) -> list[bool]:
    return all_ranks(lambda e: e.shutdown(seconds), engines)


@contextmanager
def local_ranks(size: int, seed: int = 0, hosts: Sequence[int] = ()) -> Iterator[list[Any]]:
    """The engines of `size` ranks (on these hosts); at the end they shut down, all of them and in time."""
    engines = _core.local_engines(size, seed, list(hosts))
    yield engines
    assert shut_down(engines) == [True] * size


def coded(rank: int, count: int, dtype: str = "float32") -> np.ndarray:
    """Small numbers, another one for each rank and index (modulo what a sum of nine fits into)."""
    if dtype == "bool":
        return (np.arange(count) % (rank + 2)) == 0
    return ((np.arange(count) * 3 + rank * 5) % 13 + 1).astype(dtype)


def total(size: int, count: int, dtype: str = "float32") -> np.ndarray:
    return sum(coded(r, count, dtype) for r in range(1, size)) + coded(0, count, dtype)


# --- results --------------------------------------------------------------------------------------------------------

REFERENCE = {
    ReduceOp.Sum: lambda inputs: np.logical_or.reduce(inputs) if inputs.dtype == bool else inputs.sum(0),
    ReduceOp.Min: lambda inputs: inputs.min(0),
    ReduceOp.Max: lambda inputs: inputs.max(0),
    ReduceOp.Product: lambda inputs: inputs.prod(0),
}


@pytest.mark.parametrize("size", SIZES)
def test_allreduce_of_every_dtype_and_operation(size: int) -> None:
    dtypes = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]
    with local_ranks(size, seed=size) as engines:
        for dtype, (op, reference) in itertools.product(dtypes, REFERENCE.items()):
            inputs = np.stack([coded(r, 29, dtype) for r in range(size)])
            if op == ReduceOp.Product and dtype != "bool":
                inputs = (inputs % 2 + 1).astype(dtype)
                inputs[1:] = inputs[1:] // 2 + 1 if size < 7 else 1  # at most 2 ** 6: exact in all dtypes
            pending = [allreduce(e, f"{dtype} {op}", x, op=op) for e, x in zip(engines, inputs, strict=True)]
            expected = reference(inputs).astype(dtype)
            for p in pending:
                assert (p.result() == expected).all(), (dtype, op)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [0, 1, 8, 1000])
def test_average_scales_and_in_place(size: int, count: int) -> None:
    with local_ranks(size) as engines:
        inputs = [coded(r, count) * size for r in range(size)]
        average = [allreduce(e, "a", x, op=ReduceOp.Average) for e, x in zip(engines, inputs, strict=True)]
        scaled = [
            allreduce(e, "s", x, prescale=0.5, postscale=4) for e, x in zip(engines, inputs, strict=True)
        ]
        own = [x.copy() for x in inputs]
        in_place = [submit(e, OpKind.allreduce, "i", x, x) for e, x in zip(engines, own, strict=True)]
        for r in range(size):
            assert (average[r].result() == total(size, count)).all()
            assert (scaled[r].result() == total(size, count) * size * 2).all()
            assert (in_place[r].result() == total(size, count) * size).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", [0, 5])
def test_the_other_collectives(size: int, seed: int) -> None:
    rows = [(r * 2) % 5 for r in range(size)]  # rank 0 has none
    splits = [[(r + peer) % 3 for peer in range(size)] for r in range(size)]

    def on(rank: int, engine: Any) -> None:
        barrier = submit(engine, OpKind.barrier, "b", np.zeros(0, "uint8"))
        gather = gathered(engine, OpKind.allgather, "g", coded(rank, rows[rank] * 3).reshape(-1, 3))
        assert (gather == np.concatenate([coded(r, rows[r] * 3) for r in range(size)]).reshape(-1, 3)).all()

        sent = np.concatenate([np.full((splits[rank][p], 2), 100 * rank + p) for p in range(size)])
        swapped = gathered(engine, OpKind.alltoall, "a", sent, splits=splits[rank])
        expected = np.concatenate([np.full((splits[p][rank], 2), 100 * p + rank) for p in range(size)])
        assert (swapped == expected).all()

        for root in {0, size - 1}:
            out = np.empty(100, "float32")
            submit(engine, OpKind.broadcast, f"r{root}", coded(rank, 100), out, root=root).result()
            assert (out == coded(root, 100)).all()

        mine = np.array_split(np.arange(10), size)[rank]
        part = np.empty((len(mine), 2), "float32")
        submit(engine, OpKind.reducescatter, "s", coded(rank, 20).reshape(10, 2), part).result()
        assert (part == total(size, 20).reshape(10, 2)[mine]).all()
        barrier.result()

    with local_ranks(size, seed) as engines:
        all_ranks(on, range(size), engines)


@pytest.mark.parametrize("seed", [0, 3])
def test_many_segments_of_a_few_bytes(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGDP_SEGMENT_BYTES", "8")
    monkeypatch.setenv("RINGDP_DEPTH", "3")
    with local_ranks(4, seed) as engines:
        pending = [allreduce(e, "x", coded(e.rank, 3001)) for e in engines]
        assert all((p.result() == total(4, 3001)).all() for p in pending)


# --- the votes, carried by a dissemination --------------------------------------------------------------------------


def open_plan(engines: Sequence[Any], name: str = "plan", process_set: int = 0) -> int:
    handles = [e.open_plan(process_set, name, "two lines\nof a plan") for e in engines]
    assert all(h.sleep(LONG) for h in handles)
    (lane,) = {h.lane() for h in handles}
    return lane


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_vote_is_the_minimum_on_every_rank_many_times_back_to_back(size: int, seed: int) -> None:
    numbers = np.random.default_rng(size).integers(0, 2**64 - 1, (size, 50, 5), "uint64", endpoint=True)
    with local_ranks(size, seed) as engines:
        lane = open_plan(engines)
        votes: list[list[Any]] = [[] for _ in engines]
        for r in random.Random(seed).sample([*range(size)] * 50, 50 * size):  # ranks run ahead of one another
            votes[r].append(engines[r].vote(0, lane, numbers[r, len(votes[r])].tolist()))
        for mine in votes:
            assert all(v.sleep(LONG) for v in mine)
            assert [v.words() for v in mine] == numbers.min(0).tolist()


# --- named operations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_names_in_other_orders_on_each_rank_over_overlapping_process_sets(seed: int) -> None:
    members = {0: [0, 1, 2, 3], 1: [0, 1], 2: [1, 2, 3], 3: [3, 0], 4: [2]}
    with local_ranks(4, seed) as engines:
        for number, ranks in members.items():
            if number > 0:
                _core.add_local_process_set(number, [engines[r] for r in ranks])
        pending = []
        for r, engine in enumerate(engines):
            work = [(s, k) for s, ranks in members.items() if r in ranks for k in range(40)]
            random.Random(100 * seed + r).shuffle(work)
            for s, k in work:
                size = 1 + k * 7 % 50
                pending.append((s, k, allreduce(engine, f"t{k}", coded(r, size) + k, process_set=s)))
        for s, k, p in pending:
            expected = sum(coded(r, 1 + k * 7 % 50) + k for r in members[s])
            assert (p.result() == expected).all(), (s, k)


TAGS = 2047  # of named operations, over the local transport


@pytest.mark.parametrize("letter_bytes", ["0", "16384"])  # as messages of its own, or with the name
@pytest.mark.parametrize("hosts", [[0, 1, 2], [0, 0, 0]], ids=["three hosts", "one host"])
def test_an_operation_that_one_rank_has_not_submitted_holds_up_no_other(
    hosts: list[int], letter_bytes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGDP_LETTER_BYTES", letter_bytes)
    monkeypatch.setenv("RINGDP_ALGORITHM", "recursive_doubling")
    with local_ranks(3, hosts=hosts) as engines:
        stuck = [allreduce(e, "stuck", coded(e.rank, 10)) for e in engines[:2]]
        for i in range(TAGS + 100):
            for p in [allreduce(e, f"n{i % 7}", coded(e.rank, 5) + i) for e in engines]:
                assert (p.result() == total(3, 5) + 3 * i).all()
        assert not any(p.handle.poll() for p in stuck)
        assert {p.handle.stage() for p in stuck} == {"AGREE"}
        stuck.append(allreduce(engines[2], "stuck", coded(2, 10)))
        assert all((p.result() == total(3, 10)).all() for p in stuck)


def test_more_named_operations_than_tags_are_refused_and_the_others_go_on() -> None:
    with local_ranks(2) as engines:
        waiting = [allreduce(engines[0], f"n{i}", coded(0, 3)) for i in range(TAGS + 1)]
        with pytest.raises(UsageError, match=f"{TAGS} named operations are in flight"):
            waiting.pop().result()
        waiting += [allreduce(engines[1], f"n{i}", coded(1, 3)) for i in reversed(range(TAGS))]
        assert all((p.result() == total(2, 3)).all() for p in waiting)
        last = [allreduce(e, f"n{TAGS}", coded(e.rank, 3)) for e in engines]
        assert all((p.result() == total(2, 3)).all() for p in last)


@pytest.mark.parametrize("size", [2, 3, 5, 6, 7, 8])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_small_tensor_has_the_same_bits_along_with_its_name_and_as_messages_of_its_own(
    size: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGDP_ALGORITHM", "recursive_doubling")
    random_numbers = np.random.default_rng(size).normal(size=(size, 700)).astype(dtype)
    results = []
    for letter_bytes in ("0", "16384"):
        monkeypatch.setenv("RINGDP_LETTER_BYTES", letter_bytes)
        with local_ranks(size, seed=3) as engines:
            pending = [
                allreduce(e, "x", random_numbers[e.rank], op=ReduceOp.Average, prescale=0.7, postscale=3)
                for e in engines
            ]
            results += [p.result().tobytes() for p in pending]
    assert len(set(results)) == 1


@pytest.mark.parametrize("hosts", [[0, 1, 2], [0, 0, 0]], ids=["three hosts", "one host"])
def test_plans_that_ranks_open_in_other_orders_have_the_same_lanes(hosts: list[int]) -> None:
    def outcome(handle: Any) -> int | str:
        assert handle.sleep(LONG)
        try:
            return int(handle.lane())
        except UsageError as error:
            return str(error)

    for seed in range(10):
        with local_ranks(3, seed, hosts) as engines:
            names = [f"plan {i}" for i in range(10)]
            orders = [random.Random(10 * seed + r).sample(names, 10) for r in range(3)]
            opened = [{name: e.open_plan(0, name, name) for name in orders[e.rank]} for e in engines]
            outcomes = [{name: outcome(plans[name]) for name in names} for plans in opened]
            assert outcomes[0] == outcomes[1] == outcomes[2]
            lanes = sorted(lane for lane in outcomes[0].values() if isinstance(lane, int))
            assert lanes == list(range(1, 9))  # there are tags for so many
            assert sum("allow only 8 plans" in str(error) for error in outcomes[0].values()) == 2


def test_a_long_operation_never_shares_its_tag_with_a_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGDP_SEGMENT_BYTES", "8")  # many messages
    with local_ranks(2, seed=1) as engines:
        count = 400_000
        long = [allreduce(e, "long", coded(e.rank, count, "int64")) for e in engines]
        short = [[allreduce(e, f"s{i}", coded(e.rank, 1)) for i in range(600)] for e in engines]
        for each in zip(*short, strict=True):
            assert all((p.result() == total(2, 1)).all() for p in each)
        assert all((p.result() == total(2, count, "int64")).all() for p in long)


def test_unnamed_calls_meet_in_their_order_however_many_are_in_flight() -> None:
    with local_ranks(3, seed=2) as engines:
        _core.add_local_process_set(1, engines[:2])
        pending: list[list[Pending]] = []
        for engine in engines:  # only the last rank lets anything begin
            pending.append([])
            for i in range(200):
                pending[-1].append(allreduce(engine, "", coded(engine.rank, 4) + i))
                if engine.rank < 2 and i % 3 == 0:  # has no part in the numbering of the others
                    pending[-1].append(allreduce(engine, "", coded(engine.rank, 4) + i, process_set=1))
        for mine in pending[:2]:
            expected = iter([t for i in range(200) for t in [(3, i), (2, i)][: 2 if i % 3 == 0 else 1]])
            for p, (size, i) in zip(mine, expected, strict=True):
                assert (p.result() == total(size, 4) + size * i).all()
        assert all((p.result() == total(3, 4) + 3 * i).all() for i, p in enumerate(pending[2]))


def test_a_name_in_flight_is_refused_and_free_again_afterwards() -> None:
    with local_ranks(2) as engines:
        _core.add_local_process_set(1, engines)
        first = allreduce(engines[0], "x", coded(0, 3))
        with pytest.raises(DuplicateNameError, match=r"rank 0: allreduce 'x': .* still in flight"):
            allreduce(engines[0], "x", coded(0, 3))
        other_set = allreduce(engines[0], "x", coded(0, 3), process_set=1)
        second = allreduce(engines[1], "x", coded(1, 3))
        assert (first.result() == total(2, 3)).all()
        for _ in range(3):  # at once, since whoever has waited may use the name again
            again = [allreduce(engines[0], "x", coded(0, 3)), second]
            second.result()
            again[1] = second = allreduce(engines[1], "x", coded(1, 3))
            assert all((p.result() == total(2, 3)).all() for p in again)
        allreduce(engines[1], "x", coded(1, 3), process_set=1).result()
        other_set.result()


# --- operations that differ between ranks ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usual", "different", "texts"),
    [
        (
            {},
            {"count": 8},
            ["ranks 0, 2: allreduce of float32[9], op Sum", "rank 1: allreduce of float32[8]"],
        ),
        (
            {},
            {"dtype": "float64"},
            ["ranks 0, 2: allreduce of float32[9]", "rank 1: allreduce of float64[9]"],
        ),
        ({}, {"op": ReduceOp.Max}, ["op Sum", "rank 1: allreduce of float32[9], op Max"]),
        ({}, {"prescale": 0.5}, ["rank 1: allreduce of float32[9], op Sum, prescale_factor 0.5"]),
        (
            {"postscale": 0.1},
            {"postscale": 0.1 + 2**-56},
            ["ranks 0, 2: ", "postscale_factor 0.1\n", "rank 1: ", "postscale_factor 0.1000000000000000"],
        ),
        ({"kind": OpKind.broadcast, "root": 0}, {"root": 1}, ["root_rank 0", "rank 1: ", "root_rank 1"]),
        ({}, {"kind": OpKind.broadcast, "root": 0}, ["ranks 0, 2: allreduce", "rank 1: broadcast"]),
        ({}, {"kind": OpKind.barrier}, ["ranks 0, 2: allreduce", "rank 1: barrier"]),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else "",
)
def test_a_difference_is_an_error_on_every_rank_that_says_who_differs(
    usual: dict[str, Any], different: dict[str, Any], texts: list[str]
) -> None:
    def call(
        engine: Any, *, kind: Any = OpKind.allreduce, count: int = 9, dtype: str = "float32", **how: Any
    ) -> Any:
        source = coded(engine.rank, count, dtype)
        return submit(engine, kind, "grad", source, np.full_like(source, 77), **how)

    with local_ranks(3) as engines:
        for _ in range(2):  # a name goes on after a mismatch
            beside = [allreduce(e, "beside", coded(e.rank, 5)) for e in engines]
            pending = [call(e, **{**usual, **(different if e.rank == 1 else {})}) for e in engines]
            for r, p in enumerate(pending):
                with pytest.raises(MismatchError) as raised:
                    p.result()
                assert str(raised.value).startswith(f"rank {r}: 'grad' differs between ranks")
                assert all(text in str(raised.value) for text in texts), str(raised.value)
                assert (p.output == 77).all()  # untouched
            right = [call(e) for e in engines]
            assert all((p.result() == total(3, 9)).all() for p in right)
            assert all((p.result() == total(3, 5)).all() for p in beside)


@pytest.mark.parametrize("hosts", [[0, 1, 2], [0, 0, 0], [0, 0, 1]], ids=str)
@pytest.mark.parametrize("letter_bytes", ["0", "16384"])
def test_a_rank_of_another_generation_takes_part_in_nothing(
    hosts: list[int], letter_bytes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGDP_LETTER_BYTES", letter_bytes)
    engines = _core.local_engines(3, 1, hosts, generations=[4, 4, 3])
    for count in (5, 100_000):
        pending = [allreduce(e, "x", coded(e.rank, count)) for e in engines]
        errors = []
        for p in pending:
            with pytest.raises(PeerError, match="'x' failed") as raised:
                p.result()
            errors.append(str(raised.value))
            assert (p.output == 77).all()  # untouched
        assert "generation 3 here, 4 on rank 1" in errors[2]
        assert "generation 4 here, 3 on rank 2" in errors[0]
    assert shut_down(engines) == [True] * 3


def test_plans_that_differ_are_an_error_that_shows_the_first_line_that_differs() -> None:
    with local_ranks(3) as engines:
        texts = ["a float32[3]\nb float32[4]", "a float32[3]\nc float32[4]", "a float32[3]\nb float32[4]"]
        handles = [e.open_plan(0, "plan", text) for e, text in zip(engines, texts, strict=True)]
        for h in handles:
            assert h.sleep(LONG)
            with pytest.raises(MismatchError, match=r"ranks 0, 2: b float32\[4\]\n  rank 1: c float32\[4\]"):
                h.check()
        open_plan(engines)


def test_a_rank_without_memory_for_its_output_fails_with_its_peers_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RINGDP_LETTER_BYTES", "0")
    with local_ranks(3) as engines:
        rows = 2**38  # to rank 0, which cannot hold them; nobody gets as far as reading them
        source = coded(0, 1)

        def exchange(engine: Any) -> Pending:
            splits = [[0, 0, 0], [rows, 0, 0], [0, 0, 0]][engine.rank]
            shape = (sum(splits),)
            at = source.ctypes.data
            submission = _core.Submission(
                OpKind.alltoall, "x", 0, at, 0, Dtype.float32, shape, 1, 1.0, 1.0, -1, splits
            )
            return Pending(engine.submit(submission), source, None)

        pending = [exchange(e) for e in engines]
        with pytest.raises(
            PeerError, match=f"alltoall 'x' failed: rank 0 has no memory for {4 * rows} bytes"
        ):
            pending[0].result()
        with pytest.raises(
            PeerError, match="alltoall 'x' failed: rank 0 gave up this operation before it sent"
        ):
            pending[1].result()
        pending[2].result()
        for i in range(TAGS):
            for p in [allreduce(e, "next", coded(e.rank, 5) + i) for e in engines]:
                assert (p.result() == total(3, 5) + 3 * i).all()


# --- buckets of a plan ----------------------------------------------------------------------------------------------


def bucket(engine: Any, lane: int, index: int, data: np.ndarray, digest: int = 5, **how: Any) -> Pending:
    count, dtype, op = how.get("count", data.size), how.get("dtype", Dtype[data.dtype.name]), how.get("op", 1)
    scale = how.get("scale", 1.0)
    handle = engine.submit_bucket(0, lane, index, digest, data.ctypes.data, count, dtype, op, scale, 1.0)
    return Pending(handle, data, data)


@pytest.mark.parametrize("seed", [0, 4])
def test_planned_buckets_beside_named_operations(seed: int) -> None:
    with local_ranks(3, seed) as engines:
        lane, other = open_plan(engines, "one"), open_plan(engines, "two")
        assert lane != other
        for step in range(4):
            named = [[allreduce(e, f"n{i}", coded(e.rank, 40) + step) for i in range(20)] for e in engines]
            buckets = [[bucket(e, lane, i, coded(e.rank, 1000 + i)) for i in range(8)] for e in engines]
            small = [[bucket(e, other, 0, coded(e.rank, 1), digest=9)] for e in engines]
            votes = [e.vote(0, lane, [e.rank + step, 100 - e.rank]) for e in engines]
            for r in range(3):
                assert all((p.result() == total(3, 40) + 3 * step).all() for p in named[r])
                assert all((p.result() == total(3, 1000 + i)).all() for i, p in enumerate(buckets[r]))
                assert (small[r][0].result() == total(3, 1)).all()
                assert votes[r].sleep(LONG) and votes[r].words() == [step, 98]


def test_more_buckets_in_flight_than_the_window_of_tags() -> None:
    with local_ranks(2, seed=1) as engines:
        lane = open_plan(engines)
        first = [bucket(engines[0], lane, i, coded(0, 3)) for i in range(700)]
        second = [bucket(engines[1], lane, i, coded(1, 3)) for i in range(700)]
        assert all((p.result() == total(2, 3)).all() for p in first + second)


DEVIATIONS = {
    "index": {"index": 3},
    "count": {"count": 99},
    "one element": {"count": 1},
    "no element": {"count": 0},
    "dtype": {"dtype": Dtype.int32},
    "operation": {"op": ReduceOp.Max},
    "scale": {"scale": 0.5},
    "digest": {"digest": 6},
}


@pytest.mark.parametrize("deviation", DEVIATIONS.values(), ids=DEVIATIONS.keys())
@pytest.mark.parametrize(
    ("hosts", "algorithm"),
    [
        *itertools.product((2, 3, 4), ("auto", "ring", "halving_doubling", "double_tree")),
        *itertools.product(([0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1, 0, 1], [0, 0, 1]), ("auto", "two_level")),
    ],
)
def test_a_deviating_bucket_fails_its_plan_on_every_rank_and_nothing_else(
    deviation: dict[str, Any], hosts: int | list[int], algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGDP_ALGORITHM", algorithm)
    size, host_of = (hosts, []) if isinstance(hosts, int) else (len(hosts), hosts)
    with local_ranks(size, size, host_of) as engines:
        lane, other = open_plan(engines, "one"), open_plan(engines, "two")
        # Bucket 0 is right; bucket 1 deviates on one rank; of what follows some ranks have started more than others.
        right, wrong, after, votes = [], [], [], []
        for e in engines:
            right.append(bucket(e, lane, 0, coded(e.rank, 100)))
            deviates = deviation if e.rank == size - 1 else {}
            wrong.append(bucket(e, lane, deviates.get("index", 1), coded(e.rank, 100), **_no_index(deviates)))
            after += [bucket(e, lane, 2 + i, coded(e.rank, 100)) for i in range(3 * e.rank)]
            if e.rank != 1:
                votes.append(e.vote(0, lane, [1]))
        named = [allreduce(e, "named", coded(e.rank, 100)) for e in engines]
        beside = [bucket(e, other, 0, coded(e.rank, 100)) for e in engines]

        assert all((p.result() == total(size, 100)).all() for p in right + named + beside)
        for p in wrong + after + [Pending(v, None, None) for v in votes]:
            with pytest.raises(PeerError):
                p.result()
        for e in engines:
            for late in (bucket(e, lane, 9, coded(0, 5)), Pending(e.vote(0, lane, [1]), None, None)):
                with pytest.raises(PeerError, match="has failed in an earlier step"):
                    late.result()
        new = open_plan(engines, "new")
        again = [bucket(e, new, 0, coded(e.rank, 50)) for e in engines]
        assert all((p.result() == total(size, 50)).all() for p in again)


def test_ranks_that_differ_so_much_that_they_choose_different_algorithms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RINGDP_ALGORITHM", raising=False)
    sizes = [
        10,
        10,
        3_000_000,
        10,
        10,
    ]  # some wait for messages of recursive doubling that rank 2 never sends
    with local_ranks(len(sizes), seed=3) as engines:
        assert [algorithm_of(len(sizes), 4 * n) for n in sizes[1:3]] == ["recursive_doubling", "ring"]
        lane, other = open_plan(engines, "one"), open_plan(engines, "two")
        pending = [bucket(e, lane, 0, coded(e.rank, n)) for e, n in zip(engines, sizes, strict=True)]
        for p in pending:
            with pytest.raises(PeerError, match="failed"):
                p.result()
        beside = [bucket(e, other, 0, coded(e.rank, 100)) for e in engines]
        assert all((p.result() == total(len(sizes), 100)).all() for p in beside)


def algorithm_of(size: int, bytes_: int) -> str:
    return _core.choose(size, 1, size, False, bytes_, Dtype.float32, _core.profile("ethernet-10"))


def _no_index(deviation: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in deviation.items() if k != "index"}


def test_the_neighbour_of_a_deviating_rank_says_what_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGDP_ALGORITHM", "ring")
    with local_ranks(3) as engines:
        lane = open_plan(engines)
        pending = [bucket(e, lane, e.rank == 1, coded(e.rank, 10)) for e in engines]
        errors = []
        for p in pending:
            with pytest.raises(PeerError) as raised:
                p.result()
            errors.append(str(raised.value))
        assert f"rank 2: bucket 0 of plan {lane} failed: bucket 0 here, 1 on rank 1" in errors[2]
        assert f"rank 1: bucket 1 of plan {lane} failed: bucket 1 here, 0 on rank 0" in errors[1]
        assert errors[0].startswith(f"rank 0: bucket 0 of plan {lane} failed: rank 2 gave up")


def test_a_vote_or_bucket_of_no_plan_is_refused() -> None:
    with local_ranks(1) as engines:
        for pending in (engines[0].vote(0, 7, [1]), bucket(engines[0], 7, 0, coded(0, 1)).handle):
            assert pending.sleep(LONG)
            with pytest.raises(Exception, match="there is no plan 7"):
                pending.check()
        with pytest.raises(UsageError, match="rank 0 is not in process set 3"):
            engines[0].vote(3, 1, [1])
        with pytest.raises(UsageError, match="rank 0 is not in process set 3"):
            allreduce(engines[0], "x", coded(0, 1), process_set=3)


# --- deadlines and leaving ------------------------------------------------------------------------------------------


def test_at_the_deadline_the_error_names_the_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGDP_TIMEOUT", "0.4")
    with local_ranks(2) as engines:
        lane, other = open_plan(engines, "one"), open_plan(engines, "two")
        began = time.monotonic()
        waiting = {
            "allreduce 'grad.7' waited": allreduce(engines[0], "grad.7", coded(0, 3)),
            "allreduce 'unnamed.5' waited": [allreduce(engines[0], "", coded(0, 3)) for _ in range(70)][69],
            f"bucket 4 of plan {lane} did not complete": bucket(engines[0], lane, 4, coded(0, 10)),
            f"the vote of plan {other} waited": Pending(engines[0].vote(0, other, [1]), None, None),
        }
        for text, pending in waiting.items():
            with pytest.raises(DeadlineError, match=f"rank 0: {text}") as raised:
                pending.result()
            assert "RINGDP_TIMEOUT" in str(raised.value)
        assert 0.4 <= time.monotonic() - began < 5
        named = [allreduce(e, "other", coded(e.rank, 3)) for e in engines]  # the job can go on
        assert all((p.result() == total(2, 3)).all() for p in named)


ALIVE = r"rank {} \(host \S+, process \d+\) is alive \(state [RSD]\) and has not come; .*"


@pytest.mark.parametrize("hosts", [[], [0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 1, 1]])
@pytest.mark.parametrize("absent", [1, 3])
def test_who_has_not_come_is_named_by_all(
    monkeypatch: pytest.MonkeyPatch, hosts: list[int], absent: int
) -> None:
    """Of this host, and by messages of the others; also what that rank has come to last."""
    monkeypatch.setenv("RINGDP_TIMEOUT", "0.4")
    with local_ranks(4, hosts=hosts) as engines:
        lane = open_plan(engines, "one")
        there = [e for e in engines if e.rank != absent]
        for pending in [allreduce(e, "before", coded(e.rank, 3)) for e in engines]:
            pending.result()
        for waits in (
            lambda e, _: allreduce(e, "loss", coded(e.rank, 3)),
            lambda e, lane: bucket(e, lane, 0, coded(e.rank, 1000)),
            lambda e, lane: Pending(e.vote(0, lane, [1]), None, None),
        ):
            for pending in [waits(e, lane) for e in there]:
                with pytest.raises((DeadlineError, PeerError), match=ALIVE.format(absent)) as raised:
                    pending.result()
                last = r"the last it came to was (allreduce 'before'|open_plan 'after.*') \(DONE\)"
                assert re.search(last, str(raised.value))
            lane = open_plan(engines, f"after {waits.__code__.co_firstlineno}")


def test_ranks_that_have_come_to_different_things(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGDP_TIMEOUT", "0.4")
    with local_ranks(2, hosts=[0, 0]) as engines:
        pending = allreduce(engines[0], "x", coded(0, 3)), allreduce(engines[1], "y", coded(1, 3))
        for rank, (mine, name) in enumerate(zip(pending, "yx", strict=True)):
            text = rf"rank {1 - rank} .* waits for something else; in allreduce '{name}' \((AGREE|FAILED)\)"
            with pytest.raises(DeadlineError, match=text):
                mine.result()


@pytest.mark.parametrize("hosts", [[0, 0], [0, 1], [0, 0, 0], [0, 1, 1], [0, 1, 0, 1]])
@pytest.mark.parametrize("by", ["bucket", "vote"])
def test_a_rank_that_has_left_out_an_operation_is_blamed_by_all(
    monkeypatch: pytest.MonkeyPatch, hosts: list[int], by: str
) -> None:
    """It is ahead in a plan, and waits there for the others, which wait for it: itself, it says so as well."""
    monkeypatch.setenv("RINGDP_TIMEOUT", "0.8")
    with local_ranks(len(hosts), hosts=hosts) as engines:
        lane = open_plan(engines, "one")
        left_out = 1
        pending = [
            Pending(e.vote(0, lane, [1]), None, None)
            if e.rank == left_out and by == "vote"
            else bucket(e, lane, 0, coded(e.rank, 1000))
            if e.rank == left_out
            else allreduce(e, "norm", coded(e.rank, 3))
            for e in engines
        ]
        here = f"(bucket 0|the vote) of plan {lane}"
        text = rf"rank {left_out} \(host \S+, process \d+\) waits for something else; in {here} \(\w+\)"
        for rank, p in enumerate(pending):
            with pytest.raises(DeadlineError, match=text) as raised:
                p.result()
            assert str(raised.value).count("waits for something else") == 1
            itself = r"is in allreduce 'norm' \(\w+\) for \S+ s, to which this rank has not come: rank 1"
            assert bool(re.search(itself, str(raised.value))) == (rank == left_out), str(raised.value)


def test_a_report_and_then_they_go_on(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RINGDP_REPORT_AFTER", "0.2")
    with local_ranks(3, hosts=[0, 0, 1]) as engines:
        waiting = [allreduce(engines[r], "x", coded(r, 3)) for r in (0, 2)]
        time.sleep(1.5)
        waiting.append(allreduce(engines[1], "x", coded(1, 3)))
        assert all((p.result() == total(3, 3)).all() for p in waiting)
    said = [line for line in capfd.readouterr().err.splitlines() if "waits in allreduce 'x'" in line]
    assert 1 <= len(said) <= 4 and all(
        re.search("ringdp: rank 0 .*" + ALIVE.format(1), line) for line in said
    ), said


@pytest.mark.parametrize("seed", [0, 1])
def test_who_waits_for_a_rank_that_shuts_down_is_told_which(seed: int) -> None:
    with local_ranks(3, seed) as engines:
        waiting = [allreduce(engines[r], name, coded(r, 3)) for r in (0, 2) for name in ("x", "y", "")]
        with ThreadPoolExecutor(1) as pool:
            left = pool.submit(engines[1].shutdown, LONG)
            for p in waiting:
                with pytest.raises(PeerError, match=r"cannot complete: rank 1 has shut ringdp down"):
                    p.result()
            with pytest.raises(PeerError, match=r"rank 0: allreduce 'later' cannot complete: rank 1 has"):
                allreduce(engines[0], "later", coded(0, 3)).result()
            with pytest.raises(NotInitializedError, match="shut down"):
                allreduce(engines[1], "x", coded(1, 3))
            assert not left.done()  # it answers until all have left
            assert shut_down([engines[0], engines[2]]) == [True, True]
            assert left.result(LONG)


def test_a_step_that_a_rank_has_left_fails_on_the_others() -> None:
    with local_ranks(3) as engines:
        lane, other = open_plan(engines, "one"), open_plan(engines, "two")
        waiting = [bucket(engines[r], lane, i, coded(r, 30)) for r in (0, 2) for i in range(2)]
        waiting += [Pending(engines[r].vote(0, other, [1]), None, None) for r in (0, 2)]
        with ThreadPoolExecutor(1) as pool:
            left = pool.submit(engines[1].shutdown, LONG)
            errors = []
            for p in waiting:
                with pytest.raises(PeerError) as raised:
                    p.result()
                errors.append(str(raised.value))
            assert sum("this step cannot complete: rank 1 has shut ringdp down" in e for e in errors) >= 4
            assert shut_down([engines[0], engines[2]]) == [True, True]
            assert left.result(LONG)


def test_what_was_agreed_on_before_a_rank_left_completes_everywhere() -> None:
    with local_ranks(2, seed=1) as engines:
        lane = open_plan(engines)
        named = [[allreduce(e, f"n{i}", coded(e.rank, 200)) for i in range(400)] for e in engines]
        buckets = [[bucket(e, lane, i, coded(e.rank, 200)) for i in range(400)] for e in engines]
        with ThreadPoolExecutor(1) as pool:
            left = pool.submit(engines[0].shutdown, LONG)
            for mine, others in zip(*named, strict=True):
                finished = []
                for p in (mine, others):
                    try:
                        finished.append((p.result() == total(2, 200)).all())
                    except (PeerError, NotInitializedError) as error:
                        finished.append(type(error))
                # What the leaving rank has come to ends on the others, though its own caller is not told any more.
                assert finished in (
                    [True, True],
                    [NotInitializedError, True],
                    [NotInitializedError, PeerError],
                )
            assert all((p.result() == total(2, 200)).all() for p in buckets[0] + buckets[1])
            assert engines[1].shutdown(LONG) and left.result(LONG)


def test_shutdown_ends_in_time_though_others_stay() -> None:
    engines = _core.local_engines(2, 0)
    pending = allreduce(engines[0], "x", coded(0, 3))
    began = time.monotonic()
    assert engines[0].shutdown(0.3) is False
    assert time.monotonic() - began < 5
    with pytest.raises(NotInitializedError):
        pending.result()
    assert engines[1].shutdown(0.3) is True  # the other has told that it leaves, and answers no more


def test_an_abort_of_one_rank_reaches_the_others() -> None:
    engines = _core.local_engines(3, 0)
    lane = open_plan(engines)
    pending = [bucket(e, lane, 0, coded(e.rank, 3)) for e in engines[:2]]
    with pytest.raises(PeerError, match="exit code 9"):
        engines[2].abort(9)
    for p in pending:
        with pytest.raises(PeerError, match="another rank has aborted the job with exit code 9"):
            p.result()
    shut_down(engines, 0)


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("RINGDP_DEPTH", "abc"),
        ("RINGDP_DEPTH", "0"),
        ("RINGDP_DEPTH", "8x"),
        ("RINGDP_SEGMENT_BYTES", "-1"),
        ("RINGDP_SEGMENT_BYTES", "1e12"),
        ("RINGDP_TIMEOUT", "nan"),
        ("RINGDP_TIMEOUT", "0"),
        ("RINGDP_IDLE_LOOKS", "0"),
        ("RINGDP_SPIN_US", "-5"),
    ],
)
def test_an_option_that_cannot_be_understood_is_named(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UsageError, match=f"{variable}={value} is not a number from"):
        _core.local_engines(1, 0)


def test_an_empty_option_is_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    (fallback,) = (float(row[1]) for row in _core.option_table() if row[0] == "RINGDP_TIMEOUT")
    monkeypatch.setenv("RINGDP_TIMEOUT", "")
    with local_ranks(1) as engines:
        assert engines[0].timeout == fallback
