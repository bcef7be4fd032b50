"""Process sets: who is in them, what they exchange, and that they never disturb one another."""

import contextlib

import numpy as np
import pytest

import ringdp
from ringdp import world


def coded(rank, count=5):
    return np.arange(count, dtype=np.float32) + 100 * rank


def total(ranks, count=5):
    return sum(coded(rank, count) for rank in ranks)


@contextlib.contextmanager
def process_sets(*ranks):
    """Adds process sets, and removes them afterwards."""
    sets = [ringdp.add_process_set(some) for some in ranks]
    yield sets
    for one in sets:
        assert ringdp.remove_process_set(one)


def with_last(*others):
    return sorted({*others, ringdp.size() - 1})


def test_the_global_set():
    everybody = ringdp.global_process_set
    assert everybody.process_set_id == 0
    assert everybody.ranks == list(range(ringdp.size()))
    assert (everybody.rank(), everybody.size(), everybody.included()) == (ringdp.rank(), ringdp.size(), True)


def test_a_set_knows_its_ranks():
    ranks = with_last(0)
    some = ringdp.add_process_set(reversed(ranks))
    assert some.ranks == ranks and some.size() == len(ranks) and some.process_set_id > 0
    assert some.included() == (ringdp.rank() in ranks)
    assert some.rank() == (ranks.index(ringdp.rank()) if some.included() else None)
    assert ringdp.remove_process_set(some) is True
    assert some.process_set_id is None
    assert ringdp.remove_process_set(some) is False
    with pytest.raises(ringdp.NotInitializedError, match=r"add_process_set\(\)"):
        some.size()
    with pytest.raises(ringdp.NotInitializedError, match=r"add_process_set\(\)"):
        ringdp.allreduce(np.ones(2), process_set=some)


@pytest.mark.shows("process sets", "numpy", "eager")
@pytest.mark.shows("process sets", "cupy", "eager")
@pytest.mark.parametrize("count", [1, 5, 70_000])
def test_every_operation_among_some_ranks(count):
    ranks = with_last(0)
    some = ringdp.add_process_set(ranks)
    if some.included():
        mine = coded(ringdp.rank(), count)
        assert (ringdp.allreduce(mine, op=ringdp.Sum, process_set=some) == total(ranks, count)).all()
        place = mine.copy()
        assert ringdp.allreduce_(place, op=ringdp.Max, name="max", process_set=some) is place
        assert (place == coded(ranks[-1], count)).all()
        rows = mine[: 1 + some.rank(), None]
        whole = ringdp.allgather(rows, process_set=some)
        assert (whole == np.concatenate([coded(r, count)[: 1 + i, None] for i, r in enumerate(ranks)])).all()
        root = ranks[-1]  # its number in the job
        assert (ringdp.broadcast(mine, root, process_set=some) == coded(root, count)).all()
        parts = np.repeat(mine[:1], some.size())
        assert (ringdp.alltoall(parts, process_set=some) == [coded(r, 1)[0] for r in ranks]).all()
        part = ringdp.reducescatter(mine, op=ringdp.Sum, process_set=some)
        assert (part == np.array_split(total(ranks, count), some.size())[some.rank()]).all()
        ringdp.barrier(process_set=some)
        objects = ringdp.allgather_object(("rank", ringdp.rank()), process_set=some)
        assert objects == [("rank", rank) for rank in ranks]
        assert ringdp.broadcast_object(ringdp.rank(), ranks[-1], process_set=some) == ranks[-1]
    elif ringdp.size() > 1:
        with pytest.raises(ringdp.UsageError, match=f"not in process set {some.process_set_id}"):
            ringdp.allreduce(np.ones(2), process_set=some)
    ringdp.remove_process_set(some)


def test_a_root_outside_the_set_is_refused():
    with process_sets([0]) as (some,):
        if some.included():
            with pytest.raises(ringdp.UsageError, match="root_rank 7 is not one of the ranks of"):
                ringdp.broadcast(np.ones(2), 7, process_set=some)


@pytest.mark.min_ranks(2)
def test_unnamed_calls_of_one_set_do_not_disturb_another():
    """Rank-asymmetric unnamed calls: in Horovod the next global one hangs for ever."""
    everybody = range(ringdp.size())
    with process_sets(*([rank] for rank in everybody), with_last(0)) as sets:
        for turn in range(5):
            for rank, alone in enumerate(sets[:-1]):
                if rank == ringdp.rank():
                    for _ in range(1 + rank + turn):
                        assert (
                            ringdp.allreduce(coded(rank), op=ringdp.Sum, process_set=alone) == coded(rank)
                        ).all()
            if sets[-1].included():
                mine = coded(ringdp.rank())
                assert (
                    ringdp.allreduce(mine, op=ringdp.Sum, process_set=sets[-1]) == total(sets[-1].ranks)
                ).all()
            assert (ringdp.allreduce(coded(ringdp.rank()), op=ringdp.Sum) == total(everybody)).all()


@pytest.mark.min_ranks(3)
def test_overlapping_sets_in_other_orders_on_each_rank():
    with process_sets([0, 1], [1, 2], [0, 2]) as sets:
        mine = [s for s in (*sets, ringdp.global_process_set) if s.included()]
        random = np.random.default_rng(ringdp.rank())
        for _ in range(5):
            handles = []
            for i in random.permutation(len(mine) * 6):
                one, name = mine[i % len(mine)], f"x{i // len(mine)}"
                data = coded(ringdp.rank()) + i // len(mine)
                handles.append(
                    (
                        one,
                        i // len(mine),
                        ringdp.allreduce_async(data, op=ringdp.Sum, name=name, process_set=one),
                    )
                )
            for one, k, handle in handles:
                assert (handle.wait() == total(one.ranks) + k * one.size()).all()


@pytest.mark.min_ranks(2)
def test_a_difference_names_the_ranks_of_the_job():
    with process_sets([ringdp.size() - 2, ringdp.size() - 1]) as (some,):
        if some.included():
            with pytest.raises(
                ringdp.MismatchError,
                match=rf"rank {ringdp.size() - 1}: allreduce of float32\[{ringdp.size()}\]",
            ):
                ringdp.allreduce(np.ones(1 + ringdp.rank(), np.float32), name="x", process_set=some)


def test_what_cannot_be_added():
    with pytest.raises(ringdp.UsageError, match="at least one rank"):
        ringdp.add_process_set([])
    with pytest.raises(ringdp.UsageError, match=rf"names \[0, {ringdp.size()}\]"):
        ringdp.add_process_set([0, ringdp.size()])
    with pytest.raises(ringdp.UsageError, match="names a rank twice"):
        ringdp.add_process_set([0, 0])
    some = ringdp.add_process_set([0])
    with pytest.raises(ringdp.UsageError, match="was added before"):
        ringdp.add_process_set(some)
    assert ringdp.remove_process_set(some)
    with pytest.raises(ringdp.UsageError, match="the global process set cannot be removed"):
        ringdp.remove_process_set(ringdp.global_process_set)


@pytest.mark.min_ranks(2)
def test_ranks_that_name_different_sets_all_hear_of_it():
    with pytest.raises(ringdp.MismatchError, match=r"different process sets: rank 0: \[0\]; rank 1: \[1\]"):
        ringdp.add_process_set([ringdp.rank()])
    with pytest.raises(
        ringdp.UsageError, match="add_process_set, rank 0: a process set needs at least one rank"
    ):
        ringdp.add_process_set([] if ringdp.rank() == 0 else [0])
    assert (ringdp.allreduce(coded(ringdp.rank()), op=ringdp.Sum) == total(range(ringdp.size()))).all()


@pytest.mark.min_ranks(2)
def test_a_set_with_an_operation_under_way_stays():
    some = ringdp.add_process_set([0, 1])
    handle = None
    if ringdp.rank() == 0:
        handle = ringdp.allreduce_async(coded(0), op=ringdp.Sum, name="late", process_set=some)
    with pytest.raises(ringdp.UsageError, match="rank 0 has an operation under way"):
        ringdp.remove_process_set(some)
    if ringdp.rank() == 1:
        handle = ringdp.allreduce_async(coded(1), op=ringdp.Sum, name="late", process_set=some)
    if handle is not None:
        assert (handle.wait() == total([0, 1])).all()
    ringdp.barrier()
    assert ringdp.remove_process_set(some)


def test_several_sets_of_the_same_ranks_are_apart():
    ranks = list(range(ringdp.size()))
    with process_sets(ranks, ranks) as (first, second):
        mine = coded(ringdp.rank())
        late = ringdp.allreduce_async(mine, op=ringdp.Sum, name="x", process_set=first)
        assert (ringdp.allreduce(mine, op=ringdp.Max, name="x", process_set=second) == coded(ranks[-1])).all()
        assert (late.wait() == total(ranks)).all()


def test_sets_come_and_go_often():
    for _ in range(20):
        some = ringdp.add_process_set(with_last(0))
        if some.included():
            assert (
                ringdp.allreduce(coded(ringdp.rank()), op=ringdp.Sum, process_set=some) == total(some.ranks)
            ).all()
        assert ringdp.remove_process_set(some)


@pytest.mark.processes_only
def test_sets_of_communicators_and_sets_given_to_init():
    from mpi4py import MPI

    half = MPI.COMM_WORLD.Split(MPI.COMM_WORLD.rank % 2)
    mine, first = ringdp.ProcessSet(half), ringdp.ProcessSet([0])
    ringdp.shutdown()
    ringdp.init(process_sets=[mine, first])
    ranks = list(range(ringdp.rank() % 2, ringdp.size(), 2))
    assert mine.ranks == ranks and mine.included() and first.included() == (ringdp.rank() == 0)
    assert (ringdp.allreduce(coded(ringdp.rank()), op=ringdp.Sum, process_set=mine) == total(ranks)).all()
    numbers = ringdp.allgather(np.array([mine.process_set_id, first.process_set_id])).reshape(-1, 2)
    assert len({tuple(n) for n in numbers}) == min(2, ringdp.size()) and len(set(numbers[:, 1])) == 1
    if ringdp.size() > 1:
        with pytest.raises(ringdp.MismatchError, match="name different process sets: rank 0: 1; rank 1: 3"):
            ringdp.remove_process_set(mine if ringdp.rank() == 0 else first)
    assert ringdp.remove_process_set(mine) and mine.process_set_id is None
    assert not ringdp.remove_process_set(mine) and first.process_set_id is not None
    ringdp.shutdown()
    assert mine.process_set_id is None
    ringdp.init()
    half.Free()


@pytest.mark.processes_only
def test_init_with_some_ranks_alone():
    ringdp.shutdown()
    from mpi4py import MPI

    everybody = list(range(MPI.COMM_WORLD.size))
    ringdp.init(everybody[:1] if MPI.COMM_WORLD.rank == 0 else everybody[1:])
    ranks = [0] if MPI.COMM_WORLD.rank == 0 else everybody[1:]
    assert ringdp.size() == len(ranks) and ranks[ringdp.rank()] == MPI.COMM_WORLD.rank
    assert (ringdp.allreduce(np.ones(3), op=ringdp.Sum) == len(ranks)).all()
    ringdp.shutdown()
    ringdp.init()
    assert world.current().place.size == len(everybody)
