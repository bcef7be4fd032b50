"""The table of phases: what `tests/run.py` runs, in which order, and how long each command may take."""

import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from driver.environ import BIN, mpirun

ROOT = Path(__file__).resolve().parent.parent.parent
TESTS = ROOT / "tests"
VENV_FRAMEWORKS = ROOT / ".venv-frameworks"  # made by tests/environment.py
# The rank of a process, as its launcher says it; pytest puts the variable's value into the name of its file of results.
RANK = {"openmpi": "OMPI_COMM_WORLD_RANK", "mpich": "PMI_RANK"}

LOCAL_RANKS = (1, 2, 3, 4, 7)
LOCAL_SHARED_RANKS = (3, 7)  # threads that share memory as ranks of one host do
LOCAL_HOSTS = ((4, 2), (6, 2), (6, 3))  # ranks, hosts
LOCAL_CHECKED = ((3, 3), (4, 2))  # ranks, hosts: what they send each other carries checksums; with --all
MPI_RANKS = (1, 2, 3, 4)
FRAMEWORK_RANKS = (2, 3)
# Beside PyTorch, each in processes of its own: Keras has one backend in a process. `mixed` is of several at once.
MORE_FRAMEWORKS = ("tensorflow", "jax", "keras", "mixed")
KERAS_BACKENDS = ("tensorflow", "jax", "torch")
# Without --all, on more than two ranks: where sums of three, or a root between others, could come out
# differently; and of Keras on another backend than the first, what each backend has of its own.
ON_MORE_RANKS = ("operations", "join", "sharded", "membership", "mesh", "parallel", "c10d_collectives")
OF_EACH_BACKEND = ("fit", "loss_scale")
NO_FRAMEWORKS = (
    f"{VENV_FRAMEWORKS.name}, with TensorFlow, JAX and Keras, is not there: run `make test-frameworks`, or to have the "
    "environment alone `python3 tests/environment.py frameworks`"
)
MESH_RANKS, OF_MESHES = 4, ("mesh", "parallel")  # where a mesh has two axes: the files about these alone
ALGORITHM_LOCAL_RANKS, ALGORITHM_MPI_RANKS = (3, 4), (3,)
MORE_ALGORITHM_LOCAL_RANKS, MORE_ALGORITHM_MPI_RANKS = (7,), (2, 4)  # with --all

GPU_LOCAL_RANKS, GPU_MPI_RANKS = {"host": (1, 3), "nccl": (1, 3), "mpi": (3,)}, (2,)
GPU_LOCAL_HOSTS = {
    "host": ((4, 2), (4, 1)),
    "nccl": ((4, 2),),
    "mpi": (),
    "two_level": ((4, 2),),
}  # of one host: through the memory that its ranks share
# In two levels: what has all-reduces of arrays; all else goes through host memory, as with --gpu=host.
GPU_TWO_LEVEL_FILES = [
    f"ranks/test_{name}.py"
    for name in ("allreduce", "async", "errors", "halves", "join", "process_sets", "repeatable")
]
# Of PyTorch's tests: what the stand-in does not carry, or has nothing to do with GPUs; and what runs without --all (by
# MPI only with it).
NOT_OF_GPUS = ("c10d_compile", "c10d_sharded", "data", "mesh", "parallel", "random", "timeline")
GPU_TORCH_FEW = (
    "c10d_collectives",
    "c10d_gpu",
    "gpu",
    "join",
    "operations",
    "sharded",
    "training",
    "windows",
)


@dataclass(frozen=True)
class Command:
    label: str
    words: list[str]
    limit: float  # seconds
    ranks: int = 0  # processes that write results; 0: a tool that only passes or fails
    cwd: Path = ROOT
    rank_variable: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)  # in its environment


@dataclass(frozen=True)
class Selection:
    """What the user asked for: a part of the tests by pytest's expression, numbers of ranks, the long ones too."""

    expression: str = ""
    ranks: tuple[int, ...] = ()
    everything: bool = False


def lint(_: Selection) -> list[Command]:
    folders = (ROOT / "csrc", *(TESTS / name for name in ("fuzz", "gpu", "native", "perf", "standin")))
    sources = sorted(
        str(p.relative_to(ROOT)) for f in folders for p in f.rglob("*") if p.suffix in (".h", ".cc", ".cu")
    )
    return [
        Command("ruff check", [tool("ruff"), "check", "--no-cache", "."], 60),
        Command("ruff format", [tool("ruff"), "format", "--no-cache", "--check", "."], 60),
        Command("clang-format", [tool("clang-format"), "--dry-run", "-Werror", *sources], 60),
    ]


def types(_: Selection) -> list[Command]:
    spec = importlib.util.find_spec("ringdp")
    if spec is None or not spec.origin:
        raise ModuleNotFoundError(
            "ringdp is not installed in this environment: run `make test` or `make dev`"
        )
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / "build" / "mypy")]
    # Not from the root, unless ringdp is installed from there: it is the installed package that is checked, with the
    # stubs that were made when it was built.
    editable = Path(spec.origin).is_relative_to(ROOT / "ringdp")
    words = [sys.executable, "-m", "mypy", *options, "-p", "ringdp"]
    return [Command("mypy", words, 240, cwd=ROOT if editable else TESTS)]


def unit(selection: Selection) -> list[Command]:
    return [plain("unit", "unit", selection, 600, by_workers())]


def native(selection: Selection) -> list[Command]:
    # Most of it is compiling: for this machine, and with --all for aarch64.
    limit = 2400 if selection.everything else 480
    return [plain("native", "native/test_native.py", selection, limit, by_workers())]


def sanitize(selection: Selection) -> list[Command]:
    """The same with sanitizers; with --all only."""
    if not selection.everything:
        return []
    return [plain("sanitize", "native/test_sanitizers.py", selection, 3600, by_workers())]


def local(selection: Selection) -> list[Command]:
    numbers = selection.ranks or LOCAL_RANKS
    commands = [
        plain(f"local -n {n}", "ranks", selection, 180, [f"--local-ranks={n}", *by_workers()])
        for n in numbers
    ]
    for n in numbers if selection.ranks else LOCAL_SHARED_RANKS:
        options = [f"--local-ranks={n}", "--local-hosts=1", *by_workers()]
        commands.append(plain(f"shared -n {n}", "ranks", selection, 180, options))
    for n, hosts in () if selection.ranks else LOCAL_HOSTS:
        options = [f"--local-ranks={n}", f"--local-hosts={hosts}", *by_workers()]
        commands.append(plain(f"{n} ranks on {hosts} hosts", "ranks", selection, 180, options))
    checked = LOCAL_CHECKED if selection.everything and not selection.ranks else ()
    for n, hosts in checked:
        options = [f"--local-ranks={n}", f"--local-hosts={hosts}", "--checked", *by_workers()]
        commands.append(plain(f"{n} ranks on {hosts} hosts, checked", "ranks", selection, 180, options))
    return commands


def ranks(selection: Selection) -> list[Command]:
    return [under_mpirun(f"ranks -n {n}", n, ["ranks"], selection, 240) for n in selection.ranks or MPI_RANKS]


def algorithms(selection: Selection) -> list[Command]:
    """All-reduce by every algorithm by name, one after the other in each command."""
    files = [
        f"ranks/test_{name}.py"
        for name in ("algorithms", "allreduce", "casts", "errors", "halves", "repeatable")
    ]
    local, under_mpi = ALGORITHM_LOCAL_RANKS, ALGORITHM_MPI_RANKS
    if selection.everything:
        local, under_mpi = local + MORE_ALGORITHM_LOCAL_RANKS, under_mpi + MORE_ALGORITHM_MPI_RANKS
    commands = []
    for n in selection.ranks or local:
        words = pytest_words(files, selection, 120) + [f"--local-ranks={n}", "--each-algorithm"]
        commands.append(Command(f"algorithms local {n}", [sys.executable, *words], 120, ranks=1))
    for n, hosts in () if selection.ranks else LOCAL_HOSTS:
        options = [f"--local-ranks={n}", f"--local-hosts={hosts}", "--each-algorithm"]
        words = [sys.executable, *pytest_words(files, selection, 120), *options]
        commands.append(Command(f"algorithms {n} ranks on {hosts} hosts", words, 120, ranks=1))
    for n in selection.ranks or under_mpi:
        command = under_mpirun(f"algorithms -n {n}", n, files, selection, 120)
        commands.append(replace(command, words=[*command.words, "--each-algorithm"]))
    if not selection.ranks:
        few = [f"ranks/test_{name}.py" for name in ("allreduce", "halves")]
        command = under_mpirun("algorithms -n 2, checked", 2, few, selection, 120)
        commands.append(replace(command, words=[*command.words, "--each-algorithm", "--checked"]))
    return commands


def gpu(selection: Selection) -> list[Command]:
    """What a GPU is asked for, over the stand-ins for CUDA and NCCL: by way of host memory, by NCCL, and by MPI."""
    limit = 600
    commands = [plain("gpu", "gpu", selection, limit, by_workers())] if not selection.ranks else []
    for way, numbers in GPU_LOCAL_RANKS.items():
        for n in selection.ranks or numbers:
            options = [f"--local-ranks={n}", f"--gpu={way}", *by_workers()]
            commands.append(plain(f"gpu {way} local {n}", "ranks", selection, 180, options))
        for n, hosts in () if selection.ranks else GPU_LOCAL_HOSTS[way]:
            options = [f"--local-ranks={n}", f"--local-hosts={hosts}", f"--gpu={way}", *by_workers()]
            commands.append(plain(f"gpu {way} {n} ranks on {hosts} hosts", "ranks", selection, 180, options))
        for n in selection.ranks or GPU_MPI_RANKS:
            command = under_mpirun(f"gpu {way} -n {n}", n, ["ranks"], selection, 240)
            commands.append(replace(command, words=[*command.words, f"--gpu={way}"]))
    for n, hosts in () if selection.ranks else GPU_LOCAL_HOSTS["two_level"]:
        options = [f"--local-ranks={n}", f"--local-hosts={hosts}", "--gpu=two_level"]
        words = [sys.executable, *pytest_words(GPU_TWO_LEVEL_FILES, selection, 120), *options]
        commands.append(Command(f"gpu two_level {n} ranks on {hosts} hosts", words, 120, ranks=1))
    for way in ("host", "nccl", "mpi") if selection.everything else ("host", "nccl"):
        few = way == "mpi" or not selection.everything
        for part, files in torch_on_gpus(few).items():
            for n in selection.ranks or GPU_MPI_RANKS:
                command = under_mpirun(f"gpu {way} {part} -n {n}", n, files, selection, 480)
                commands.append(replace(command, words=[*command.words, f"--gpu={way}"]))
    return commands


def torch_on_gpus(few: bool) -> dict[str, list[str]]:
    """Files of PyTorch's rank suite, in two parts that take about as long."""
    parts: dict[str, list[str]] = {"torch": [], "torch more": []}
    for file in sorted((TESTS / "frameworks" / "torch").glob("ranks_*.py")):
        about = file.stem.removeprefix("ranks_")
        if about not in NOT_OF_GPUS and (not few or about in GPU_TORCH_FEW):
            parts["torch" if about < "d" else "torch more"].append(str(file.relative_to(TESTS)))
    return parts


def frameworks(selection: Selection) -> list[Command]:
    """PyTorch. Files named ranks_*.py run on several ranks; test_*.py do what they do in one process."""
    commands = [plain("frameworks", "frameworks/torch", selection, 300, by_workers())]
    files = sorted((TESTS / "frameworks" / "torch").glob("ranks_*.py"))
    for n in selection.ranks or FRAMEWORK_RANKS:
        chosen = few_of(files, None if n == min(FRAMEWORK_RANKS) else ON_MORE_RANKS, selection)
        commands.append(under_mpirun(f"frameworks -n {n}", n, chosen, selection, 420))
    of_meshes = [str(p.relative_to(TESTS)) for p in files if p.stem.removeprefix("ranks_") in OF_MESHES]
    if of_meshes and not selection.ranks:
        commands.append(
            under_mpirun(f"frameworks of meshes -n {MESH_RANKS}", MESH_RANKS, of_meshes, selection, 300)
        )
    return commands


def few_of(files: list[Path], about: tuple[str, ...] | None, selection: Selection) -> list[str]:
    """As pytest is given them, those about this, ranks_ABOUT.py; None: all, as with --all or a number of ranks."""
    everything = about is None or selection.everything or bool(selection.ranks)
    chosen = [p for p in files if everything or p.stem.removeprefix("ranks_") in (about or ())]
    return [str(p.relative_to(TESTS)) for p in chosen]


def more_frameworks(selection: Selection) -> list[Command]:
    """The others, by a Python that has them: TensorFlow, JAX, Keras on each of its backends, and several at once."""
    python = python_with_frameworks()
    if not python.exists():
        return [
            Command("more frameworks", [sys.executable, "-c", f"import sys; sys.exit({NO_FRAMEWORKS!r})"], 60)
        ]
    commands = []
    for name in MORE_FRAMEWORKS:
        for backend in KERAS_BACKENDS if name == "keras" else ("",):
            variables = {"KERAS_BACKEND": backend} if backend else {}
            for command in one_framework(f"{name} on {backend}" if backend else name, name, selection):
                commands.append(replace(command, variables=variables))
    if not selection.ranks:  # with the sections of packages whose frameworks no other phase has
        commands.append(plain("api page", "unit/test_api_page.py", selection, 120))
    return [by_python(python, command) for command in commands]


def by_python(python: Path, command: Command) -> Command:
    """The same by another Python than this one, and the mpirun of its environment."""
    words = [str(python) if word == sys.executable else word for word in command.words]
    return replace(command, words=[mpirun(python.parent), *words[1:]] if command.ranks > 1 else words)


def python_with_frameworks() -> Path:
    """This one, where a developer has put them, or the one of their own environment."""
    here = all(importlib.util.find_spec(name) for name in ("tensorflow", "jax", "keras"))
    return Path(sys.executable) if here else VENV_FRAMEWORKS / "bin" / "python"


def one_framework(label: str, name: str, selection: Selection) -> list[Command]:
    folder = TESTS / "frameworks" / name
    commands = []
    if any(folder.glob("test_*.py")) and not selection.ranks:
        commands.append(plain(label, f"frameworks/{name}", selection, 300))
    files = sorted(folder.glob("ranks_*.py"))
    for n in selection.ranks or FRAMEWORK_RANKS:
        is_first = name != "keras" or label.endswith(KERAS_BACKENDS[0])
        about = ON_MORE_RANKS if n > min(FRAMEWORK_RANKS) else None if is_first else OF_EACH_BACKEND
        if chosen := few_of(files, about, selection):
            commands.append(under_mpirun(f"{label} -n {n}", n, chosen, selection, 420))
    return commands


def faults(selection: Selection) -> list[Command]:
    """What is done to real processes, and how it must end: tests/faults/cases.py."""
    return [plain("faults", "faults", selection, 5400 if selection.everything else 900)]


def cluster(selection: Selection) -> list[Command]:
    return [plain("cluster", "cluster", selection, 600)]


def examples(selection: Selection) -> list[Command]:
    # With --all each training runs in full, on three seeds.
    return [plain("examples", "examples", selection, 2400 if selection.everything else 600)]


PHASES = {
    f.__name__: f
    for f in (
        lint,
        types,
        unit,
        native,
        sanitize,
        local,
        ranks,
        algorithms,
        gpu,
        frameworks,
        more_frameworks,
        faults,
        cluster,
        examples,
    )
}


def tool(name: str) -> str:
    return str(BIN / name) if (BIN / name).exists() else name


def by_workers() -> list[str]:
    """Options for tests that do not disturb each other: a worker for each core, and at most four, as many tests have
    several ranks and look at the clock. Not for faults, which are timed, cluster, whose hosts are of one machine, and
    jobs that keep all cores busy by themselves. None in an environment from before pytest-xdist was required.
    """
    count = min(4, len(os.sched_getaffinity(0))) if importlib.util.find_spec("xdist") else 1
    return ["-n", str(count)] if count > 1 else []


def plain(
    label: str, folder: str, selection: Selection, limit: float, options: list[str] | None = None
) -> Command:
    words = pytest_words([folder], selection, limit) + (options or [])
    return Command(label, [sys.executable, *words], limit, ranks=1, rank_variable="")


def under_mpirun(label: str, n: int, files: list[str], selection: Selection, limit: float) -> Command:
    words = [mpirun(), "-n", str(n), sys.executable, *pytest_words(files, selection, limit), "--with-mpi"]
    return Command(label, words, limit, ranks=n, rank_variable=RANK[mpi_family()])


def pytest_words(files: list[str], selection: Selection, limit: float) -> list[str]:
    # Shortly before the limit every thread's stack is written: that is where it hangs.
    words = [
        "-m",
        "pytest",
        "-q",
        "-rs",
        "-p",
        "no:cacheprovider",
        "-o",
        f"stacks_after={limit - 20:.0f}",
        "--durations=20",  # in the log: where the time goes
        "--durations-min=2",
    ]
    if not selection.everything:
        words += ["-m", "not slow"]
    if selection.expression:
        words += ["-k", selection.expression]
    return words + [str(TESTS / f) for f in files]


def mpi_family() -> str:
    from ringdp._build import MPI_FAMILY

    return str(MPI_FAMILY)
