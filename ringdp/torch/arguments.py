"""What `DistributedOptimizer` is given: names for the parameters, and refusals of what cannot be right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from ringdp.constants import Adasum, Average, Max, Min, Product, Sum
from ringdp.errors import UsageError
from ringdp.requests import usable
from ringdp.torch import device
from ringdp.torch.adapter import refuse_unsupported
from ringdp.torch.checks.options import check_params
from ringdp.torch.wire import Options


def named_from(named_parameters: Iterable[tuple[str, torch.Tensor]] | None) -> dict[torch.Tensor, str]:
    """The names by parameter; tied parameters keep the first.

    Raises:
        UsageError: not pairs of a name and a tensor, or a name twice.
    """
    names: dict[torch.Tensor, str] = {}
    used: dict[str, torch.Tensor] = {}
    for pair in named_parameters or ():
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise UsageError(
                "named_parameters must give pairs of name and parameter, as model.named_parameters() does; "
                f"it gave a {type(pair).__name__}"
            )
        name, param = pair
        if used.setdefault(name, param) is not param:
            raise UsageError(f"named_parameters gives the name '{name}' to two parameters")
        names.setdefault(param, name)
    return names


def named(
    groups: Sequence[dict[str, Any]], names: dict[torch.Tensor, str], since: int = 0
) -> list[tuple[str, torch.Tensor]]:
    """The parameters of an optimizer's groups, from group `since` on, with their names.

    Those that `names` lacks get the name that their group has for them (torch's named optimizers), or their number.
    """
    found = []
    for number, group in list(enumerate(groups))[since:]:
        own = group.get("param_names") or [f"parameter.{number}.{i}" for i in range(len(group["params"]))]
        found += [(names.get(p, fallback), p) for p, fallback in zip(group["params"], own, strict=True)]
    return found


def check_names(parameters: Sequence[tuple[str, torch.Tensor]], names: dict[torch.Tensor, str]) -> None:
    """Refuse named_parameters that leave out a parameter of the optimizer."""
    missing = [name for name, param in parameters if param not in names]
    if missing:
        raise UsageError(
            f"named_parameters does not name {len(missing)} of the optimizer's parameters ({missing[0]} is the first)"
        )


def check_arguments(
    parameters: Sequence[tuple[str, torch.Tensor]],
    options: Options,
) -> None:
    """Refuse what cannot be right, and what is not offered yet."""
    if options.op not in (Average, Sum, Min, Max, Product, Adasum):
        raise UsageError(
            f"op must be Average, Sum, Min, Max, Product or Adasum, not {getattr(options.op, 'name', options.op)}"
        )
    if not isinstance(options.passes, int) or options.passes < 1:
        raise UsageError(f"backward_passes_per_step must be a positive integer, not {options.passes!r}")
    if options.predivide != 1 and options.op is not Average:
        raise UsageError("gradient_predivide_factor needs op=Average")
    if not options.predivide > 0:
        raise UsageError(f"gradient_predivide_factor must be positive, not {options.predivide!r}")
    if options.bucket_bytes < 1:
        raise UsageError(f"bucket_bytes must be positive, not {options.bucket_bytes!r}")
    usable(options.process_set)
    for name, param in parameters:
        refuse_unsupported(param, f"parameter {name}")
    check_params(options.checks, (param for _, param in parameters))
    gpus = sorted({device.gpu_of(param) for _, param in parameters if device.is_on_gpu(param)})
    if len(gpus) > 1:
        raise UsageError(
            f"the parameters lie on GPUs {' and '.join(map(str, gpus))}: a rank uses one; start as many ranks as GPUs"
        )
