"""For all tests: the stacks of what hangs, and workers of pytest-xdist (driver/phases.py says where there are some)."""

import faulthandler
import os
import tempfile
import time
from pathlib import Path

import pytest
from driver.environ import MARK, environment

_stacks_at = 0.0  # by time.monotonic(); 0: never
_stderr = -1  # not pytest's, which keeps what tests write


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "stacks_after", "seconds after the begin in which all stacks are written, once", default="0"
    )


def pytest_configure(config: pytest.Config) -> None:
    global _stacks_at, _stderr
    if after := float(config.getini("stacks_after")):
        _stacks_at, _stderr = time.monotonic() + after, os.dup(2)
    if hasattr(config, "workerinput"):
        be_a_worker(config.workerinput["workerid"], Path(config.option.basetemp))


def pytest_runtest_logstart() -> None:
    if (left := _stacks_at - time.monotonic()) > 0:  # each time: pytest calls it off after a failure
        faulthandler.dump_traceback_later(left, file=_stderr)


def be_a_worker(name: str, base: Path) -> None:
    # By the mark a test ends what its jobs have left, and must not meet what other workers' tests have started. In the
    # worker's own environment, as the kernel shows it, the mark of the run stays: to tests/run.py all are a part of it.
    os.environ[MARK] = f"{environment()[MARK]}-{name}"
    # Jobs of one user have a folder in common, which Open MPI removes when the last one there seems to have ended.
    folder = base.with_name(f"{base.name}-jobs")
    folder.mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


@pytest.hookimpl(optionalhook=True)  # where pytest-xdist is not installed nobody calls it
def pytest_xdist_make_scheduler(config, log):
    from driver.scheduling import Scheduling

    return Scheduling(config, log)
