"""ranks_*.py: every process is a rank (mpirun, pytest --with-mpi). test_*.py: one rank in this process."""

import os

os.environ.setdefault(
    "RINGDP_TIMEOUT", "30"
)  # a test that hangs fails by name, long before the driver's limit

import pytest
import torch

import ringdp
from ringdp import _core, world


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.name.startswith("ranks_"):
            item.add_marker(pytest.mark.mpi)


@pytest.fixture(scope="session", autouse=True)
def _threads():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def _job():
    ringdp.init()


@pytest.fixture(autouse=True)
def _rank(request):
    """Under mpirun this process is a rank; otherwise it is the only rank of a world without MPI."""
    if request.path.name.startswith("ranks_"):
        request.getfixturevalue("_job")
        yield
        return
    (engine,) = _core.local_engines(1, 0)
    with world.use(world.World(engine, world.Place(0, 1))):
        yield
    engine.shutdown(10)


@pytest.fixture
def c10d():
    """torch.distributed, with all ranks in ringdp's default group for the length of one test."""
    import torch.distributed as dist

    import ringdp.torch  # noqa: F401

    dist.init_process_group("ringdp")
    yield dist
    if dist.is_initialized():
        dist.destroy_process_group()
