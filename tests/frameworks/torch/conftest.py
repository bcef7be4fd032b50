"""ranks_*.py: every process is a rank (mpirun, pytest --with-mpi). test_*.py: one rank in this process."""

import os

os.environ.setdefault(
    "RINGDP_TIMEOUT", "30"
)  # a test that hangs fails by name, long before the driver's limit

import pytest
import torch

import ringdp
from ringdp import _core, world


def pytest_addoption(parser):
    parser.addoption(
        "--gpu",
        choices=["host", "nccl", "mpi"],
        help="tensors lie on GPUs, those of the stand-in (tests/standin), and go by way of host memory, by NCCL, or by "
        "MPI from GPU to GPU",
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "host_only: says nothing of tensors on GPUs")
    config.addinivalue_line("markers", "mixed: of tensors on GPUs and on the CPU; needs --gpu")
    if config.getoption("--gpu"):
        import standin

        os.environ["RINGDP_GPU_TRANSPORT"] = config.getoption("--gpu")
        os.environ["RINGDP_STANDIN_OPEN"] = "1"  # PyTorch computes in the memory of the GPU
        os.environ["RINGDP_STANDIN_MEMORY"] = str(4 << 30)
        standin.use()
        if config.getoption("--gpu") == "mpi":
            standin.let_mpi_in()
        from standin import torch_on_gpu

        torch_on_gpu.use()


def pytest_collection_modifyitems(config, items):
    on_gpu = config.getoption("--gpu")
    for item in items:
        if item.path.name.startswith("ranks_"):
            item.add_marker(pytest.mark.mpi)
        if on_gpu and item.get_closest_marker("host_only"):
            item.add_marker(pytest.mark.skip(reason="is about tensors in host memory"))
        if not on_gpu and item.get_closest_marker("mixed"):
            item.add_marker(pytest.mark.skip(reason="needs --gpu"))


@pytest.fixture(autouse=True)
def _where(request):
    """With --gpu all tensors are made on the GPU, but in tests of both kinds."""
    if not request.config.getoption("--gpu"):
        yield
        return
    from standin import torch_on_gpu

    everything = request.node.get_closest_marker("mixed") is None
    with torch_on_gpu.stream(), torch_on_gpu.OnGpu(everything):
        yield


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
