"""What the engine of a rank counts while something is done: who served it, which no result shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from ringdp import world


def counted(call: Callable[[], object]) -> Counter[str]:
    """By how much counters (csrc/engine/counters.h) have grown. Those that have not are left out; they read as 0."""
    counters = world.current().engine.counters
    before = Counter(counters())
    call()
    return Counter(counters()) - before


def ways(call: Callable[[], object]) -> list[str]:
    """Of tensors on GPUs: which have been taken."""
    return [name for name in counted(call) if name.startswith("by_")]
