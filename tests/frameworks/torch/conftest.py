"""For PyTorch's tests, beside what all frameworks share: tensors on GPUs, and torch.distributed."""

import os

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption(
        "--gpu",
        choices=["host", "nccl", "mpi"],
        help="tensors lie on GPUs, those of the stand-in (tests/standin), and go by way of host memory, by NCCL, or by "
        "MPI from GPU to GPU",
    )
    parser.addoption(
        "--gpu-real",
        action="store_true",
        help="with --gpu: on the GPUs that there are (if the environment names the stand-ins, on those)",
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "host_only: says nothing of tensors on GPUs")
    config.addinivalue_line("markers", "mixed: of tensors on GPUs and on the CPU; needs --gpu")
    if not config.getoption("--gpu"):
        return
    os.environ["RINGDP_GPU_TRANSPORT"] = config.getoption("--gpu")
    if not on_cuda(config):
        import standin

        os.environ["RINGDP_STANDIN_OPEN"] = "1"  # PyTorch computes in the memory of the GPU
        os.environ["RINGDP_STANDIN_MEMORY"] = str(4 << 30)
        if config.getoption("--gpu") == "nccl":
            os.environ["RINGDP_STANDIN_RANK_DEVICES"] = "1"  # PyTorch is shown the first GPU only
        standin.use()
        if config.getoption("--gpu") == "mpi":
            standin.let_mpi_in()
        from standin import torch_on_gpu

        torch_on_gpu.use()


def on_cuda(config):
    """On GPUs of NVIDIA's."""
    return config.getoption("--gpu-real") and "RINGDP_STANDIN_DEVICES" not in os.environ


def pytest_collection_modifyitems(config, items):
    on_gpu = config.getoption("--gpu")
    for item in items:
        if on_gpu and item.get_closest_marker("host_only"):
            item.add_marker(pytest.mark.skip(reason="is about tensors in host memory"))
        if (not on_gpu or on_cuda(config)) and item.get_closest_marker("mixed"):
            item.add_marker(pytest.mark.skip(reason="needs --gpu, and the stand-in"))


@pytest.fixture(autouse=True)
def _where(request):
    """With --gpu all tensors are made on the GPU, but in tests of both kinds."""
    if not request.config.getoption("--gpu"):
        yield
        return
    if on_cuda(request.config):
        from frameworks.torch.on_cuda import OnCuda

        with OnCuda():
            yield
        return
    from standin import torch_on_gpu

    everything = request.node.get_closest_marker("mixed") is None
    with (
        torch_on_gpu.stream(),
        torch_on_gpu.OnGpu(everything, strictly=request.config.getoption("--gpu-real")),
    ):
        yield


@pytest.fixture(scope="session", autouse=True)
def _threads():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def _job(request, _job):
    if request.config.getoption("--gpu") and on_cuda(request.config):
        import ringdp.torch as hvd

        hvd.use_local_device()


@pytest.fixture
def c10d():
    """torch.distributed, with all ranks in ringdp's default group for the length of one test."""
    import torch.distributed as dist

    import ringdp.torch  # noqa: F401

    dist.init_process_group("ringdp")
    yield dist
    if dist.is_initialized():
        dist.destroy_process_group()
