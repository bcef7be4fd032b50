"""The rank suite runs the same tests over two transports.

Over MPI: `mpirun -n N python -m pytest --with-mpi tests/ranks`: every process is a rank and runs each test once.
In one process (`python -m pytest tests/ranks --local-ranks=N`) each test function runs in N threads at once, each a
rank of a fresh world over the `local` transport, whose messages arrive with seeded random delays.
"""

import functools
import os
import threading

import pytest

os.environ.setdefault(
    "RINGDP_TIMEOUT", "30"
)  # a test that hangs fails by name, long before the driver's limit

import ringdp
from ringdp import world


def pytest_addoption(parser):
    parser.addoption("--local-ranks", type=int, default=0, help="run in threads over the local transport")
    parser.addoption(
        "--local-hosts", type=int, default=0, help="the threads share memory, as on so many hosts"
    )
    parser.addoption(
        "--local-seed", type=int, default=1, help="seed of the local transport's delays; 0: none"
    )

    parser.addoption("--checked", action="store_true", help="with RINGDP_CHECKSUM=1")
    parser.addoption(
        "--gpu",
        choices=["host", "nccl", "mpi", "two_level"],
        help="tensors lie on GPUs, those of the stand-in (tests/standin), and go by this RINGDP_GPU_TRANSPORT",
    )
    parser.addoption(
        "--gpu-real",
        action="store_true",
        help="with --gpu: on the GPUs of this machine, as make gpu-check does",
    )
    parser.addoption(
        "--each-algorithm",
        action="store_true",
        help="run every test by each all-reduce of messages, or on several hosts in two levels",
    )


def pytest_generate_tests(metafunc):
    if metafunc.config.getoption("--each-algorithm"):
        from ringdp import _core

        on_hosts = metafunc.config.getoption("--local-hosts") > 1
        names = ["two_level"] if on_hosts else [algorithm.name for algorithm in _core.schedules.Algorithm]
        metafunc.parametrize("_algorithm", names, indirect=True, scope="session")


def pytest_configure(config):
    if config.getoption("--checked"):
        os.environ["RINGDP_CHECKSUM"] = "1"
    if config.getoption("--gpu"):
        import standin
        from ranks import on_gpu

        os.environ["RINGDP_GPU_TRANSPORT"] = config.getoption("--gpu")
        if not config.getoption("--gpu-real"):
            standin.use(devices=max(1, config.getoption("--local-ranks")))
            if config.getoption("--gpu") == "mpi":
                standin.let_mpi_in()
        on_gpu.replace_functions(config.getoption("--local-ranks") > 0, config.getoption("--gpu-real"))
        config.addinivalue_line("filterwarnings", "error::pytest.PytestUnraisableExceptionWarning")
    if config.getoption("--local-ranks"):
        # Every test begins and ends a world, and waits until idle engines have noticed.
        os.environ.setdefault("RINGDP_IDLE_LOOKS", "1000")
    config.addinivalue_line("markers", "min_ranks(n): needs at least so many ranks")
    config.addinivalue_line("markers", "host_only: says nothing of tensors on GPUs")
    config.addinivalue_line("markers", "processes_only: needs ranks that are processes (mpirun)")


def pytest_collection_modifyitems(config, items):
    local = config.getoption("--local-ranks")
    for item in items:
        if config.getoption("--gpu") and item.get_closest_marker("host_only"):
            item.add_marker(pytest.mark.skip(reason="is about tensors in host memory"))
        if not local:
            item.add_marker(pytest.mark.mpi)
        elif item.get_closest_marker("processes_only"):
            item.add_marker(pytest.mark.skip(reason="needs ranks that are processes"))


@pytest.fixture(scope="session", autouse=True)
def _job(request):
    if request.config.getoption("--local-ranks"):
        yield
        return
    ringdp.init()
    yield


@pytest.fixture(scope="session", autouse=True)
def _algorithm(request, _job):
    """RINGDP_ALGORITHM for the tests of this parameter: read when a local world is made, or when ringdp begins anew."""
    name = getattr(request, "param", None)
    if name is not None:
        local = request.config.getoption("--local-ranks")
        if not local:
            ringdp.shutdown()
        os.environ["RINGDP_ALGORITHM"] = name
        if not local:
            ringdp.init()


@pytest.fixture(autouse=True)
def _enough_ranks(request):
    marker = request.node.get_closest_marker("min_ranks")
    ranks = request.config.getoption("--local-ranks") or ringdp.size()
    if marker and ranks < marker.args[0]:
        pytest.skip(f"needs {marker.args[0]} ranks")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    size = pyfuncitem.config.getoption("--local-ranks")
    if not size:
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    body = functools.partial(pyfuncitem.obj, **arguments)
    run_local(size, pyfuncitem.config.getoption("--local-seed"), host_of_ranks(pyfuncitem.config), body)
    return True


def host_of_ranks(config):
    """By rank; empty where threads share nothing, or under MPI."""
    ranks, hosts = config.getoption("--local-ranks"), config.getoption("--local-hosts")
    return [rank * hosts // ranks for rank in range(ranks)] if hosts else []


@pytest.fixture
def hosts(request):
    """The ranks of each host, where threads are on hosts."""
    host_of = host_of_ranks(request.config)
    return [[rank for rank, host in enumerate(host_of) if host == h] for h in sorted(set(host_of))]


class LocalJob:
    """Process sets for ranks that are threads: the first rank of a set makes it for all."""

    def __init__(self, engines, hosts):
        self.engines, self.hosts = engines, hosts
        self.made = {}

    def add_set(self, engine, number, ranks):
        from ringdp import _core

        made = self.made.setdefault(number, threading.Event())  # in one step: a defaultdict may make two
        if engine.rank == ranks[0]:
            members = [self.engines[rank] for rank in ranks]
            _core.add_local_process_set(number, members, [self.hosts[rank] for rank in ranks if self.hosts])
            made.set()
        assert made.wait(30)

    def remove_set(self, number):
        pass


def run_local(size, seed, hosts, body):
    """Run `body` in `size` threads, each a rank; raise the first rank's failure. `hosts`: the host of each rank."""
    from ringdp import _core

    engines = _core.local_engines(size, seed, hosts)
    job = LocalJob(engines, hosts)
    failures = {}

    def rank_main(rank):
        here = world.World(engines[rank], world.Place(rank, size, rank, size), job)
        with world.use(here):
            try:
                body()
            except BaseException as failure:
                failures[rank] = failure
            finally:
                here.engine.shutdown(30)

    threads = [threading.Thread(target=rank_main, args=(r,)) for r in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # What failed only because another rank was no longer there tells less.
    for rank in sorted(
        failures, key=lambda r: isinstance(failures[r], (ringdp.PeerError, ringdp.DeadlineError))
    ):
        raise failures[rank]
