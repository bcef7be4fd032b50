"""The targets, one row each: what is measured, the bound, and the scenario that repeats it."""

import operator
from collections.abc import Callable
from dataclasses import dataclass

from perf.results import Missing, Number, Results, size_text

MIB = 1 << 20
Measure = Callable[[Results], Number]


@dataclass(frozen=True)
class Target:
    what: str
    bound: float
    at_most: bool  # else: at least
    unit: str
    scenario: str
    measure: Measure

    @property
    def text(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.bound:g} {self.unit}".strip()

    def met(self, number: Number) -> bool:
        return (operator.le if self.at_most else operator.ge)(round(number.value, 4), self.bound)


def worst(numbers: dict[str, Number], highest: bool) -> Number:
    """The worst of several sizes, and which it is."""
    if not numbers:
        raise Missing("not measured")
    where = (max if highest else min)(numbers, key=lambda size: numbers[size].value)
    return Number(numbers[where].rounds, where if len(numbers) > 1 else "")


def ratio(job: str, above: str, below: str, sizes: Callable[[int], bool], highest: bool = False) -> Measure:
    """The worst ratio of two contestants' times over those sizes, in bytes of float32, that `sizes` picks."""

    def measure(results: Results) -> Number:
        chosen = [count for count in results.counts(job) if sizes(4 * count)]
        return worst({size_text(c): results.ratio(job, above, below, c) for c in chosen}, highest)

    return measure


def longest(job: str, entry: str, sizes: Callable[[int], bool]) -> Measure:
    """The longest time of one contestant, in microseconds."""

    def measure(results: Results) -> Number:
        chosen = [count for count in results.counts(job) if sizes(4 * count)]
        return worst({size_text(c): results.time(job, entry, c) for c in chosen}, highest=True)

    return measure


def _both_four(results: Results) -> Number:
    """Four ranks: the small sizes are timed in a job of their own."""
    parts = [ratio(job, "best mpi", "ringdp", _any)(results) for job in ("four small", "four")]
    return min(parts, key=lambda number: number.value)


def _added_milliseconds(results: Results) -> Number:
    ours, plain = results.time("step", "ringdp"), results.time("step", "plain")
    return Number(tuple((a - b) / 1e3 for a, b in zip(ours.rounds, plain.rounds, strict=True)))


def _horovod(results: Results) -> Number:
    """Of two jobs, one after the other: its thread would have slowed ours down."""
    theirs, ours = results.time("step horovod", "horovod"), results.time("step", "ringdp")
    return Number(tuple(a / b for a, b in zip(theirs.rounds, ours.rounds, strict=False)))


def peak(results: Results, entry: str) -> float:
    """MiB of the rank that took most."""
    job = results.job(f"memory {entry}")
    if "peak" not in job:
        raise Missing(f"{entry}: {job['left_out'][entry]}")
    return max(job["peak"]) / MIB


def _added_memory(results: Results) -> Number:
    return Number((peak(results, "ringdp") - peak(results, "plain"),))


def _wrapper(results: Results) -> Number:
    number = results.ratio("step alone", "ringdp", "plain")
    return Number(tuple((one - 1) * 100 for one in number.rounds))


def _idle(results: Results) -> Number:
    return Number((max(results.job("idle")["engine"]) * 100,))


def _control_messages(results: Results) -> Number:
    counters = results.job("step")["counters"]
    if counters is None:
        raise Missing("skipped: ringdp took no part in the step")
    return Number((sum(counters[one] for one in ("votes", "named")),))


def _any(size: int) -> bool:
    return True


def _is(mebibytes: int) -> Callable[[int], bool]:
    return lambda size: size == mebibytes * MIB


def _at_least_16(size: int) -> bool:
    return size >= 16 * MIB


def _tiny(size: int) -> bool:
    return size <= 4096


def _middle(size: int) -> bool:
    return 64 << 10 <= size <= 16 * MIB


TARGETS = [
    *(
        Target(f"one host, tensor in shared memory, {m} MiB: of the floor's bandwidth", 0.9, False, "×", "large",
               ratio("large", "floor-in-place", "ringdp-shared", _is(m)))
        for m in (64, 256)
    ),
    Target("one host, ordinary tensor, 64 MiB: faster than MPI_Allreduce", 3, False, "×", "large",
           ratio("large", "best mpi", "ringdp", _is(64))),
    Target("the same, 64 KiB to 16 MiB: not slower, at the worst size", 1, False, "×", "large",
           ratio("large", "best mpi", "ringdp", _middle)),
    Target("4 B to 4 KiB, blocking call, NumPy: the longest", 3, True, "µs", "small",
           longest("small", "ringdp", _tiny)),
    Target("4 B to 4 KiB, blocking call, torch: the longest", 5, True, "µs", "small",
           longest("small", "ringdp-torch", _tiny)),
    Target("moonshot: mpi4py's Allreduce against ours, 4 B to 4 KiB, at the worst size", 1, False, "×", "small",
           ratio("small", "best mpi", "ringdp", _tiny)),
    *(
        Target(f"limited link, {hosts} hosts × 1 rank, 16 to 64 MiB: of the raw limit", 0.97, False, "×", "link",
               ratio(f"link {hosts}x1", "raw-link", "ringdp", _any))
        for hosts in (2, 4)
    ),
    Target("the same, 4 hosts: faster than MPI_Allreduce", 1.9, False, "×", "link",
           ratio("link 4x1", "mpi", "ringdp", _any)),
    Target("the same, 4 hosts, float32 sent as bfloat16: faster than MPI_Allreduce", 3.6, False, "×", "link",
           ratio("link 4x1", "mpi", "ringdp-wire-bf16", _any)),
    Target("2 hosts × 2 ranks: of 2(H−1)/H · n bytes at the raw limit", 0.909, False, "×", "link",
           ratio("link 2x2", "raw-link", "ringdp", _any)),
    *(
        Target(f"{dtype}, 16 MiB and more: of float32's time for the same count, {where}", 0.55, True, "×", "types",
               ratio("types", f"{form}:{dtype}", f"{form}:float32", _at_least_16, highest=True))
        for dtype in ("bfloat16", "float16")
        for form, where in (("ringdp", "ordinary"), ("ringdp-shared", "in shared memory"))
    ),
    Target("training step: faster than DDP over gloo", 2.5, False, "×", "step",
           lambda r: r.ratio("step", "ddp", "ringdp")),
    Target("training step: faster than Horovod", 2.5, False, "×", "step", _horovod),
    Target("training step: more than plain", 18, True, "ms", "step", _added_milliseconds),
    Target("its peak memory (Pss): more than plain, a rank", 32, True, "MiB", "step", _added_memory),
    Target("one rank: what the wrapper adds to a step", 1, True, "%", "step", _wrapper),
    Target("idle engine: of a core", 0.5, True, "%", "idle", _idle),
    Target("control messages of a rank in a step: votes, names", 1, True, "", "step", _control_messages),
    Target("four ranks on two cores, 4 B to 64 MiB: not slower than MPI_Allreduce, at the worst size",
           1, False, "×", "four", _both_four),
]  # fmt: skip
