"""Where torch.compile traces a caller: which functions go into its graph, and which cannot."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

is_compiling = torch.compiler.is_compiling
no_place_in_a_graph: list[Callable[..., Any]] = []
# The same behind `torch.compiler.disable`, by `compiled.py`: none before something is traced that calls ringdp.
breaks: list[Callable[..., Any]] = []


def outside(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, which no graph can hold: what is traced breaks there, and calls it as it is.

    That is `torch.compiler.disable`, which is not called before it must be: it imports the compiler, which takes longer
    than all of ringdp. From then on all calls go through it: the compiler would look into those of a broken graph.
    """
    number = len(no_place_in_a_graph)
    no_place_in_a_graph.append(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if is_compiling():
            from ringdp.torch import compiled

            return compiled.breaks[number](*args, **kwargs)  # type: ignore[no-any-return]
        if breaks:
            return breaks[number](*args, **kwargs)  # type: ignore[no-any-return]
        return function(*args, **kwargs)

    return call
