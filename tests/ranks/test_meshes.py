"""Meshes: which ranks are a group along which axes, and that the groups exchange apart from each other."""

import math
from itertools import combinations

import numpy as np
import pytest

import ringdp
from ringdp import meshes


def shapes():
    """Axes whose product is the number of ranks, of which some are 1 long."""
    n = ringdp.size()
    long = next(d for d in range(2, n + 1) if n % d == 0) if n > 1 else 1
    return [
        {"data": n},
        {"data": n // long, "model": long},
        {"data": long, "model": n // long},
        {"data": n // long, "pipe": 1, "model": long},
        {"a": 1, "b": n, "c": 1},
    ]


def members(axes, along, rank):
    """The slow way: all ranks whose other coordinates are this rank's."""

    def place(one):
        found = {}
        for name in reversed(axes):
            one, found[name] = divmod(one, axes[name])
        return found

    mine = place(rank)
    return [r for r in range(ringdp.size()) if all(place(r)[x] == mine[x] for x in axes if x not in along)]


def coded(rank, count=5):
    return np.arange(count, dtype=np.float32) + 100 * rank


def test_the_groups_of_a_table_of_six():
    sizes = {"data": 2, "model": 3}
    assert meshes._groups(sizes, ("data",)) == [[0, 3], [1, 4], [2, 5]]
    assert meshes._groups(sizes, ("model",)) == [[0, 1, 2], [3, 4, 5]]
    cube = {"a": 2, "b": 2, "c": 2}
    assert meshes._groups(cube, ("a", "c")) == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert meshes._groups(cube, ("b",)) == [[0, 2], [1, 3], [4, 6], [5, 7]]


def test_every_choice_of_axes():
    for axes in shapes():
        mesh = ringdp.mesh(**axes)
        assert mesh.axes == axes and list(mesh.axes) == list(axes)
        place = np.unravel_index(ringdp.rank(), tuple(axes.values()))
        assert list(mesh.coordinates.items()) == list(zip(axes, map(int, place), strict=True))
        for count in range(1, len(axes) + 1):
            for along in combinations(axes, count):
                group = members(axes, along, ringdp.rank())
                one = mesh[along]
                assert one.ranks == group and mesh[along[::-1]] is one
                assert mesh.size(*along) == len(group) == math.prod(axes[axis] for axis in along)
                assert mesh.rank(*along) == group.index(ringdp.rank()) == one.rank()
                total = ringdp.allreduce(coded(ringdp.rank()), op=ringdp.Sum, process_set=one)
                assert (total == sum(coded(rank) for rank in group)).all()
                rows = ringdp.allgather(coded(ringdp.rank(), 2)[None], process_set=one)
                assert (rows == [coded(rank, 2) for rank in group]).all()
        assert mesh[tuple(axes)] is ringdp.global_process_set
        for axis in axes:
            assert getattr(mesh, axis) is mesh[axis]
        mesh.remove()


def test_the_groups_do_not_disturb_one_another():
    """Other numbers of unnamed calls in each group, and names that all have."""
    n = ringdp.size()
    down = 2 if n % 2 == 0 else 1
    mesh = ringdp.mesh(data=down, model=-1)
    for _ in range(1 + mesh.rank("data")):  # the same along "model" alone
        assert (
            ringdp.allreduce(coded(ringdp.rank()), op=ringdp.Sum, process_set=mesh.model)
            == sum(coded(rank) for rank in mesh.model.ranks)
        ).all()
    handles = [
        (one, ringdp.allreduce_async(coded(ringdp.rank()), op=ringdp.Sum, name="x", process_set=one))
        for one in (mesh.data, mesh.model, mesh["data", "model"])
    ]
    for one, handle in reversed(handles):
        assert (handle.wait() == sum(coded(rank) for rank in one.ranks)).all()
    mesh.remove()


def test_an_open_axis_and_what_is_shown():
    n = ringdp.size()
    mesh = ringdp.mesh(data=-1, model=1)
    assert mesh.axes == {"data": n, "model": 1} and repr(mesh) == f"mesh(data={n}, model=1)"
    with pytest.raises(ringdp.UsageError, match=r"mesh\(.*\) has no axis 'pipe': its axes are data, model"):
        mesh["pipe"]
    with pytest.raises(ringdp.UsageError, match="has no axis 'pipe'"):
        mesh.rank("data", "pipe")
    with pytest.raises(ringdp.UsageError, match="each once"):
        mesh.size("data", "data")
    with pytest.raises(ringdp.UsageError, match="each once"):
        mesh.rank()
    with pytest.raises(AttributeError, match="no attribute 'pipe'; mesh"):
        mesh.pipe  # noqa: B018
    kept, number = mesh.model, mesh.model.process_set_id
    mesh.add()  # it is there
    assert mesh.model is kept and kept.process_set_id == number
    mesh.remove()
    with pytest.raises(ringdp.NotInitializedError, match=r"call its add\(\) on all ranks"):
        mesh.coordinates  # noqa: B018
    with pytest.raises(ringdp.NotInitializedError, match=r"call its mesh's add\(\) on all ranks"):
        ringdp.allreduce(np.ones(2), process_set=mesh.model)
    mesh.add()
    assert mesh.model is kept and mesh.coordinates == {"data": ringdp.rank(), "model": 0}
    mesh.remove()


def test_what_cannot_be_a_mesh():
    n = ringdp.size()
    for axes, text in [
        ({}, r"a mesh needs an axis: mesh\(data=-1\)"),
        ({"data": n + 1}, rf"mesh\(data={n + 1}\) is of {n + 1} ranks, and the job has {n}: start it with {n + 1}"),
        ({"data": -1, "model": n + 1}, f"needs a multiple of {n + 1} ranks, .* start it with {n + 1}, or choose"),
        ({"data": -1, "model": -1}, "only one axis may be -1, not data and model"),
        ({"data": 0}, "'data' must be 1 or longer, or -1"),
        ({"data": -2}, "'data' must be 1 or longer, or -1"),
        ({"data": 1.0}, r"'data' must have an integer as its length, not 1\.0"),
        ({"rank": n}, "cannot be called 'rank'"),
        ({"_data": n}, "cannot be called '_data'"),
    ]:  # fmt: skip
        with pytest.raises(ringdp.UsageError, match=text):
            ringdp.mesh(**axes)
    assert (ringdp.allreduce(np.ones(2), op=ringdp.Sum) == n).all()


@pytest.mark.min_ranks(2)
def test_ranks_that_differ_all_hear_of_it():
    n, rank = ringdp.size(), ringdp.rank()
    with pytest.raises(ringdp.MismatchError, match=rf"different axes: rank 0: data={n}; rank 1: model={n}"):
        ringdp.mesh(**{"data" if rank == 0 else "model": n})
    with pytest.raises(
        ringdp.MismatchError, match=rf"different axes: rank 0: a=1, b={n}; rank 1: b={n}, a=1"
    ):
        ringdp.mesh(**({"a": 1, "b": n} if rank == 0 else {"b": n, "a": 1}))
    with pytest.raises(ringdp.MismatchError, match=rf"different axes: rank 0: data={n}; rank 1: no mesh"):
        if rank == 0:
            ringdp.mesh(data=n)
        else:
            ringdp.add_process_set([0])
    with pytest.raises(ringdp.UsageError, match="mesh, rank 1: mesh.data=7000. is of 7000 ranks"):
        ringdp.mesh(data=7000 if rank == 1 else n)
    mesh = ringdp.mesh(data=n, model=1)
    with pytest.raises(
        ringdp.MismatchError, match=rf"rank 0: data={n}, model=1 \(there already\); rank 1: data={n}, model=1"
    ):
        if rank == 0:
            mesh.add()
        else:
            ringdp.mesh(data=n, model=1)
    assert (ringdp.allreduce(coded(rank), op=ringdp.Max, process_set=mesh.data) == coded(n - 1)).all()
    mesh.remove()


def test_meshes_come_and_go_often():
    for _ in range(4):
        mesh = ringdp.mesh(data=1, model=-1)
        assert (
            ringdp.allreduce(coded(ringdp.rank()), op=ringdp.Sum, process_set=mesh.data)
            == coded(ringdp.rank())
        ).all()
        mesh.remove()


@pytest.mark.processes_only
def test_after_shutdown_and_init():
    mesh = ringdp.mesh(data=-1, model=1)
    kept = mesh.data
    ringdp.shutdown()
    with pytest.raises(ringdp.NotInitializedError):
        mesh.coordinates  # noqa: B018
    ringdp.init()
    with pytest.raises(ringdp.NotInitializedError, match=r"add\(\)"):
        mesh.coordinates  # noqa: B018
    mesh.add()
    assert mesh.data is kept and kept.ranks == list(range(ringdp.size()))
    everybody = sum(coded(rank) for rank in range(ringdp.size()))
    assert (ringdp.allreduce(coded(ringdp.rank()), op=ringdp.Sum, process_set=kept) == everybody).all()
    mesh.remove()


@pytest.mark.processes_only
@pytest.mark.min_ranks(2)
def test_elastic_run_that_begins_again_with_all_ranks():
    """Its reset makes each rank's sets again, as they were."""
    from ringdp import elastic

    down = 2 if ringdp.size() % 2 == 0 else 1
    mesh = ringdp.mesh(data=down, model=-1)
    ranks, coordinates = mesh.model.ranks, mesh.coordinates
    elastic.reset(ringdp.HorovodInternalError("a fault"))
    assert mesh.model.ranks == ranks and mesh.coordinates == coordinates
    total = ringdp.allreduce(coded(ringdp.rank()), op=ringdp.Sum, process_set=mesh.model)
    assert (total == sum(coded(rank) for rank in ranks)).all()
    mesh.remove()
