"""Many operations in flight, in another order on every rank."""

import random
import threading

import numpy as np
import pytest

import ringdp
from ringdp import world


@pytest.mark.shows("handles", "numpy", "eager")
@pytest.mark.shows("handles", "cupy", "eager")
def test_named_operations_meet_whatever_the_order():
    rank, size = ringdp.rank(), ringdp.size()
    for step in range(3):
        names = [f"tensor.{i}" for i in range(40)]
        random.Random(rank * 100 + step).shuffle(names)
        handles = {}
        for name in names:
            i = int(name.split(".")[1])
            handles[name] = ringdp.allreduce_async(np.full(i * i + 1, i + rank), name=name, op=ringdp.Sum)
        random.Random(rank).shuffle(names)
        for name in names:
            i = int(name.split(".")[1])
            assert (handles[name].wait() == i * size + size * (size - 1) // 2).all()
            assert handles[name].poll()


def test_unnamed_operations_meet_by_their_number():
    rank, size = ringdp.rank(), ringdp.size()
    handles = [ringdp.allreduce_async(np.full(i % 9, i + rank), op=ringdp.Sum) for i in range(200)]
    for i, handle in enumerate(handles):
        assert (ringdp.synchronize(handle) == i * size + size * (size - 1) // 2).all()


def test_in_place_and_forgotten_handles():
    x = np.ones(100_000)
    ringdp.allreduce_async_(x, op=ringdp.Sum)  # nobody keeps the handle: the array must live, and be written
    ringdp.barrier()
    y = np.ones(3)
    assert ringdp.allreduce_async_(y, op=ringdp.Sum).wait() is y
    assert (y == ringdp.size()).all()


def test_calls_from_several_threads():
    rank, size = ringdp.rank(), ringdp.size()
    here, wrong = world.current(), []

    def work(thread):
        with world.use(here):
            for i in range(10):
                got = ringdp.allreduce(np.full(1000, rank + i), name=f"thread.{thread}", op=ringdp.Sum)
                if not (got == i * size + size * (size - 1) // 2).all():
                    wrong.append((thread, i))

    threads = [threading.Thread(target=work, args=(t,)) for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_many_different_names_do_not_grow_without_bound():
    for step in range(20):  # 1,200 names: more than the ids that are kept
        handles = [
            ringdp.allreduce_async(np.full(2, i), name=f"loss.{step}.{i}", op=ringdp.Max) for i in range(60)
        ]
        for i, handle in enumerate(handles):
            assert (handle.wait() == i).all()


def test_blocking_and_asynchronous_unnamed_calls_keep_their_order():
    rank, size = ringdp.rank(), ringdp.size()
    ranks = size * (size - 1) // 2
    for i in range(100):
        small = ringdp.allreduce_async(np.full(3, i + rank), op=ringdp.Sum)
        large = ringdp.allreduce_async(np.full(9000, 2 * i + rank), op=ringdp.Sum)
        assert (ringdp.allreduce(np.full(2, 3 * i + rank), op=ringdp.Sum) == 3 * i * size + ranks).all()
        assert (large.wait() == 2 * i * size + ranks).all()
        own = np.full(5, 4 * i + rank)
        assert ringdp.allreduce_(own, op=ringdp.Sum) is own and (own == 4 * i * size + ranks).all()
        assert (small.wait() == i * size + ranks).all()


def test_small_blocking_calls_from_several_threads():
    rank, size = ringdp.rank(), ringdp.size()
    here, wrong = world.current(), []

    def work(thread):
        with world.use(here):
            x = np.empty(1)
            for i in range(200):
                x[0] = rank + thread + i
                ringdp.allreduce_(x, name=f"small.{thread}", op=ringdp.Sum)
                if x[0] != (thread + i) * size + size * (size - 1) // 2:
                    wrong.append((thread, i))

    threads = [threading.Thread(target=work, args=(t,)) for t in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
