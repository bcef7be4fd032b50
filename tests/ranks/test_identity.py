"""What ranks must mean alike, field by field, over each way that an operation can take.

With its name, in shared memory, as messages; named, or as a bucket of a plan. One rank differs, or two do: an error on
every rank, and the job goes on.
"""

import numpy as np
import pytest
from ranks.test_halves import Half, Lane

import ringdp
from ringdp import world
from ringdp.constants import Dtype
from ringdp.ops import Handle

SMALL, LARGE = 40, 60_000  # elements: what may go along with its name, and what does not


def still_works():
    assert (ringdp.allreduce(np.ones(10), op=ringdp.Sum) == ringdp.size()).all()


def odd_ranks():
    """Who differs from the others, in turn."""
    last = ringdp.size() - 1
    return [{0}, {last}] + ([{0, last}] if ringdp.size() > 2 else [])


def array(count, dtype, shared):
    data = ringdp.empty(count, dtype=dtype) if shared else np.empty(count, dtype)
    data[:] = np.arange(count) % 13 + ringdp.rank()
    return data


# --- named operations -----------------------------------------------------------------------------

# How the call of a rank that differs is another one, and what the error says of it: (usual, odd, text).
NAMED = {
    "count": ({}, {"more": 2}, r"\[\d+\]"),
    "shape": ({}, {"rows": 2}, r"\[2, \d+\]"),
    "dtype": ({}, {"dtype": "int64"}, r"of int64\["),
    "operation": ({}, {"op": ringdp.Max}, "op Max"),
    "average": ({}, {"op": ringdp.Average}, "op Average"),
    "prescale": ({}, {"prescale_factor": 0.5}, "prescale_factor 0.5"),
    "postscale": ({"postscale_factor": 3.0}, {"postscale_factor": 0.1}, "postscale_factor 0.1"),
    "kind": ({}, {"kind": "broadcast"}, "broadcast"),
    "another kind": ({"kind": "broadcast"}, {"kind": "reducescatter"}, "reducescatter"),
    "root": ({"kind": "broadcast"}, {"kind": "broadcast", "root": 1}, "root_rank 1"),
}


def call(elements, shared, *, kind="allreduce", more=0, rows=0, dtype="float64", root=0, **options):
    data = array(elements + more, dtype, shared)
    before = data.copy()
    given = data.reshape(rows, -1) if rows else data
    options = {"op": ringdp.Sum, **options}
    try:
        if kind == "broadcast":
            ringdp.broadcast_(given, root, name="grad")
        elif kind == "reducescatter":
            ringdp.reducescatter(given, name="grad", **options)
        else:
            ringdp.allreduce_(given, name="grad", **options)
    finally:
        assert (data == before).all()  # untouched


@pytest.mark.min_ranks(2)
@pytest.mark.parametrize("field", NAMED)
@pytest.mark.parametrize(
    ("elements", "shared"),
    [(SMALL, False), (LARGE, False), (LARGE, True)],
    ids=["small", "large", "in place"],
)
def test_named(field, elements, shared):
    usual, odd, text = NAMED[field]
    for differ in odd_ranks():
        how = {**usual, **odd} if ringdp.rank() in differ else usual
        with pytest.raises(ringdp.MismatchError, match=text) as caught:
            call(elements, shared, **how)
        assert f"rank {ringdp.rank()}: 'grad' differs between ranks" in str(caught.value)
        still_works()


@pytest.mark.min_ranks(2)
@pytest.mark.parametrize("elements", [SMALL, LARGE])
def test_rows_may_differ_and_nothing_else(elements):
    for function, splits in ((ringdp.allgather, ()), (ringdp.alltoall, ([1] * ringdp.size(),))):
        for differ in odd_ranks():
            columns = elements + (ringdp.rank() in differ)
            with pytest.raises(ringdp.MismatchError, match=rf"float64\[\d+, {elements + 1}\]"):
                function(np.ones((ringdp.size(), columns)), *splits, name="rows")
            still_works()


# --- buckets --------------------------------------------------------------------------------------

BUCKETS = {
    "index": {"index": 7},  # as if two of the same shape came in another order
    "plan": {"digest": 99},
    "count": {"more": 1},
    "dtype": {"dtype": "int32"},
    "operation": {"op": ringdp.Max},
    "average": {"op": ringdp.Average},
    "prescale": {"prescale": 0.5},
    "postscale": {"postscale": 0.5},
    "half": {"half": Half.reduce_scatter},
}
USUAL = {
    "index": 1,
    "digest": 7,
    "more": 0,
    "dtype": "float32",
    "op": ringdp.Sum,
    "prescale": 1.0,
    "postscale": 1.0,
    "half": Half.both,
}


def submit(lane, elements, shared, **differs):
    how = {**USUAL, **differs}
    data = array(elements + how["more"], how["dtype"], shared)
    core = lane.engine.submit_bucket(
        0, lane.number, how["index"], how["digest"], data.ctypes.data, data.size, int(Dtype[data.dtype.name]),
        int(how["op"]), how["prescale"], how["postscale"], how["half"],
    )  # fmt: skip
    return Handle(core, data, lambda _: data, world.current())


@pytest.mark.min_ranks(2)
@pytest.mark.parametrize("field", BUCKETS)
@pytest.mark.parametrize(
    ("elements", "shared"),
    [(SMALL, False), (LARGE, False), (LARGE, True)],
    ids=["small", "large", "in place"],
)
def test_bucket(field, elements, shared):
    for differ in odd_ranks():
        lane = Lane()
        right = submit(lane, elements, shared, index=0)
        wrong = submit(lane, elements, shared, **(BUCKETS[field] if ringdp.rank() in differ else {}))
        wanted = sum(np.arange(elements) % 13 + rank for rank in range(ringdp.size()))
        assert (right.wait() == wanted).all()
        with pytest.raises((ringdp.MismatchError, ringdp.PeerError)):
            wrong.wait()
        with pytest.raises(ringdp.PeerError, match="failed in an earlier step"):
            submit(lane, elements, shared, index=2).wait()
        still_works()
