"""What the environment says about how this process was started: launcher, cores, threads.

Pure functions of what they are given (an environment, a cgroup file system), so that they can be tested on made-up
ones; nothing here imports MPI. `init()` uses them to refuse a silent singleton and to warn about too many threads,
`ringdp run` and `ringdp info` to see where they are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ALLOW_SINGLETON = "RINGDP_ALLOW_SINGLETON"

# Step ids from here on are Slurm's own (interactive, batch, extern): their processes are not ranks of a job.
_SLURM_RESERVED_STEPS = 4294967280


@dataclass(frozen=True)
class Launch:
    """The traces one launcher left in the environment of a rank; None where it does not say."""

    launcher: str  # for messages: "Open MPI's mpirun", …
    trace: str  # the variable that showed it, with its value: "PMI_SIZE=4"
    size: int | None = None  # ranks started together
    rank: int | None = None
    local_rank: int | None = None  # among those of this host
    local_size: int | None = None  # ranks on this host

    @property
    def means_several(self) -> bool:
        """True when the launcher certainly started more than one rank."""
        return (self.size or 0) > 1 or (self.rank or 0) > 0


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "").strip()
    return int(text) if text.isdecimal() else None


def _open_mpi(environ: Mapping[str, str]) -> Launch | None:
    size = _number(environ, "OMPI_COMM_WORLD_SIZE")
    if size is None:
        return None
    return Launch(
        "Open MPI's mpirun",
        f"OMPI_COMM_WORLD_SIZE={size}",
        size,
        _number(environ, "OMPI_COMM_WORLD_RANK"),
        _number(environ, "OMPI_COMM_WORLD_LOCAL_RANK"),
        _number(environ, "OMPI_COMM_WORLD_LOCAL_SIZE"),
    )


def _slurm(environ: Mapping[str, str]) -> Launch | None:
    step, size = _number(environ, "SLURM_STEP_ID"), _number(environ, "SLURM_STEP_NUM_TASKS")
    if step is None or size is None or step >= _SLURM_RESERVED_STEPS:
        return None
    return Launch(
        "Slurm's srun",
        f"SLURM_STEP_NUM_TASKS={size}",
        size,
        _number(environ, "SLURM_PROCID"),
        _number(environ, "SLURM_LOCALID"),
        _slurm_local_size(environ),
    )


def _slurm_local_size(environ: Mapping[str, str]) -> int | None:
    """From "2(x3),1": two tasks on each of the first three nodes of the step, one on the fourth."""
    node = _number(environ, "SLURM_NODEID")
    if node is None:
        return None
    for item in environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        found = re.fullmatch(r"([0-9]{1,9})(?:\(x([0-9]{1,9})\))?", item.strip())
        if not found:
            return None
        nodes = int(found[2] or 1)
        if node < nodes:
            return int(found[1])
        node -= nodes
    return None


def _pmi(environ: Mapping[str, str]) -> Launch | None:
    size = _number(environ, "PMI_SIZE")
    if size is None:
        return None
    rank, slurm = _number(environ, "PMI_RANK"), _slurm(environ)
    hydra = "HYDI_CONTROL_FD" in environ or "MPI_LOCALNRANKS" in environ
    if slurm and not hydra and slurm.size == size:
        return Launch(
            "Slurm's srun (with PMI)", f"PMI_SIZE={size}", size, rank, slurm.local_rank, slurm.local_size
        )
    return Launch(
        "MPICH's mpiexec" if hydra else "a launcher that speaks PMI (MPICH's mpiexec, srun --mpi=pmi2)",
        f"PMI_SIZE={size}",
        size,
        rank,
        _number(environ, "MPI_LOCALRANKID"),
        _number(environ, "MPI_LOCALNRANKS"),
    )


def _pmix(environ: Mapping[str, str]) -> Launch | None:
    rank = _number(environ, "PMIX_RANK")
    if rank is None or not environ.get("PMIX_NAMESPACE"):
        return None
    trace, slurm = f"PMIX_RANK={rank}", _slurm(environ)
    if slurm and slurm.rank == rank:
        return Launch(
            "Slurm's srun (with PMIx)", f"{trace}, {slurm.trace}", slurm.size, rank, slurm.local_rank
        )
    return Launch("a launcher that speaks PMIx (prterun, srun --mpi=pmix)", trace, None, rank)


def launcher_traces(environ: Mapping[str, str]) -> Launch | None:
    """What the launcher of this process left in `environ`, or None when there is no trace of one.

    The innermost launcher counts: an mpirun inside a Slurm job starts its helpers with srun, so its ranks carry the
    traces of both, and those of srun then describe the helpers. For the same reason an allocation alone
    (SLURM_NTASKS in a batch script) is no trace: nothing has been started in it yet.
    """
    return _open_mpi(environ) or _pmi(environ) or _pmix(environ) or _slurm(environ)


def is_silent_singleton(traces: Launch | None, size: int, environ: Mapping[str, str]) -> bool:
    """True when MPI says `size` 1 but the launcher started several, and the user did not allow that."""
    allowed = environ.get(ALLOW_SINGLETON, "").strip().lower() not in ("", "0", "false", "no", "off")
    return size == 1 and traces is not None and traces.means_several and not allowed


def library_name(text: str) -> str:
    """Name and version in what MPI_Get_library_version says: "Open MPI v5.0.11", "MPICH Version: 5.0.2"."""
    first = text.replace("\x00", "").strip().split("\n")[0]
    return " ".join(first.split(",")[0].split()) or "unknown"


def singleton_error(traces: Launch, mpi_library: str) -> str:
    """The text of the error for a silent singleton. `mpi_library`: what MPI_Get_library_version says."""
    library = library_name(mpi_library)
    count = str(traces.size) if traces.size else "several"
    ranks = traces.size or "N"
    text = (
        f"{traces.launcher} started {count} processes ({traces.trace}), but to MPI this one is alone (size 1): each "
        f"would train its own copy. The launcher and the MPI in use ({library}) do not fit together. "
        f"Start with the launcher of that MPI: `ringdp run -n {ranks} script.py` finds it"
    )
    if "srun" in traces.launcher:
        text += "; with Slurm, `srun --mpi=pmix` for Open MPI or `srun --mpi=pmi2` for MPICH (`srun --mpi=list` shows "
        text += "what there is)"
    return f"{text}. `ringdp info` shows what was found. To run separate copies on purpose, set {ALLOW_SINGLETON}=1."


# --- cores and threads --------------------------------------------------------------------------------------


def _quota_v2(text: str) -> float | None:
    quota, _, period = text.strip().partition(" ")  # "max 100000" or "150000 100000"
    return int(quota) / int(period or 100000) if quota.isdecimal() else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _quota_v1(folder: Path) -> float | None:
    quota, period = _read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip()
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def cgroup_cores(cgroup: str | None = None, root: str | Path = "/sys/fs/cgroup") -> float | None:
    """The CPU limit of the control groups this process is in, in cores, or None without one.

    `cgroup` is the text of /proc/self/cgroup. A limit anywhere on the way up holds, so the smallest counts. In a
    container the path may not exist below the mount; the folders above it, the container's own among them, then do.
    """
    root, limits = Path(root), []
    for line in (_read(Path("/proc/self/cgroup")) if cgroup is None else cgroup).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        parts = Path(path.strip()).relative_to("/") if path.startswith("/") else Path()
        for folder in (parts, *parts.parents):
            if not controllers:
                for mount in (root, root / "unified"):
                    limits.append(_quota_v2(_read(mount / folder / "cpu.max")))
            elif "cpu" in controllers.split(","):
                for mount in (root / controllers, root / "cpu"):
                    limits.append(_quota_v1(mount / folder))
    return min((limit for limit in limits if limit), default=None)


def bound_cores() -> int:
    """The cores this process may run on (its affinity), without regard to a limit on their time."""
    return len(os.sched_getaffinity(0))


def _limited(cores: int) -> int:
    limit = cgroup_cores()
    return cores if limit is None else max(1, min(cores, int(limit)))


def cores_of_process() -> int:
    """The cores this process can use at once: its affinity and its control group's CPU limit, rounded down."""
    return _limited(bound_cores())


def cores_of_host() -> int:
    """The cores of this host that the job can use at once, however this process is bound."""
    return _limited(os.cpu_count() or bound_cores())


def threads_of_process(environ: Mapping[str, str]) -> int:
    """The threads a numeric library will start here: OMP_NUM_THREADS, or as many as there are cores."""
    first = (
        environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    )  # "4,2" is a number for each nesting level
    return int(first) if first.isdecimal() and int(first) > 0 else cores_of_process()


def oversubscription_warning(
    local_size: int, cores_on_host: int, bound_cores: int, threads: int
) -> str | None:
    """One line with the remedy when the ranks of a host have too few cores for their threads, or None.

    `local_size`: ranks on this host; `cores_on_host`: cores the job has here; `bound_cores`: cores this rank may run
    on; `threads`: threads of computation in this rank (ringdp's own comes on top, and sleeps while it is idle).
    """
    ranks = "1 rank" if local_size == 1 else f"{local_size} ranks"
    share = max(1, cores_on_host // max(1, local_size))
    if local_size * threads > cores_on_host:
        start = f"{ranks} × {threads} threads on {cores_on_host} cores"
        if threads > share:
            return f"{start}: set OMP_NUM_THREADS={share}, or start with `ringdp run`, which does"
        return f"{start}: start at most {cores_on_host} ranks on a host (-n)"
    unbind = "start with `ringdp run`, with mpirun's `--bind-to none`, or with srun's `--cpus-per-task`"
    if bound_cores < threads:
        return (
            f"a rank is bound to {bound_cores} of {cores_on_host} cores but has {threads} threads: {unbind}"
        )
    if bound_cores <= threads and bound_cores < share:
        return f"a rank is bound to {bound_cores} of {cores_on_host} cores, its share is {share}: {unbind}"
    return None
