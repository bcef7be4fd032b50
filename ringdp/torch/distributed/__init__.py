"""ringdp as a backend of torch.distributed: `torch.distributed.init_process_group("ringdp")`.

Importing registers the backend, and a rendezvous that goes over MPI where the job was started by mpirun or srun and
MASTER_ADDR is not set. What works, and what not: docs/torch-distributed.md.

From a call of torch.distributed to the core: `group` (a method for each collective) → `pieces` (what is asked of the
core, and what becomes of the result) → `work` (what torch gets back) → `waiter` (completes futures). Beside that:
`reductions` (torch's ReduceOp), `sets` (the ranks of a group), `messages` (from one rank to another), `rendezvous`,
`store` and `server`.
"""

from __future__ import annotations

import torch.distributed

from ringdp.torch.distributed import rendezvous
from ringdp.torch.distributed.group import NAME, ProcessGroup, create
from ringdp.torch.distributed.store import MpiStore

__all__ = ["MpiStore", "ProcessGroup"]


def _register() -> None:
    if hasattr(torch.distributed.Backend, NAME.upper()):
        return
    torch.distributed.Backend.register_backend(NAME, create, extended_api=True, devices=["cpu", "cuda"])
    rendezvous.register()


_register()
