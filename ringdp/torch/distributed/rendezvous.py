"""How the ranks find each other: they are a job already. `init_method="ringdp://"`; and "env://", torch's default,
where the job was started by mpirun or srun and MASTER_ADDR, which "env://" would need, is not set.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any
from urllib.parse import parse_qs, urlparse

import torch.distributed as dist

from ringdp import launch, world
from ringdp.errors import UsageError
from ringdp.torch.distributed.store import Connection

SCHEME = "ringdp"
Handler = Callable[..., Iterator[tuple[Any, int, int]]]


def register() -> None:
    """Both. Where "env://" is not ours, torch's own handler does as before."""
    handlers: dict[str, Handler] = import_module("torch.distributed.rendezvous")._rendezvous_handlers
    handlers[SCHEME] = over_mpi
    torchs = handlers["env"]

    def env(url: str, *rest: Any, **options: Any) -> Iterator[tuple[Any, int, int]]:
        return over_mpi(url) if _is_ours() else torchs(url, *rest, **options)

    handlers["env"] = env


def over_mpi(url: str, *_: Any, **__: Any) -> Iterator[tuple[Any, int, int]]:
    """Yields the store, this rank and the number of ranks, once. Collective. Initialises ringdp if nobody has.

    Args:
        url: may say rank and world_size, as torch adds them; then they must be ringdp's.

    Raises:
        UsageError: they are not.
    """
    if not world.is_initialized():
        world.init()
    here = world.current()
    mine = {"rank": here.place.rank, "world_size": here.place.size}
    for name, (value, *_others) in parse_qs(urlparse(url).query).items():
        if name in mine and int(value) not in (mine[name], -1):
            raise UsageError(
                f"init_process_group({name}={value}): this is rank {here.place.rank} of {here.place.size} of the job "
                "that mpirun or srun started; leave rank= and world_size= away"
            )
    connection = here.service(Connection)
    connection.uses += 1
    yield dist.PrefixStore(f"{connection.uses}", connection.store), here.place.rank, here.place.size


def _is_ours() -> bool:
    if os.environ.get("MASTER_ADDR"):
        return False
    return world.is_initialized() or launch.launcher_traces(os.environ) is not None
