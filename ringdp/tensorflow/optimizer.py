"""`DistributedOptimizer` for the optimizers of tf.keras, with the arguments of Horovod's for TensorFlow."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from ringdp.constants import Average, ReduceOp
from ringdp.errors import UsageError
from ringdp.process_sets import ProcessSet, global_process_set
from ringdp.tensorflow.compression import BF16Compressor, Compression, FP16Compressor, NoneCompressor


def DistributedOptimizer(
    optimizer: Any,
    name: str | None = None,
    use_locking: bool = False,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = Compression.none,
    sparse_as_dense: bool = False,
    backward_passes_per_step: int = 1,
    op: ReduceOp = Average,
    gradient_predivide_factor: float = 1.0,
    average_aggregated_gradients: bool = False,
    num_groups: int = 0,
    groups: Any = None,
    process_set: ProcessSet = global_process_set,
    scale_local_gradients: bool = True,
) -> Any:
    """Make this optimizer of tf.keras exchange its gradients: see `ringdp.keras.DistributedOptimizer`, which does it.

    Args:
        use_locking: not used.

    Raises:
        UsageError: an optimizer of tf.compat.v1.train; or no optimizer.
    """
    if isinstance(optimizer, tf.compat.v1.train.Optimizer):
        raise UsageError(
            f"DistributedOptimizer: ringdp has nothing for tf.compat.v1.train.{type(optimizer).__name__}: use the "
            "optimizer of tf.keras.optimizers, or DistributedGradientTape and the optimizer as it is"
        )
    from ringdp import keras

    theirs = {
        NoneCompressor: keras.Compression.none,
        FP16Compressor: keras.Compression.fp16,
        BF16Compressor: keras.Compression.bf16,
    }
    return keras.DistributedOptimizer(
        optimizer,
        name,
        device_dense,
        device_sparse,
        theirs.get(compression, compression),
        sparse_as_dense,
        gradient_predivide_factor,
        op,
        backward_passes_per_step,
        average_aggregated_gradients,
        num_groups,
        groups,
        process_set,
        scale_local_gradients,
    )
