"""State from one rank to all: parameters, optimizer state, objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ringdp import state as objects
from ringdp import world
from ringdp.errors import PeerError, UsageError
from ringdp.process_sets import ProcessSet, global_process_set
from ringdp.state import agree
from ringdp.torch import device
from ringdp.torch.adapter import refuse_unsupported
from ringdp.torch.ops import operations
from ringdp.torch.tracing import outside

allgather_object = outside(objects.allgather_object)
broadcast_object = outside(objects.broadcast_object)


@outside
def broadcast_parameters(
    params: Any,
    root_rank: int = 0,
    prefix: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> None:
    """Give every rank the tensors of `root_rank`, in place.

    Args:
        params: `model.state_dict()`, `model.named_parameters()`, `model.parameters()`, or a list of either
            kind. Entries of a dict that are no tensors stay as they are. Leaves that require grad may be among them.
        root_rank: whose tensors.
        prefix: before the names on the wire.
        process_set: the ranks that take part.

    Raises:
        MismatchError: names, dtypes, shapes or devices differ between ranks; on every rank, before anything is written.
        TypeError: an entry that is no tensor, or one that ringdp cannot exchange (sparse, quantised, complex, on a
            device, without memory); on every rank, before anything is written.
        UsageError: not such a collection.
    """
    tensors = _named_tensors(params)
    what = f"{prefix}.broadcast_parameters" if prefix else "broadcast_parameters"
    agree([f"{name}: {_look(tensor)}" for name, tensor in tensors], what, process_set)
    for name, tensor in tensors:  # after all ranks have compared: none waits for one that refuses
        refuse_unsupported(tensor, name)
    handles = [
        operations.broadcast_async_(tensor, root_rank, f"{what}.{i}.{name}", process_set)
        for i, (name, tensor) in enumerate(tensors)
    ]
    for handle in handles:
        handle.wait()


def _named_tensors(params: Any) -> list[tuple[str, torch.Tensor]]:
    if isinstance(params, torch.Tensor) or not isinstance(params, Iterable):
        raise UsageError(
            f"params must be a dict, a list or a generator of tensors, not a {type(params).__name__}"
        )
    if isinstance(params, Mapping):
        return [(str(k), v) for k, v in params.items() if isinstance(v, torch.Tensor)]
    entries = list(params)
    return [
        entry if isinstance(entry, tuple) else (f"parameter {i}", entry) for i, entry in enumerate(entries)
    ]


def _look(tensor: Any) -> str:
    if not isinstance(tensor, torch.Tensor):
        return f"a {type(tensor).__name__}, no tensor"
    layout = "" if tensor.layout is torch.strided else f" {tensor.layout}"
    where = " on a GPU" if device.is_on_gpu(tensor) else "" if tensor.is_cpu else f" on {tensor.device.type}"
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}{layout}{where}"


# --- optimizers -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tensor:
    """The place of a tensor in the structure that is sent as an object."""

    index: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    on_gpu: bool


@outside
def broadcast_optimizer_state(
    optimizer: torch.optim.Optimizer,
    root_rank: int = 0,
    model: Any = None,
    prefix: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> None:
    """Give every rank the optimizer state of `root_rank`: options of the groups (learning rates), and what was
    accumulated.

    Never changes a parameter and takes no step: a rank without state gets the root's, and loses its own where the root
    has none. Tensors go as tensors, the structure around them as a pickled object.

    Args:
        optimizer: any torch.optim.Optimizer, wrapped or not, over the same parameters on all ranks.
        root_rank: whose state: the rank in the job.
        model: not needed; Horovod's scripts may give it.
        prefix: before the names on the wire.
        process_set: the ranks that take part.

    Raises:
        MismatchError: the parameters differ between ranks.
        TypeError: the root's state holds a tensor that ringdp cannot exchange; PeerError on the other ranks.
        UsageError: a sharded optimizer that has stepped: each rank has the state of its own shard.
    """
    if getattr(optimizer, "_shards", None) is not None:
        raise UsageError(
            "broadcast_optimizer_state: each rank has the state of its own shard. Call it before the first step, or "
            "let all ranks load_state_dict() what consolidate_state_dict() has collected"
        )
    what = f"{prefix}.broadcast_optimizer_state" if prefix else "broadcast_optimizer_state"
    groups = optimizer.param_groups
    lines = [
        f"group {g}, parameter {i}: {_look(p)}"
        for g, group in enumerate(groups)
        for i, p in enumerate(group["params"])
    ]
    agree(lines, what, process_set)
    is_root = world.rank() == root_rank
    tensors: list[torch.Tensor] = []
    structure: Any = None
    if is_root:
        try:
            structure = _take_apart(state_of(optimizer), tensors)
        except TypeError as error:  # the others wait for it
            structure = error
    structure = broadcast_object(structure, root_rank, what, process_set)
    if isinstance(structure, TypeError):
        raise (
            structure
            if is_root
            else PeerError(f"{what}: rank {root_rank} cannot send its state: {structure}")
        )
    if not is_root:
        places = sorted(_places(structure), key=lambda place: place.index)
        on_gpu = next((p for p in _parameters(optimizer) if device.is_on_gpu(p)), torch.empty(0))
        tensors = [
            (on_gpu if p.on_gpu else torch.empty(0)).new_empty_strided(p.shape, p.strides, dtype=p.dtype)
            for p in places
        ]
    handles = [
        operations.broadcast_async_(tensor, root_rank, f"{what}.{i}", process_set)
        for i, tensor in enumerate(tensors)
    ]
    for handle in handles:
        handle.wait()
    if not is_root:
        put_state(optimizer, _put_together(structure, tensors))


def state_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """State and options, with parameters as numbers; not copied."""
    number = {p: i for i, p in enumerate(_parameters(optimizer))}
    return {
        "groups": [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups],
        "of_parameters": {number[k]: v for k, v in optimizer.state.items() if k in number},
        "of_others": {k: v for k, v in optimizer.state.items() if k not in number},
    }


def put_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """The reverse of `state_of`."""
    # Not by load_state_dict: that casts to the parameters' dtype, so a 16-bit model's ranks would end with
    # different state.
    params = _parameters(optimizer)
    for group, options in zip(optimizer.param_groups, state["groups"], strict=True):
        group.update(options)
    optimizer.state.clear()
    for number, value in state["of_parameters"].items():
        optimizer.state[params[number]] = value
    optimizer.state.update(state["of_others"])


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _take_apart(value: Any, tensors: list[torch.Tensor]) -> Any:
    """`value` with a `_Tensor` in place of each tensor, which goes to `tensors`."""
    if isinstance(value, torch.Tensor):
        refuse_unsupported(value, "a tensor of the optimizer's state")
        tensors.append(value)
        like = torch.empty_like(value)  # dense, in the order of the original's strides
        return _Tensor(
            len(tensors) - 1, tuple(value.shape), like.stride(), value.dtype, device.is_on_gpu(value)
        )
    if isinstance(value, dict):
        return {k: _take_apart(v, tensors) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_take_apart(v, tensors) for v in value)
    return value


def _put_together(value: Any, tensors: Sequence[torch.Tensor]) -> Any:
    """The reverse of `_take_apart`."""
    if isinstance(value, _Tensor):
        return tensors[value.index]
    if isinstance(value, dict):
        return {k: _put_together(v, tensors) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_put_together(v, tensors) for v in value)
    return value


def _places(value: Any) -> list[_Tensor]:
    if isinstance(value, _Tensor):
        return [value]
    inner: Iterable[Any] = value.values() if isinstance(value, dict) else ()
    if type(value) in (list, tuple):
        inner = value
    return [place for v in inner for place in _places(v)]


__all__ = ["allgather_object", "broadcast_object", "broadcast_optimizer_state", "broadcast_parameters"]
