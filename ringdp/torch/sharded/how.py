"""What an optimizer can be sharded by, and what does not go with shards."""

from __future__ import annotations

from typing import Any

import torch

from ringdp.constants import Average, Sum
from ringdp.errors import UsageError
from ringdp.torch.compression import Compression
from ringdp.torch.wire import ELEMENTS, PARAMETERS, Options

# What they do to an element depends on that element's own gradient and state alone.
ELEMENTWISE = (
    torch.optim.ASGD,
    torch.optim.Adadelta,
    torch.optim.Adagrad,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Rprop,
    torch.optim.SGD,
)
# What they do to a parameter depends on that parameter alone.
BY_PARAMETER = (torch.optim.Adafactor, torch.optim.Muon)
# What they do to a parameter depends on others.
UNDIVIDED = (torch.optim.LBFGS,)


def sharded_by(optimizer: torch.optim.Optimizer, shard: Any) -> str:
    """ELEMENTS or PARAMETERS: what the user asks for by `shard`, where that can be.

    Raises:
        UsageError: it cannot be, or is none of the values of `shard`.
    """
    kind = type(optimizer)
    if shard not in (True, ELEMENTS, PARAMETERS):
        raise UsageError(f'shard must be True, False, "{ELEMENTS}" or "{PARAMETERS}", not {shard!r}')
    if isinstance(optimizer, UNDIVIDED):
        raise UsageError(f"{kind.__name__} steps all parameters as one vector: it cannot be sharded")
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise UsageError("SparseAdam takes sparse gradients, which are not sharded: use Adam, or shard=False")
    if shard is not True:
        return str(shard)
    if kind not in ELEMENTWISE + BY_PARAMETER:
        raise UsageError(
            f"ringdp does not know what {kind.__name__} looks at. If it steps each parameter by itself, say "
            f'shard="{PARAMETERS}"; if each element, shard="{ELEMENTS}"; if a step depends on several parameters, it '
            "cannot be sharded"
        )
    return ELEMENTS if kind in ELEMENTWISE else PARAMETERS


def check_sharded(options: Options, compression: Any) -> None:
    """Refuse what does not go with shards."""
    if options.op not in (Average, Sum):
        raise UsageError(f"a sharded optimizer needs op=Average or Sum, not {options.op.name}")
    if compression is not Compression.none:
        raise UsageError(
            "a sharded optimizer exchanges its gradients as they are: leave compression at Compression.none"
        )
