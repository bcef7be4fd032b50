"""`uneven()`: a training loop in which ranks have different numbers of batches, as a context."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from ringdp.joined import join
from ringdp.process_sets import ProcessSet, global_process_set
from ringdp.torch.state import broadcast_optimizer_state, broadcast_parameters


@contextlib.contextmanager
def uneven(
    *trained: torch.nn.Module | torch.optim.Optimizer,
    divide_by: str = "all",
    enable: bool = True,
    process_set: ProcessSet = global_process_set,
) -> Iterator[None]:
    """Let ranks leave the loop inside at different times: as torch's `Join`.

    At its end a rank joins (`join`), so the exchanges of those that still have batches go on with nothing from it. When
    all have come there, the models and optimizers that are given become what they are on the rank that came last, as
    those of the others have missed its last steps. An exception inside is not held up.

    Args:
        trained: modules and optimizers, the same on all ranks.
        divide_by: averages are divided by the number of "all" ranks, or of those that are "active": see `join`.
        enable: if False, nothing is done.
        process_set: the ranks that take part.

    Raises:
        TypeError: something else is given.
        UsageError: another `divide_by`, or a sharded optimizer; at the end.
        DeadlineError, PeerError, TransportError: as for any operation.
    """
    for one in trained:
        if not isinstance(one, (torch.nn.Module, torch.optim.Optimizer)):
            raise TypeError(f"uneven() takes modules and optimizers, not a {type(one).__name__}")
    yield
    if not enable:
        return
    last = join(divide_by=divide_by, process_set=process_set)
    for number, one in enumerate(trained):
        if isinstance(one, torch.nn.Module):
            broadcast_parameters(one.state_dict(), last, f"uneven.{number}", process_set)
            continue
        params = [
            (f"{g}.{p}", x) for g, group in enumerate(one.param_groups) for p, x in enumerate(group["params"])
        ]
        broadcast_parameters(params, last, f"uneven.{number}", process_set)
        broadcast_optimizer_state(one, last, process_set=process_set)
