"""init, shutdown, places, and children of ranks. Needs ranks that are processes."""

import multiprocessing
import os

import numpy as np
import pytest

import ringdp

pytestmark = pytest.mark.processes_only


def test_places_fit_together():
    places = ringdp.allgather_object((ringdp.local_rank(), ringdp.cross_rank(), ringdp.local_size()))
    assert ringdp.size() == len(places) and places[ringdp.rank()][0] == ringdp.local_rank()
    assert len({(local, cross) for local, cross, _ in places}) == ringdp.size()
    assert ringdp.is_homogeneous() and ringdp.local_size() * ringdp.cross_size() == ringdp.size()


def test_a_second_init_does_nothing():
    from ringdp import world

    before = world.current()
    ringdp.init()
    assert world.current() is before


def test_init_after_shutdown():
    for _ in range(3):
        ringdp.shutdown()
        assert not ringdp.is_initialized()
        with pytest.raises(ringdp.NotInitializedError, match=r"call ringdp.init\(\) first"):
            ringdp.allreduce(np.ones(2))
        with pytest.raises(ringdp.NotInitializedError):
            ringdp.rank()
        ringdp.init()
        assert (ringdp.allreduce(np.ones(2), op=ringdp.Sum) == ringdp.size()).all()


def test_init_with_another_communicator_is_refused():
    from mpi4py import MPI

    with pytest.raises(ringdp.InitError, match="other arguments"):
        ringdp.init(MPI.COMM_SELF)


def in_child(answers):
    found = []
    for call in (ringdp.init, lambda: ringdp.allreduce(np.ones(2))):
        try:
            call()
            found.append("no error")
        except ringdp.NotInitializedError as error:
            found.append(str(error))
    answers.put((ringdp.rank(), ringdp.size(), ringdp.is_initialized(), found))


@pytest.mark.host_only  # no driver survives a fork
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_process_of_a_rank(method, monkeypatch):
    # The child imports this file by its name.
    monkeypatch.setenv(
        "PYTHONPATH",
        os.pathsep.join(
            [os.path.dirname(os.path.dirname(__file__)), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        ),
    )
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    child = context.Process(target=in_child, args=(answers,))
    child.start()
    rank, size, initialized, found = answers.get(timeout=60)
    child.join(timeout=30)
    assert child.exitcode == 0
    assert (rank, size, initialized) == (ringdp.rank(), ringdp.size(), False)
    for text in found:
        assert f"is a child of rank {ringdp.rank()}" in text
    assert (ringdp.allreduce(np.ones(2), op=ringdp.Sum) == ringdp.size()).all()
