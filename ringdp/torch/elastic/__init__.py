"""Horovod's elastic interface: commit and restore in memory. docs/elastic.md says what is there and what is not.

state = hvd.elastic.TorchState(model=model, optimizer=optimizer, epoch=0, batch=0)

@hvd.elastic.run
def train(state):
    for state.epoch in range(state.epoch, epochs):
        ...
        state.commit()

train(state)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ringdp import elastic as _elastic
from ringdp.elastic import HostUpdateResult, ObjectState, State
from ringdp.errors import HorovodInternalError, HostsUpdatedInterrupt
from ringdp.torch.elastic.sampler import ElasticSampler
from ringdp.torch.elastic.state import TorchState


def run(func: Callable[..., Any] | None = None, *, reset_limit: int = _elastic.RESET_LIMIT) -> Any:
    """Decorator: `func(state, ...)` goes on from the last commit when an exchange fails.

    First `state.sync()` gives every rank what rank 0 has; then `func` runs. If it raises `HorovodInternalError`, on one
    rank or on all, every rank restores its last commit; if it raises `HostsUpdatedInterrupt`, state stays as it
    is. Then all ranks shut ringdp down and initialise it again, `state.on_reset()` calls the registered callbacks, and
    it begins again with `state.sync()` (left out where all ranks say `skip_sync`). All ranks return together.
    Process sets are there again after a reset; handles from before it are not.

    Collective operations before `func` is called are allowed here, but for jobs with spares (`ringdp run --spares`),
    where they raise UsageError; Horovod forbids them.

    Args:
        func: takes a `State` first, and is called alike on all ranks.
        reset_limit: after so many resets in a row without a `commit()` it raises. Horovod's is without end.

    Raises:
        HorovodInternalError: the limit is reached; on every rank, with the last failure.
        PeerError: a rank has not come to the reset within RINGDP_TIMEOUT: it is lost. Under `ringdp run --elastic` the
            others go on without it, and this is raised where fewer than --min-ranks are left.
    """
    if func is None:
        return lambda function: run(function, reset_limit=reset_limit)
    return _elastic.run_fn(func, _elastic.reset, reset_limit)


__all__ = [
    "ElasticSampler",
    "HorovodInternalError",
    "HostUpdateResult",
    "HostsUpdatedInterrupt",
    "ObjectState",
    "State",
    "TorchState",
    "run",
]
