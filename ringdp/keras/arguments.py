"""What `DistributedOptimizer` is given: refusals of what cannot be right."""

from __future__ import annotations

from typing import Any

import keras

from ringdp import world
from ringdp.constants import Average, ReduceOp
from ringdp.errors import UsageError
from ringdp.keras.exchange import Options
from ringdp.requests import usable


def checked(optimizer: Any, options: Options, passes: int, groups: Any, devices: str) -> Options:
    """The options, if they can be right for this optimizer; else raise UsageError."""
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise UsageError(
            f"DistributedOptimizer needs a keras.optimizers.Optimizer, not {type(optimizer).__module__}."
            f"{type(optimizer).__name__} (optimizers of tf.keras 2 are not ones of Keras 3)"
        )
    if hasattr(optimizer, "_options"):
        raise UsageError(f"{optimizer.name} exchanges its gradients already: wrap an optimizer once")
    if not isinstance(options.op, ReduceOp):
        raise UsageError(f"op must be one of {', '.join(op.name for op in ReduceOp)}, not {options.op!r}")
    if not options.predivide > 0:
        raise UsageError(f"gradient_predivide_factor must be positive, not {options.predivide!r}")
    if options.predivide != 1 and options.op is not Average:
        raise UsageError("gradient_predivide_factor needs op=Average")
    if not all(callable(getattr(options.compression, m, None)) for m in ("compress", "decompress")):
        raise UsageError(
            "compression must have the methods compress and decompress, as Compression.none, .fp16 and .bf16 do; "
            f"{options.compression!r} has not"
        )
    if devices:
        raise UsageError(
            "device_dense and device_sparse must be empty: gradients are exchanged where they are"
        )
    if not (groups is None or isinstance(groups, (int, list))) or (isinstance(groups, int) and groups < 0):
        raise UsageError(f"groups must be a number from 0, or a list of lists of variables, not {groups!r}")
    check_passes(optimizer, passes)
    usable(options.process_set)
    if not options.process_set.included():
        raise UsageError(
            f"rank {world.rank()} is not in the process set whose gradients the optimizer exchanges"
        )
    return options


def check_passes(optimizer: Any, passes: int) -> None:
    """backward_passes_per_step."""
    if not isinstance(passes, int) or passes < 1:
        raise UsageError(f"backward_passes_per_step must be a positive integer, not {passes!r}")
    has = optimizer.gradient_accumulation_steps or 1
    if passes == 1 or passes == has:
        return
    if has > 1:
        raise UsageError(
            f"{optimizer.name} has gradient_accumulation_steps={has}, and backward_passes_per_step={passes} is given: "
            "they are two names for the same number; give one of them"
        )
    if isinstance(optimizer, keras.optimizers.MultiOptimizer):
        raise UsageError(
            "backward_passes_per_step: a MultiOptimizer does not add up gradients over several batches"
        )
    if optimizer.built:
        raise UsageError(
            f"{optimizer.name} is built, without room to add up gradients over {passes} batches: give "
            f"gradient_accumulation_steps={passes} when the optimizer is made"
        )
