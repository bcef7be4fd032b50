"""Bad input: the same clear error on every rank concerned, outputs untouched, and the job goes on."""

import numpy as np
import pytest

import ringdp


def still_works():
    assert (ringdp.allreduce(np.ones(10), op=ringdp.Sum) == ringdp.size()).all()


DIFFERENCES = {
    "shape": (lambda odd: (np.ones((2, 4 if odd else 3)), {}), r"float64\[2, 4\].*|float64\[2, 3\]"),
    "dimensions": (lambda odd: (np.ones((6,) if odd else (2, 3)), {}), r"float64\[6\]"),
    "dtype": (lambda odd: (np.ones(5, np.float32 if odd else np.float64), {}), r"float32\[5\]"),
    "operation": (lambda odd: (np.ones(5), {"op": ringdp.Max if odd else ringdp.Min}), "op Max"),
    "prescale": (lambda odd: (np.ones(5), {"prescale_factor": 2.0 if odd else 1.0}), "prescale_factor 2"),
    "postscale": (
        lambda odd: (np.ones(5), {"postscale_factor": 0.5 if odd else 1.0}),
        "postscale_factor 0.5",
    ),
}


@pytest.mark.shows("mismatch: an error on every rank", "numpy", "eager")
@pytest.mark.shows("mismatch: an error on every rank", "cupy", "eager")
@pytest.mark.min_ranks(2)
@pytest.mark.parametrize("what", DIFFERENCES)
def test_allreduce_differs_between_ranks(what):
    make, text = DIFFERENCES[what]
    last = ringdp.size() - 1
    for odd_rank in (0, last):
        x, options = make(ringdp.rank() == odd_rank)
        before = x.copy()
        with pytest.raises(ringdp.MismatchError, match=text) as caught:
            ringdp.allreduce_(x, name="grad", **options)
        assert "'grad' differs between ranks" in str(caught.value)
        assert f"rank {odd_rank}: allreduce" in str(caught.value)
        assert (x == before).all()
        still_works()


@pytest.mark.min_ranks(2)
def test_root_differs_between_ranks():
    x = np.full(3, ringdp.rank())
    with pytest.raises(ringdp.MismatchError, match="root_rank 0"):
        ringdp.broadcast_(x, 1 if ringdp.rank() == 1 else 0, name="weights")
    assert (x == ringdp.rank()).all()
    still_works()


@pytest.mark.min_ranks(2)
def test_different_kinds_of_operation_under_one_name():
    call = ringdp.allgather if ringdp.rank() == 0 else ringdp.allreduce
    with pytest.raises(ringdp.MismatchError, match="allgather") as caught:
        call(np.ones(3), name="x")
    assert "allreduce" in str(caught.value)
    still_works()


@pytest.mark.min_ranks(2)
def test_allgather_rows_may_differ_but_nothing_else():
    with pytest.raises(ringdp.MismatchError, match=r"float64\[2, 5\]"):
        ringdp.allgather(np.ones((2, 5 if ringdp.rank() == 0 else 4)), name="rows")
    still_works()


@pytest.mark.min_ranks(2)
def test_unnamed_calls_that_do_not_match():
    with pytest.raises(ringdp.MismatchError, match="unnamed"):
        ringdp.allreduce(np.ones(3 if ringdp.rank() else 4))
    still_works()


def test_a_duplicate_name_in_flight():
    with pytest.raises(ringdp.DuplicateNameError, match="'twice'.*still in flight"):
        if ringdp.rank() == 0 and ringdp.size() > 1:
            first = ringdp.allreduce_async(np.ones(3), name="twice", op=ringdp.Sum)
            try:
                ringdp.allreduce_async(np.ones(3), name="twice")
            finally:
                ringdp.barrier()  # the others submit only now: the first cannot have completed before
                assert (first.wait() == ringdp.size()).all()
        else:
            ringdp.barrier() if ringdp.size() > 1 else None
            if ringdp.size() > 1:
                assert (ringdp.allreduce(np.ones(3), name="twice", op=ringdp.Sum) == ringdp.size()).all()
            raise ringdp.DuplicateNameError("'twice' is still in flight only on rank 0")
    still_works()


def test_wrong_arguments_are_refused_at_once():
    x = np.ones(4)
    with pytest.raises(ringdp.UsageError, match=f"rank {ringdp.rank()}: broadcast.*root_rank 99"):
        ringdp.broadcast(x, 99)
    with pytest.raises(ringdp.UsageError, match="op must be one of Average"):
        ringdp.allreduce(x, op=17)
    with pytest.raises(ringdp.UsageError, match="those of unnamed calls"):
        ringdp.allreduce(x, name="unnamed.3")
    with pytest.raises(TypeError, match="must be a str"):
        ringdp.allreduce(x, name=3)
    with pytest.raises(ringdp.UsageError, match="splits add up to"):
        ringdp.alltoall(x, splits=[1] * (ringdp.size() - 1) + [9])
    with pytest.raises(ringdp.UsageError, match="splits has"):
        ringdp.alltoall(x, splits=[4] + [0] * ringdp.size())
    with pytest.raises(ringdp.UsageError, match="must not be negative"):
        ringdp.alltoall(x, splits=[-1] * ringdp.size())
    with pytest.raises(ringdp.UsageError, match="bool tensors cannot be scaled"):
        ringdp.allreduce(np.ones(3, bool), op=ringdp.Sum, prescale_factor=2)
    with pytest.raises(ringdp.UsageError, match="at least one dimension"):
        ringdp.allgather(np.float32(3))
    still_works()


@pytest.mark.parametrize("dtype", ["complex64", "uint16", "uint64", "U3", "object", "datetime64[s]", ">f4"])
def test_dtypes_that_cannot_be_exchanged(dtype):
    with pytest.raises(
        TypeError, match="this array has dtype .*, which ringdp cannot exchange; it knows bool, uint8"
    ):
        ringdp.allreduce(np.zeros(3, dtype))
    still_works()


def test_targets_that_must_not_be_written():
    locked = np.ones(3)
    locked.flags.writeable = False
    with pytest.raises(TypeError, match="read-only"):
        ringdp.allreduce_(locked)
    with pytest.raises(TypeError, match=r"needs a numpy.ndarray, not builtins.list"):
        ringdp.broadcast_([1, 2], 0)

    class Array:  # as a JAX array: readable, not writable
        __module__ = "jaxlib._jax"

        def __array__(self, dtype=None, copy=None):
            return np.ones(3)

    with pytest.raises(TypeError, match="JAX arrays"):
        ringdp.allreduce_(Array())
    assert (ringdp.allreduce(Array(), op=ringdp.Sum) == ringdp.size()).all()
    assert (ringdp.allreduce(locked, op=ringdp.Sum) == ringdp.size()).all()
