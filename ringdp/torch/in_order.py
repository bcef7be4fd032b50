"""That compilers carry out an operator as often as it is written, and in that order.

They take two equal calls for one, leave out a call whose result nobody uses, and move calls past each other; each would
hang the other ranks. PyTorch has a mark for operators with an effect, which is respected from the trace of the forward
and the backward pass on. Inductor keeps all marked calls, but 2.13 loses their order (it notes the dependency under the
name of a buffer and looks for that of an operation), and what order it finds better depends on the shapes, which may
differ between ranks. `_lowered` notes the same dependency under the right name.

None of this is a public part of PyTorch. Where a release lacks it, `MISSING` says so, and graphs break at the calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

MISSING = ""
try:
    from torch._higher_order_ops.effects import _EffectType, _register_effectful_op
    from torch._inductor import ir
    from torch._inductor.lowering import register_lowering
    from torch._inductor.virtualized import V
    from torch.utils._pytree import tree_map_only
except ImportError as error:
    MISSING = f"torch {torch.__version__} has no way known to ringdp to keep collectives in order ({error})"


def keep_in_order(operator: Any) -> None:
    """Mark an operator that returns new tensors and writes nothing. Not if there is something `MISSING`."""
    _register_effectful_op(operator, _EffectType.ORDERED)
    register_lowering(operator, type_promotion_kind=None)(_lowered(operator))


def _lowered(operator: Any) -> Callable[..., Any]:
    """What Inductor makes of a call: the call, which waits for the marked one before it."""

    def lowered(*arguments: Any) -> Any:
        graph = V.graph
        before = graph.effectful_ops.get(_EffectType.ORDERED)
        made = len(graph.operations)
        result = ir.FallbackKernel.create(operator, *arguments)
        for operation in graph.operations[made:] if before is not None else ():
            graph.additional_buffer_deps[operation.get_operation_name()].add(before.get_name())
        return tree_map_only(ir.IRNode, ir.TensorBox.create, result)

    return lowered
