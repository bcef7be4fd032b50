"""Jobs drawn by lot: a seed says how many ranks there are, what they exchange in each step, and what happens to them.

Everything is a function of the seed: whoever has it, the job's ranks (drawn_job.py) and who judges them (drawn_run.py),
knows what every rank must see.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

SAMPLES = 3  # that a rank takes in a step
LARGE = (20_000, 300_000)  # elements: more than goes along with its name
DTYPES = ("float32", "float64", "int32", "int64")


@dataclass(frozen=True)
class Kind:
    """What can happen to a rank, and how a job ends by it.

    `verdict` is what the launcher's last line must say ({rank}, {pid}), `says` what must be in the output.
    """

    codes: tuple[int, ...] = (0,)
    verdict: str = ""
    says: str = ""
    inject: str = ""  # what RINGDP_INJECT is told to do
    stages: tuple[str, ...] = ("SUBMIT", "AGREE", "REDUCE", "DONE")
    weight: int = 3

    @property
    def ends(self) -> bool:
        """The job cannot go on."""
        return self.codes != (0,)


PROCESS = r"rank {rank} \(host \S+, process {pid}\)"
DEAD = PROCESS + " is dead"
KINDS = {
    "nothing": Kind(weight=2),
    "killed": Kind((137,), DEAD, inject="kill", weight=6),
    "two killed at once": Kind((137,), DEAD, inject="kill", weight=2),
    "crashed": Kind((139,), DEAD + r" \(signal 11", inject="segv"),
    "exited in the core": Kind((3,), DEAD, inject="exit"),
    "exited in Python": Kind((7,), DEAD),
    "killed in Python": Kind((137,), DEAD),
    "an exception in the core": Kind(
        (1,), PROCESS + " was ended by InjectedError", inject="raise", stages=("SUBMIT",)
    ),
    "an exception": Kind((1,), PROCESS + " was ended by ValueError"),
    # Where the others begin anew (`elastic`), it ends in MPI_Finalize, or they in init().
    "leaves early": Kind(
        (1,),
        says=r"rank {rank} has shut ringdp down|rank {rank} \(process {pid}\) has been in MPI_Finalize"
        r"|local rank {rank} of",
        weight=2,
    ),
    "stopped": Kind(
        (1,), PROCESS + r" is stopped \(state [Tt]", inject="stop", stages=("SUBMIT", "AGREE", "REDUCE")
    ),
    "stopped for a while": Kind(inject="stop", stages=("SUBMIT", "AGREE", "REDUCE"), weight=4),
    # The time in which all are stopped is longer than RINGDP_TIMEOUT.
    "all stopped for long": Kind(inject="stop", stages=("SUBMIT", "AGREE", "REDUCE"), weight=2),
    "asleep": Kind(
        (1,), PROCESS + r" is alive \(state [RSD]\) and has not come", inject="sleep:100", stages=("SUBMIT",)
    ),
    "asleep in Python": Kind((1,), PROCESS + r" is alive \(state [RSD]\) and has not come"),
    "late": Kind(inject="sleep:{seconds}", weight=4),
    "slow": Kind(inject="slow:{seconds}"),
    "a mismatch": Kind(weight=6),
    "asked to stop": Kind((143,), says="all ranks stop", weight=2),
}
MISMATCHES = ("shape", "dtype", "op", "kind")


@dataclass(frozen=True)
class Fault:
    """What happens, to whom and when."""

    kind: str
    rank: int
    step: int
    stage: str = "SUBMIT"
    operation: int = 0  # of the step
    seconds: float = 0
    other: int = -1  # a second rank to which the same happens
    mismatch: str = "shape"

    @property
    def is_of(self) -> Kind:
        return KINDS[self.kind]

    @property
    def inject(self) -> str:
        """RINGDP_INJECT."""
        if not self.is_of.inject:
            return ""
        do = self.is_of.inject.format(seconds=f"{self.seconds:.3f}")
        where = f"name={name_of(self.step, self.operation)},stage={self.stage},do={do}"
        return ";".join(f"rank={r},{where}" for r in (self.rank, self.other) if r >= 0)


@dataclass(frozen=True)
class Draw:
    """A job."""

    seed: int
    ranks: int
    steps: int
    timeout: float  # RINGDP_TIMEOUT
    faults: list[Fault]  # of each attempt; there are none after these
    restarts: bool
    commit_every: int
    environ: dict[str, str] = field(default_factory=dict)

    def fault_of(self, attempt: int) -> Fault:
        """In this attempt."""
        return self.faults[attempt] if attempt < len(self.faults) else Fault("nothing", 0, 0)

    def __str__(self) -> str:
        what = ", then ".join(
            f"{f.kind} (rank {f.rank}{f' and {f.other}' if f.other >= 0 else ''}, step {f.step}"
            + (f", {f.stage} of operation {f.operation})" if f.is_of.inject else ")")
            for f in self.faults
        )
        settings = " ".join(f"{k}={v}" for k, v in self.environ.items())
        return (
            f"seed {self.seed}: {self.ranks} ranks, {self.steps} steps{', restarts' * self.restarts}, "
            f"RINGDP_TIMEOUT={self.timeout:g} {settings}: {what}"
        )


def draw(seed: int, ranks: tuple[int, ...] = (2, 3, 4)) -> Draw:
    """The job of this seed."""
    lot = random.Random(f"job {seed}")
    count, steps, timeout = lot.choice(ranks), lot.randint(8, 30), float(lot.choice((4, 5, 6)))
    restarts = lot.random() < 0.3
    faults = []
    attempts = lot.randint(1, 3) if restarts else 1
    for attempt in range(attempts):
        first, last = (steps * attempt) // 3, (steps * (attempt + 1)) // 3 - 1 if restarts else steps - 2
        must_end = attempt < attempts - 1
        faults.append(_fault(lot, seed, count, (max(first, 1), last), timeout, restarts, must_end))
    environ = {"RINGDP_SHARED_MEMORY": lot.choice(("memfd", "memfd", "file", "off"))}
    if lot.random() < 0.2:
        environ["RINGDP_CHECKSUM"] = "1"
    if lot.random() < 0.2:
        environ["RINGDP_ALGORITHM"] = lot.choice(("ring", "recursive_doubling", "double_tree"))
    if lot.random() < 0.2:
        environ["RINGDP_LETTER_BYTES"] = "64"
    return Draw(seed, count, steps, timeout, faults, restarts, lot.randint(1, 4), environ)


def _fault(
    lot: random.Random,
    seed: int,
    ranks: int,
    steps: tuple[int, int],
    timeout: float,
    restarts: bool,
    must_end: bool,
) -> Fault:
    kinds = {name: kind.weight for name, kind in KINDS.items() if kind.ends or not must_end}
    if restarts:
        del kinds["asked to stop"]  # a launcher's signal to stop is no reason to begin again
    if ranks < 3:
        kinds.pop("two killed at once", None)
    kind = lot.choices(list(kinds), list(kinds.values()))[0]
    of = KINDS[kind]
    rank, step = lot.randrange(ranks), lot.randint(*steps)
    stage = lot.choice(of.stages) if of.inject else "SUBMIT"
    # The first operation of a step is large: the others may end with their meeting, and come to no REDUCE.
    named = [n for n, op in enumerate(operations(seed, ranks, step)) if op.kind != "barrier"]
    operation = 0 if stage == "REDUCE" else lot.choice(named)
    seconds = {"late": 0.3 * timeout, "stopped for a while": 0.4 * timeout, "slow": 0.02}.get(kind, 0.0)
    seconds = timeout + 3 if kind == "all stopped for long" else seconds * lot.uniform(0.1, 1)
    others = [r for r in range(ranks) if r != rank]
    other = lot.choice(others) if kind == "two killed at once" else -1
    return Fault(kind, rank, step, stage, operation, seconds, other, lot.choice(MISMATCHES))


# --- what is exchanged ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    """The same on all ranks."""

    name: str
    kind: str
    count: int  # elements of a rank, or rows
    dtype: str
    root: int


def name_of(step: int, number: int) -> str:
    return f"{step}.{number}"


def operations(seed: int, ranks: int, step: int) -> list[Operation]:
    """Of a step."""
    lot = random.Random(f"step {step} of {seed}")
    found = [Operation(name_of(step, 0), "allreduce_", lot.randint(*LARGE), lot.choice(DTYPES), 0)]
    kinds = (
        "allreduce",
        "allreduce",
        "max",
        "allgather",
        "broadcast",
        "alltoall",
        "reducescatter",
        "barrier",
    )
    for number in range(1, lot.randint(2, 5)):
        count = lot.choice((1, 2, 7, 100, 3000, 20_000))
        found.append(
            Operation(
                name_of(step, number), lot.choice(kinds), count, lot.choice(DTYPES), lot.randrange(ranks)
            )
        )
    return found


def order(seed: int, rank: int, step: int, count: int) -> list[int]:
    """In which order a rank submits them, where it need not wait in between; else as they come."""
    if random.Random(f"together {step} of {seed}").random() < 0.5:
        return []
    return random.Random(f"order {rank} {step} of {seed}").sample(range(count), count)


def input_of(op: Operation, ranks: int, rank: int) -> NDArray[np.generic]:
    """Whole numbers that say whose they are and where."""
    rows = {"allgather": op.count + rank, "alltoall": op.count * ranks, "reducescatter": op.count * ranks}
    key = zlib.crc32(op.name.encode()) % 91
    array: NDArray[np.generic] = (
        (np.arange(rows.get(op.kind, op.count)) * 7 + key) % 97 + 101 * rank
    ).astype(op.dtype)
    return array


def result_of(op: Operation, ranks: int, rank: int) -> NDArray[np.generic] | None:
    """What `rank` gets."""
    if op.kind == "barrier":
        return None
    inputs = [input_of(op, ranks, r) for r in range(ranks)]
    mine = slice(rank * op.count, (rank + 1) * op.count)
    if op.kind == "broadcast":
        return inputs[op.root]
    if op.kind == "allgather":
        return np.concatenate(inputs)
    if op.kind == "alltoall":
        return np.concatenate([one[mine] for one in inputs])
    if op.kind == "max":
        return np.maximum.reduce(inputs)
    total: NDArray[np.generic] = np.add.reduce(inputs, dtype=op.dtype)
    return total[mine] if op.kind == "reducescatter" else total


def digest(before: int, results: list[NDArray[np.generic] | None]) -> int:
    """Of all results up to a step: nobody has lost one, or taken one twice."""
    for result in results:
        before = zlib.crc32(b"" if result is None else result.tobytes(), before)
    return before


def samples_of(draw: Draw, rank: int, step: int) -> NDArray[np.int64]:
    """That a rank takes in a step: each is taken once."""
    first = (step * draw.ranks + rank) * SAMPLES
    return np.arange(first, first + SAMPLES, dtype=np.int64)


def digests(draw: Draw) -> list[int]:
    """Of each rank at the end, if nothing has happened to it."""
    found = []
    for rank in range(draw.ranks):
        value = 0
        for step in range(draw.steps):
            results = [result_of(op, draw.ranks, rank) for op in operations(draw.seed, draw.ranks, step)]
            value = digest(value, results)
        found.append(value)
    return found
