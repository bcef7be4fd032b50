"""`join()`: ranks that have no more data take part in what the others exchange, with what changes nothing."""

import numpy as np
import pytest

import ringdp

DTYPES = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]


def coded(rank, count=5):
    return np.arange(count, dtype=np.float32) + 100 * rank


def active(turn):
    """The ranks that still have data: rank r has r + 1 turns."""
    return [rank for rank in range(ringdp.size()) if rank >= turn]


def turns():
    return range(ringdp.rank() + 1)


@pytest.mark.shows("join", "numpy", "eager")
@pytest.mark.shows("join", "cupy", "eager")
@pytest.mark.parametrize("count", [0, 1, 1000, 100_003])
@pytest.mark.parametrize("name", [None, "x"])
def test_sums_of_those_that_still_have_data(count, name):
    for turn in turns():
        got = ringdp.allreduce(coded(ringdp.rank(), count), op=ringdp.Sum, name=name)
        assert (got == sum(coded(rank, count) for rank in active(turn))).all()
    assert ringdp.join() == ringdp.size() - 1
    assert (ringdp.allreduce(np.ones(3), op=ringdp.Sum) == ringdp.size()).all()


def test_averages_are_divided_by_all_ranks_as_in_horovod_or_by_those_that_are_active():
    for divide_by in ("all", "active", "all"):
        for turn in turns():
            ranks = active(turn)
            by = len(ranks) if divide_by == "active" else ringdp.size()
            whole = [np.float32(sum(8 * rank for rank in ranks)) / np.float32(by)] * 3
            assert ringdp.allreduce(np.full(3, 8 * ringdp.rank(), np.float32)).tolist() == whole
        ringdp.join(divide_by=divide_by)
    with pytest.raises(ringdp.UsageError, match="divide_by must be one of all, active, not 'none'"):
        ringdp.join(divide_by="none")


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_changes_nothing_in_any_reduction(dtype):
    for turn in turns():
        ranks = active(turn)
        x = np.array([ringdp.rank() % 2, 1 + ringdp.rank() % 3, 1]).astype(dtype)
        all_x = [np.array([rank % 2, 1 + rank % 3, 1]).astype(dtype) for rank in ranks]
        assert (ringdp.allreduce(x, op=ringdp.Min) == np.minimum.reduce(all_x)).all()
        assert (ringdp.allreduce(x, op=ringdp.Max) == np.maximum.reduce(all_x)).all()
        if dtype != "bool":
            assert (ringdp.allreduce(x, op=ringdp.Product) == np.multiply.reduce(all_x)).all()
    ringdp.join()


def test_other_operations():
    last = ringdp.size() - 1
    for turn in turns():
        ranks = active(turn)
        mine = coded(ringdp.rank(), 7)
        rows = ringdp.allgather(mine[: ringdp.rank() + 1, None])
        assert (rows == np.concatenate([coded(rank, 7)[: rank + 1, None] for rank in ranks])).all()
        assert (ringdp.broadcast(mine, last) == coded(last, 7)).all()
        part = ringdp.reducescatter(mine, op=ringdp.Sum)
        assert (
            part == np.array_split(sum(coded(rank, 7) for rank in ranks), ringdp.size())[ringdp.rank()]
        ).all()
        ringdp.barrier()
    ringdp.join()


@pytest.mark.min_ranks(2)
def test_what_lacks_a_rank_that_has_joined_fails_on_all_others():
    if ringdp.rank() > 0:
        for _ in range(2):
            with pytest.raises(ringdp.PeerError, match="broadcast 'b' cannot complete: rank 0 has joined"):
                ringdp.broadcast(np.ones(3), 0, name="b")
            with pytest.raises(ringdp.PeerError, match="cannot complete: rank 0 has joined"):
                ringdp.alltoall(np.ones(ringdp.size()))
        assert (ringdp.allreduce(np.ones(2), op=ringdp.Sum) == ringdp.size() - 1).all()
    ringdp.join()


@pytest.mark.min_ranks(3)
def test_a_difference_between_the_others_is_told_to_them():
    if ringdp.rank() > 0:
        with pytest.raises(ringdp.MismatchError, match=r"rank 1: allreduce of float64\[1\]"):
            ringdp.allreduce(np.ones(ringdp.rank()), op=ringdp.Sum, name="differs")
        assert (ringdp.allreduce(np.ones(2), op=ringdp.Sum, name="differs") == ringdp.size() - 1).all()
    ringdp.join()


@pytest.mark.parametrize("seed", range(4))
def test_many_operations_in_flight_while_ranks_join_at_random(seed):
    random = np.random.default_rng(1000 * seed + ringdp.rank())
    lengths = [int(n) for n in np.random.default_rng(seed).integers(0, 40, ringdp.size())]
    for epoch in range(3):
        handles = []
        mine = random.permutation(lengths[ringdp.rank()])
        for i in mine:
            handles.append(
                (i, ringdp.allreduce_async(coded(ringdp.rank(), i * 37), op=ringdp.Sum, name=f"t{i}"))
            )
        after = random.random() < 0.5  # their results are looked at after the join
        if not after:
            check(handles, lengths)
        last = ringdp.join()
        if after:
            check(handles, lengths)
        most = max(lengths)
        assert last == max(rank for rank, n in enumerate(lengths) if n == most)
        got = ringdp.allreduce(
            coded(ringdp.rank()) + epoch, op=ringdp.Sum
        )  # its name was that of others before
        assert (got == sum(coded(rank) + epoch for rank in range(ringdp.size()))).all()
        lengths = lengths[1:] + lengths[:1]


def check(handles, lengths):
    for i, handle in handles:
        assert (handle.wait() == sum(coded(rank, i * 37) for rank, n in enumerate(lengths) if i < n)).all()


@pytest.mark.min_ranks(3)
def test_joining_in_one_process_set_leaves_the_others_alone():
    some = ringdp.add_process_set([0, 1])
    if some.included():
        if ringdp.rank() == 1:
            for _ in range(3):
                assert (ringdp.allreduce(np.ones(2), op=ringdp.Sum, process_set=some) == 1).all()
        assert ringdp.join(process_set=some) == 1
    assert (ringdp.allreduce(np.ones(2), op=ringdp.Sum) == ringdp.size()).all()
    assert ringdp.remove_process_set(some)
