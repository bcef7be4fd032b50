"""What this ringdp was built with: Horovod's questions, answered as things are."""

from __future__ import annotations

from ringdp import _core, nccl, world
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
    """The version of the NCCL that is found where this runs, as NCCL gives it (22703 is 2.27.3); 0: there is none."""
    _core.gpu.look_for_nccl_in(nccl.files_of_wheels())
    return int(_core.gpu.nccl()["version"])


def cuda_built() -> bool:
    """True where there is a driver of CUDA."""
    return bool(_core.gpu.driver()["usable"])


def rocm_built() -> bool:
    """False."""
    return False


def ccl_built() -> bool:
    """False."""
    return False


def ddl_built() -> bool:
    """False."""
    return False
