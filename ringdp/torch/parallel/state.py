"""The parameters of models that have split layers: which are parts, what is whole, and how ranks come to be alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ringdp.errors import MismatchError, ReplicaError, UsageError
from ringdp.meshes import Mesh
from ringdp.process_sets import ProcessSet
from ringdp.torch.ops import operations
from ringdp.torch.parallel.autograd import gathered
from ringdp.torch.parallel.layers import Split
from ringdp.torch.state import allgather_object
from ringdp.torch.state import broadcast_parameters as broadcast_tensors

Place = tuple[Split, str, int]  # the layer, the parameter's name there, the dimension along which it is split


def split_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Those of which this rank has a part, by the names of `module.named_parameters()`."""
    places = _places(module)
    return {name: param for name, param in module.named_parameters() if name in places}


def replicated(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers that the ranks of the model axis have alike: all but the split ones, by name."""
    places = _places(module)
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor for name, tensor in named if name not in places}


def broadcast_parameters(module: nn.Module, mesh: Mesh, data: str = "data", model: str = "model") -> None:
    """Make a model's ranks alike as they have to be: what is replicated on all, each part along the data axis.

    Along the model axis, parameters and buffers that are not split go from the first rank to the others; then all go
    along the data axis. Collective over the mesh.

    Args:
        module: with layers that are split over the axis `model`.
        mesh: of the job.
        data, model: its axes along which the model is replicated, and split.

    Raises:
        MismatchError: names, dtypes or shapes differ along an axis; on every rank of that group, before anything is
            written there.
        UsageError: the mesh has no such axis.
    """
    for axis, tensors in ((model, replicated(module)), (data, module.state_dict(keep_vars=True))):
        process_set = mesh[axis]
        assert process_set.ranks is not None
        broadcast_tensors(tensors, process_set.ranks[0], f"parallel.{axis}", process_set)


def check_replicated(module: nn.Module, process_set: ProcessSet) -> None:
    """See that what is replicated over a set, `mesh.model`, is the same bits on all its ranks. Collective over them.

    Raises:
        ReplicaError: it is not; on all of them, naming the first parameter or buffer that differs.
        MismatchError: the ranks have others.
    """
    mine = {name: _bits(tensor) for name, tensor in replicated(module).items()}
    of_ranks = allgather_object(mine, "parallel.check_replicated", process_set)
    if any(list(theirs) != list(mine) for theirs in of_ranks):
        raise MismatchError(
            f"check_replicated: the ranks of {process_set!r} have models of other parameters or in another order"
        )
    for name in mine:
        by_rank = [theirs[name] for theirs in of_ranks]
        if any(bits != by_rank[0] for bits in by_rank):
            assert process_set.ranks is not None
            others = [r for r, bits in zip(process_set.ranks, by_rank, strict=True) if bits != by_rank[0]]
            raise ReplicaError(
                f"check_replicated: {name} is replicated over the ranks {process_set.ranks}, and ranks {others} have "
                f"other bits than rank {process_set.ranks[0]}: call parallel.broadcast_parameters() at the start, and "
                "give all ranks of the model axis the same data"
            )


def full_state_dict(module: nn.Module) -> dict[str, Any]:
    """`module.state_dict()` with whole parameters in place of parts: that of the model of one process, on every rank.
    Collective over the sets of the split layers.

    Its names are those of the same model made of `torch.nn.Linear` and `torch.nn.Embedding`.
    """
    places, whole = _places(module), {}
    for name, value in module.state_dict().items():
        if name in places:
            layer, own_name, dim = places[name]
            length = layer.whole[own_name][dim]
            value = gathered(value, operations, layer.process_set, dim, length)
        whole[name] = value
    return whole


def load_full_state_dict(module: nn.Module, state: Mapping[str, Any], strict: bool = True) -> Any:
    """`module.load_state_dict()` of whole parameters, as `full_state_dict` or a model of one process gives them: each
    rank takes its parts. No rank waits for another.

    Returns:
        As torch's.

    Raises:
        UsageError: a parameter that is split has another shape there.
        RuntimeError: as torch's.
    """
    places, parts = _places(module), {}
    for name, value in state.items():
        if name in places:
            layer, own_name, _ = places[name]
            if value.shape != layer.whole[own_name]:
                raise UsageError(
                    f"load_full_state_dict: {name} has the shape {tuple(value.shape)}, and the whole parameter "
                    f"{tuple(layer.whole[own_name])}"
                )
            value = layer.part(own_name, value)
        parts[name] = value
    return module.load_state_dict(parts, strict)


def _places(module: nn.Module) -> dict[str, Place]:
    """Of all parameters that are split, by name."""
    found = {}
    for prefix, layer in module.named_modules(remove_duplicate=False):
        if isinstance(layer, Split):
            for name, dim in layer.split.items():
                if layer._parameters.get(name) is not None:
                    found[f"{prefix}.{name}" if prefix else name] = (layer, name, dim)
    return found


def _bits(tensor: torch.Tensor) -> bytes:
    from hashlib import blake2b

    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return blake2b(flat.numpy().tobytes(), digest_size=16).digest()
