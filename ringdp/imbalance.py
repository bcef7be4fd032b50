"""How unequal the work of the ranks is: what they lose by waiting for the slowest in each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ringdp.errors import MismatchError, UsageError
from ringdp.numpy.ops import operations
from ringdp.process_sets import ProcessSet, global_process_set


@dataclass(frozen=True)
class Imbalance:
    """The work of the ranks in some steps, each of which ends when the slowest rank has done its part."""

    ranks: int
    steps: int
    mean_ratio: float  # greatest of a step / mean of its ranks, averaged over the steps; 1: equal
    worst_ratio: float  # of the worst step
    idle_fraction: float  # of all ranks' time, spent waiting for the slowest
    unit: str = "cost"

    def __str__(self) -> str:
        return (
            f"imbalance of {self.unit} over {self.steps} steps on {self.ranks} ranks: "
            f"slowest / mean {self.mean_ratio:.3f} on average, {self.worst_ratio:.3f} at worst; "
            f"ranks wait {100 * self.idle_fraction:.1f} % of the time"
        )


def imbalance(loads: Any, unit: str = "cost") -> Imbalance:
    """Of an array of loads, shape (steps, ranks): costs, tokens or seconds. Steps without any load are left out."""
    table = np.asarray(loads, np.float64)
    if table.ndim != 2 or not table.shape[1]:
        raise UsageError(f"loads must have shape (steps, ranks), not {list(table.shape)}")
    table = table[table.max(axis=1, initial=0) > 0]
    if not len(table):
        return Imbalance(table.shape[1], 0, 1.0, 1.0, 0.0, unit)
    slowest, mean = table.max(axis=1), table.mean(axis=1)
    ratios = slowest / mean
    idle = 1 - mean.sum() / slowest.sum()
    return Imbalance(table.shape[1], len(table), float(ratios.mean()), float(ratios.max()), float(idle), unit)


def measured_imbalance(
    seconds: Any, name: str | None = None, process_set: ProcessSet = global_process_set
) -> Imbalance:
    """From what every rank has measured: how long its own work took in each step, waiting not included. Collective.

    Args:
        seconds: of this rank, one for each step; the same number on all ranks.
        name: of the operation.
        process_set: the ranks that take part.

    Raises:
        MismatchError: other ranks have measured another number of steps.
    """
    mine = np.asarray(seconds, np.float64).reshape(-1)
    what = f"{name}.measured_imbalance" if name else "measured_imbalance"
    steps = operations.allgather(np.array([mine.size]), f"{what}.steps", process_set)
    if (steps != mine.size).any():
        raise MismatchError(f"{what}: the ranks have measured {', '.join(map(str, steps))} steps")
    of_rank = operations.allgather(mine, f"{what}.seconds", process_set)
    return imbalance(of_rank.reshape(len(steps), -1).T, "seconds")
