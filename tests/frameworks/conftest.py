"""What the tests of all frameworks share.

ranks_*.py: every process is a rank (mpirun, pytest --with-mpi), and ringdp is initialised once for all of them.
test_*.py: one process, the only rank of a world without MPI. A framework's own conftest.py adds what only it needs; to
do more when the job begins, it has a fixture `_job(_job)` of session scope.

A test that shows that an operation works says so, and docs/frameworks.md has a "yes" for it:

    @pytest.mark.shows("allreduce", "tensorflow", "eager", "compiled")  # an operation, a framework, in which ways
    @pytest.mark.shows(["callbacks", "load_model"], "keras", "jax", "torch")  # several operations; Keras: its backends

The names of operations, frameworks and ways are those of tests/frameworks/shown.py, where rows are added; they are read
from the source, so they are literals or stand for literals of the file. Mark the test that would fail if the operation
were wrong, not each one that uses it; the mark may stand more than once above a test, and in `marks=` of pytest.param.
Such a test must run wherever its framework's tests do: when it is skipped, it fails. After a change of marks,
`python tests/frameworks/shown.py` writes the table anew.
"""

import os

os.environ.setdefault(
    "RINGDP_TIMEOUT", "30"
)  # a test that hangs fails by name, long before the driver's limit

import pytest
from frameworks import shown

import ringdp
from ringdp import _core, world


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.path.name.startswith("ranks_"):
            item.add_marker(pytest.mark.mpi)
        for mark in item.iter_markers("shows"):
            shown.cells(*mark.args)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and must_run(item):
        said = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} shows what docs/frameworks.md says, and was skipped: {said}"
    return report


def must_run(item):
    """Whether the test shows something that can be shown here: one of Keras names the backends that it is for."""
    if item.config.getoption("--gpu", None):
        return False  # what docs/frameworks.md says is about tensors in host memory
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    filled = [cell for mark in item.iter_markers("shows") for cell in shown.cells(*mark.args)]
    return any(cell.framework != "keras" or cell.way == backend for cell in filled)


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
