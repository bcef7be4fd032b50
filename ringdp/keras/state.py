"""State from one rank to all: the variables of a model and of its optimizer, objects."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from ringdp import world
from ringdp.errors import MismatchError, UsageError
from ringdp.numpy.ops import operations
from ringdp.process_sets import ProcessSet, global_process_set
from ringdp.state import allgather_object, broadcast_object


def broadcast_model(model: Any, root_rank: int = 0, process_set: ProcessSet = global_process_set) -> None:
    """Give every rank the state of `root_rank`'s model: weights, optimizer, states of random seeds; not metrics.

    Args:
        model: built, the same on all ranks. With its optimizer, if it is compiled.
        root_rank: whose state: the rank in the job.
        process_set: the ranks that take part.

    Raises:
        MismatchError: the ranks' variables differ in number, name, shape or dtype; on every rank, nothing is written.
        UsageError: the model is not built.
    """
    if not model.built:
        raise UsageError(f"broadcast_model: {model.name} has no variables yet: build it, or call it on data")
    broadcast_variables(state_of(model), root_rank, process_set=process_set)


def broadcast_global_variables(
    root_rank: int, model: Any = None, process_set: ProcessSet = global_process_set
) -> None:
    """Horovod's name of `broadcast_model`.

    Raises:
        UsageError: no model is given: Keras 3 has no list of all variables that there are.
    """
    if model is None:
        raise UsageError(
            "Keras 3 has no global variables: call broadcast_model(model), broadcast_variables(variables), or let "
            "callbacks.BroadcastGlobalVariablesCallback(0) do it in fit()"
        )
    broadcast_model(model, root_rank, process_set)


def broadcast_variables(
    variables: Iterable[Any],
    root_rank: int = 0,
    name: str = "broadcast_variables",
    process_set: ProcessSet = global_process_set,
) -> None:
    """Give every rank the values of `root_rank`'s variables. Not inside compiled code.

    Args:
        variables: Keras's, of any dtype; the same number and shapes on all ranks.
        root_rank: whose values: the rank in the job.
        name: of the operations.
        process_set: the ranks that take part.

    Raises:
        MismatchError: the ranks' variables differ in number, name, shape or dtype; on every rank, nothing is written.
    """
    variables = list(variables)
    _agree([_look(v) for v in variables], name, process_set)
    arrays = [np.array(keras.ops.convert_to_numpy(v)) for v in variables]
    handles = [
        # As bytes: states of seeds have dtypes that are not exchanged otherwise.
        operations.broadcast_async_(array.reshape(-1).view(np.uint8), root_rank, f"{name}.{i}", process_set)
        for i, array in enumerate(arrays)
    ]
    for handle in handles:
        handle.wait()
    if world.rank() != root_rank:
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array)


def state_of(model: Any) -> list[Any]:
    """The variables that make ranks alike: all but the metrics'."""
    optimizer = getattr(model, "optimizer", None)
    metrics = {id(v) for v in getattr(model, "metrics_variables", ())}
    found = [v for v in model.variables if id(v) not in metrics]
    found += optimizer.variables if optimizer is not None else ()
    return list({id(v): v for v in found}.values())


def _look(variable: Any) -> str:
    # The path has numbers that count what the process made before: only its last part is compared.
    return f"{variable.name} {variable.dtype}{list(variable.shape)}"


def _agree(lines: Sequence[str], what: str, process_set: ProcessSet) -> None:
    digest = hashlib.blake2b("\n".join(lines).encode(), digest_size=8).digest()
    if len(set(allgather_object(digest, f"{what}.digest", process_set))) == 1:
        return
    of_ranks = allgather_object((world.rank(), list(lines)), f"{what}.lines", process_set)
    longest = max(len(theirs) for _, theirs in of_ranks)
    padded = [(rank, theirs + ["(nothing more)"] * (longest - len(theirs))) for rank, theirs in of_ranks]
    differs = next(i for i in range(longest) if len({theirs[i] for _, theirs in padded}) > 1)
    table = "".join(f"\n  rank {rank}: {theirs[differs]}" for rank, theirs in padded[:8])
    more = f"\n  and {len(padded) - 8} ranks more" if len(padded) > 8 else ""
    raise MismatchError(f"{what}: the ranks differ; nothing was done:{table}{more}")


__all__ = [
    "allgather_object",
    "broadcast_global_variables",
    "broadcast_model",
    "broadcast_object",
    "broadcast_variables",
]
