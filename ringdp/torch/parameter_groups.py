"""`num_groups` and `groups`: which gradients the user wants exchanged together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ringdp.errors import UsageError


def group_numbers(
    parameters: Sequence[tuple[str, torch.Tensor]], num_groups: Any, groups: Any
) -> dict[torch.Tensor, int]:
    """The number of each grouped parameter's group; the others go to buckets by size.

    Args:
        parameters: those of the optimizer, in order.
        num_groups: so many groups of consecutive parameters that require grad, whose numbers of parameters differ by
            one at most. 0: none. More than there are parameters: each alone.
        groups: an integer, as `num_groups`; or lists of parameters.

    Raises:
        UsageError: neither; a parameter in two groups, or one that the optimizer has not or that needs no gradient.
    """
    if groups is None:
        groups = num_groups
    elif num_groups:
        raise UsageError("give num_groups or groups, not both")
    if isinstance(groups, int) and not isinstance(groups, bool):
        if groups < 0:
            raise UsageError(f"the number of groups must not be negative, as {groups} is")
        return _consecutive([p for _, p in parameters if p.requires_grad], groups)
    if not isinstance(groups, (list, tuple)) or not all(isinstance(g, (list, tuple)) for g in groups):
        raise UsageError(f"groups must be a number or a list of lists of parameters, not {groups!r}")
    return _listed({p: name for name, p in parameters}, groups)


def _consecutive(params: Sequence[torch.Tensor], groups: int) -> dict[torch.Tensor, int]:
    groups = min(groups, len(params))
    return {p: i * groups // len(params) for i, p in enumerate(params)} if groups else {}


def _listed(
    names: dict[torch.Tensor, str], groups: Sequence[Sequence[torch.Tensor]]
) -> dict[torch.Tensor, int]:
    numbers: dict[torch.Tensor, int] = {}
    for number, group in enumerate(groups):
        for param in group:
            if not isinstance(param, torch.Tensor) or param not in names:
                what = "" if isinstance(param, torch.Tensor) else f", a {type(param).__name__}"
                raise UsageError(
                    f"group {number} of groups holds what is no parameter of this optimizer{what}"
                )
            if not param.requires_grad:
                raise UsageError(f"groups names {names[param]}, which does not require a gradient")
            if param in numbers:
                raise UsageError(
                    f"groups names {names[param]} twice: in groups {numbers[param]} and {number}"
                )
            numbers[param] = number
    return numbers
