"""The ratios that are kept in baseline.json, and what has moved since.

All are (time of a reference in the same run) / (our time), or the like for memory: more is better. So they compare
between machines better than times do, but only a run on the same machine says for sure that something got worse.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perf.results import Missing, Number, Results, size_text
from perf.targets import peak

FILE = Path(__file__).with_name("baseline.json")
# Two runs of the same program differ by more than their rounds do: pages lie elsewhere, threads on other cores.
LEAST = 0.10
Kept = dict[str, dict[str, float]]


def references(job: str, entry: str) -> list[str]:
    """What a contestant's time is compared with."""
    if job.startswith("step"):
        return ["plain", "ddp", "ddp-bf16"]
    form, _, dtype = entry.partition(":")
    same_form = [f"{form}:float32"] if dtype and dtype != "float32" else []
    return [*same_form, "best mpi", "floor-in-place", "floor-staged", "raw-link"]


def ratios(results: Results) -> dict[str, Number]:
    """By name, as in "large 64 MiB: best mpi / ringdp"; only what was measured."""
    found: dict[str, Number] = {}
    for job in results.jobs:
        try:
            points = results.points(job) if "points" in results.job(job) else []
        except Missing:
            continue
        for point in points:
            one, count = point["entry"], point.get("count")
            for reference in references(job, one) if one.startswith("ringdp") else ():
                try:
                    number = results.ratio(job, reference, one, count)
                except Missing:
                    continue
                size = f" {size_text(count)}" if count else ""
                found[f"{job}{size}: {reference} / {one}"] = number
    try:
        found["memory: plain / ringdp"] = Number((peak(results, "plain") / peak(results, "ringdp"),))
    except Missing:
        pass
    return found


def kept(numbers: dict[str, Number]) -> Kept:
    return {
        name: {"ratio": float(f"{n.value:.4g}"), "spread": float(f"{n.spread:.2g}")}
        for name, n in numbers.items()
    }


def load(family: str) -> Kept:
    return dict(json.loads(FILE.read_text()).get(family, {})) if FILE.exists() else {}


def save(family: str, numbers: Kept) -> None:
    everything: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    everything[family] = numbers
    families = []
    for name, rows in sorted(everything.items()):
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(rows.items()))
        families.append(f" {json.dumps(name)}: {{\n{lines}\n }}")
    FILE.write_text("{\n" + ",\n".join(families) + "\n}\n")


@dataclass(frozen=True)
class Move:
    """A ratio that differs by more than noise."""

    name: str
    before: float
    now: float
    noise: float  # relative: what was allowed

    @property
    def worse(self) -> bool:
        return self.now < self.before

    def __str__(self) -> str:
        change = (self.now / self.before - 1) * 100
        return (
            f"{'worse ' if self.worse else 'better'} {self.name}: {self.before:.3g} -> {self.now:.3g}"
            f" ({change:+.0f} %, noise {self.noise * 100:.0f} %)"
        )


def noise(before: float, now: float) -> float:
    """What two runs may differ by, relative, by the spreads of their rounds: twice their sum, at least LEAST."""
    return max(LEAST, 2 * (before + now))


def moves(before: Kept, now: Kept) -> list[Move]:
    """What both have and what differs beyond noise, the worst first. Differences are those of logarithms."""
    found = []
    for name in before.keys() & now.keys():
        old, new = before[name], now[name]
        allowed = noise(old["spread"], new["spread"])
        if abs(math.log(new["ratio"] / old["ratio"])) > math.log1p(allowed):
            found.append(Move(name, old["ratio"], new["ratio"], allowed))
    return sorted(found, key=lambda move: (math.log(move.now / move.before), move.name))
