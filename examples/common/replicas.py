"""Whether all ranks have the same parameters."""

import hashlib
import sys
from typing import Any

import torch

import ringdp.torch as hvd


def compare(model: torch.nn.Module) -> dict[str, Any]:
    """Whether all ranks have the same parameters, bit for bit, and the SHA-256 of this rank's. Collective."""
    hashed = hashlib.sha256()
    for tensor in model.state_dict().values():
        hashed.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    mine = torch.tensor([list(hashed.digest())], dtype=torch.uint8)
    of_ranks = hvd.allgather(mine, name="digest")
    identical = bool((of_ranks == of_ranks[0]).all())
    return {"parameters_identical": identical, "parameters_sha256": hashed.hexdigest()}


def report(result: dict[str, Any]) -> None:
    """Prints what `compare` found."""
    ranks = f"{hvd.size()} rank{'s' * (hvd.size() > 1)}"
    if result["parameters_identical"]:
        print(f"parameters identical on {ranks} (SHA-256 {result['parameters_sha256'][:16]}…)")
    else:
        print(f"PARAMETERS DIFFER between the {ranks}", file=sys.stderr)
