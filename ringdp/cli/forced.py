"""ringdp with one all-reduce for everything, and how long that takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

VARIABLE = "RINGDP_ALGORITHM"


@contextmanager
def algorithm(name: str) -> Iterator[Any]:
    """Start ringdp with RINGDP_ALGORITHM=name, give its engine, and shut it down. Collective."""
    import ringdp
    from ringdp import world

    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = name
    try:
        ringdp.init()
        yield world.current().engine
        ringdp.shutdown()
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before


def microseconds(comm: Any, size: int, iterations: int) -> float:
    """Of an all-reduce in place of `size` bytes of float32: the median of the slowest rank. Collective."""
    import numpy as np

    import ringdp
    from ringdp.cli import measure

    x = np.zeros(max(1, size // 4), np.float32)
    calls = [lambda: ringdp.allreduce_(x, op=ringdp.Sum, name="bench.table")]
    (taken,) = measure.slowest(measure.take_turns(calls, comm, 3, iterations), comm)
    return taken
