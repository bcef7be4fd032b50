"""What blocks of signed bytes are tried with."""

from __future__ import annotations

import numpy as np


def values(count: int, seed: int = 0) -> np.ndarray:
    """Finite: of all magnitudes, subnormal blocks and blocks of zeros, and ties between two codes."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(count) * 10.0 ** rng.integers(-3, 4, count)).astype(np.float32)
    bits = rng.integers(0, 0x7F800000, count, np.uint32) | rng.integers(0, 2, count, np.uint32) << 31
    x = np.where(rng.random(count) < 0.1, bits.astype(np.uint32).view(np.float32), x)
    part = np.arange(count) // 300 % 7
    x = np.where(part == 1, 0, x)
    x = np.where(part == 2, (bits % 5000).astype(np.uint32).view(np.float32), x)  # subnormal
    x = np.where(part == 3, rng.integers(-254, 255, count) / 2, x)  # with 127 in the block: ties
    x = np.where((part == 3) & (np.arange(count) % 8 == 0), 127, x)
    return x.astype(np.float32)
