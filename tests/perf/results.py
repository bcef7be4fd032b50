"""What `make bench` measured: results/FAMILY.json, a file for each MPI, and how numbers are read from it."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

FOLDER = Path(__file__).with_name("results")
MPIS = ("mpi", "mpi-out")  # MPI_Allreduce in its two forms; the faster one counts


@dataclass(frozen=True)
class Number:
    """A figure with its values in the rounds of its run."""

    rounds: tuple[float, ...]
    where: str = ""  # of which size it is, if it is the worst of several

    @property
    def value(self) -> float:
        return median(self.rounds)

    @property
    def spread(self) -> float:
        """Half the range of the rounds, relative to their median."""
        return (max(self.rounds) - min(self.rounds)) / 2 / abs(self.value) if self.value else 0.0


class Missing(Exception):
    """The number was not measured; the text says why."""


class Results:
    """The jobs of one MPI family. All reading raises `Missing` with the reason if there is nothing to read."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.about: dict[str, str] = data.get("about", {})
        self.jobs: dict[str, Any] = data.get("jobs", {})

    @classmethod
    def load(cls, family: str) -> "Results | None":
        file = FOLDER / f"{family}.json"
        return cls(json.loads(file.read_text())) if file.exists() else None

    def save(self, family: str) -> None:
        """Jobs of another run that were not repeated stay; numbers are cut to what is meaningful."""
        FOLDER.mkdir(exist_ok=True)
        jobs = ",\n".join(f"{json.dumps(k)}: {json.dumps(_rounded(v))}" for k, v in self.jobs.items())
        text = f'{{"about": {json.dumps(self.about, indent=1)},\n"jobs": {{\n{jobs}\n}}}}\n'
        (FOLDER / f"{family}.json").write_text(text)

    def job(self, name: str) -> Any:
        if name not in self.jobs:
            raise Missing("not run")
        found = self.jobs[name]
        for key in ("failed", "skipped"):
            if key in found:
                raise Missing(f"{key}: {found[key]}")
        return found

    def points(self, name: str) -> list[dict[str, Any]]:
        return list(self.job(name)["points"])

    def counts(self, name: str) -> list[int]:
        return sorted({point["count"] for point in self.points(name)})

    def entries(self, name: str) -> list[str]:
        return list(dict.fromkeys(point["entry"] for point in self.points(name)))

    def time(self, name: str, entry: str, count: int | None = None) -> Number:
        """Microseconds of one contestant; "best mpi" is the faster of MPI's two forms."""
        wanted = MPIS if entry == "best mpi" else (entry,)
        found = [
            Number(tuple(point["us"]))
            for point in self.points(name)
            if point["entry"] in wanted and point.get("count") == count
        ]
        if not found:
            why = self.job(name).get("left_out", {}).get(entry, "not measured")
            raise Missing(f"{entry}: {why}")
        return min(found, key=lambda number: number.value)

    def ratio(self, name: str, above: str, below: str, count: int | None = None) -> Number:
        """Time of `above` / time of `below`, round by round."""
        a, b = self.time(name, above, count), self.time(name, below, count)
        return Number(tuple(x / y for x, y in zip(a.rounds, b.rounds, strict=True)))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return {k: _rounded(v) for k, v in value.items()} if isinstance(value, dict) else value


def size_text(count: int) -> str:
    """Of so many float32."""
    size = 4 * count
    for unit in ("MiB", "KiB"):
        factor = {"MiB": 1 << 20, "KiB": 1 << 10}[unit]
        if size >= factor:
            return f"{size / factor:g} {unit}"
    return f"{size} B"
