"""Models that are too large for one process: layers split over the ranks of a process set (docs/parallel.md).

    mesh = hvd.mesh(data=-1, model=2)
    mlp = nn.Sequential(
        parallel.ColumnLinear(512, 2048, process_set=mesh.model),
        nn.GELU(),
        parallel.RowLinear(2048, 512, process_set=mesh.model),
    )
    parallel.broadcast_parameters(mlp, mesh)
    optimizer = hvd.DistributedOptimizer(torch.optim.AdamW(mlp.parameters()), process_set=mesh.data, shard=True)

The ranks of a model axis have the same inputs, and run the same layers in the same order: each layer's exchange meets
that of the others by its place in that order.
"""

from ringdp.torch.parallel.autograd import copy_to, gather_from, part_sizes, reduce_from, scatter_to
from ringdp.torch.parallel.clip import clip_grad_norm_
from ringdp.torch.parallel.layers import ColumnLinear, RowLinear, SplitEmbedding
from ringdp.torch.parallel.state import (
    broadcast_parameters,
    check_replicated,
    full_state_dict,
    load_full_state_dict,
    replicated,
    split_parameters,
)

__all__ = [
    "ColumnLinear",
    "RowLinear",
    "SplitEmbedding",
    "broadcast_parameters",
    "check_replicated",
    "clip_grad_norm_",
    "copy_to",
    "full_state_dict",
    "gather_from",
    "load_full_state_dict",
    "part_sizes",
    "reduce_from",
    "replicated",
    "scatter_to",
    "split_parameters",
]
