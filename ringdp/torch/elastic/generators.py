"""The state of all random number generators that a training uses: Python's, NumPy's, PyTorch's on CPU and GPU."""

from __future__ import annotations

from typing import Any

import torch

from ringdp.commits import generators


def states() -> dict[str, Any]:
    """What `put` takes: tensors and plain data."""
    on_gpu = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return {**generators.states(), "torch": torch.get_rng_state(), "torch on a GPU": on_gpu}


def put(saved: dict[str, Any]) -> None:
    """Go on from there."""
    generators.put(saved)
    torch.set_rng_state(saved["torch"])
    if saved["torch on a GPU"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved["torch on a GPU"])
