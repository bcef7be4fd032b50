"""Where torch.compile traces a caller: which functions go into its graph, and which cannot."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

is_compiling = torch.compiler.is_compiling
no_place_in_a_graph: list[Callable[..., Any]] = []  # `compiled.py` makes breaks of them


def outside(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, which no graph can hold: what is traced breaks there, and calls it as it is.

    (`torch.compiler.disable` does that too, but imports the compiler, which takes longer than all of ringdp.)
    """
    number = len(no_place_in_a_graph)
    no_place_in_a_graph.append(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if is_compiling():
            from ringdp.torch import compiled

            return compiled.breaks[number](*args, **kwargs)  # type: ignore[no-any-return]
        return function(*args, **kwargs)

    return call
