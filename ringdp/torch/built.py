"""What this ringdp was built with: Horovod's questions, answered as things are."""

from __future__ import annotations

from ringdp import world
from ringdp.errors import NotInitializedError


def mpi_built() -> bool:
    """True: MPI carries everything."""
    return True


def mpi_enabled() -> bool:
    """True: MPI carries everything."""
    return True


def mpi_threads_supported() -> bool:
    """True: calls may come from any thread, and `init()` refuses an MPI whose thread level is too low.

    Raises:
        NotInitializedError: before `init()`.
    """
    if not world.is_initialized():
        raise NotInitializedError("ringdp is not initialised: call ringdp.init() first")
    return True


def gloo_built() -> bool:
    """False."""
    return False


def gloo_enabled() -> bool:
    """False."""
    return False


def nccl_built() -> int:
    """0: not so far."""
    return 0


def cuda_built() -> bool:
    """False: not so far."""
    return False


def rocm_built() -> bool:
    """False."""
    return False


def ccl_built() -> bool:
    """False."""
    return False


def ddl_built() -> bool:
    """False."""
    return False
