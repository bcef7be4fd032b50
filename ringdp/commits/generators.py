"""The state of the random number generators of Python and NumPy, as plain data."""

from __future__ import annotations

import random
from typing import Any

import numpy as np


def states() -> dict[str, Any]:
    """What `put` takes."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [str(kind), [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
    }


def put(saved: dict[str, Any]) -> None:
    """Go on from there."""
    version, numbers, gauss = saved["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = saved["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), position, has_gauss, cached))
