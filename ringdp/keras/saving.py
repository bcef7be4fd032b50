"""Models with their optimizer, from files. Saving is Keras's own: `model.save` writes nothing of ringdp's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from ringdp.errors import UsageError
from ringdp.keras.compression import Compression
from ringdp.keras.optimizer import DistributedOptimizer


def load_model(
    filepath: Any,
    custom_optimizers: Sequence[type] | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    compression: Any = Compression.none,
    legacy_opts: bool = False,
    **options: Any,
) -> Any:
    """`keras.models.load_model`, with the optimizer wrapped by `DistributedOptimizer`; its state is the saved one.

    Args:
        filepath: a .keras or .h5 file that every rank can read.
        custom_optimizers: classes of optimizers that Keras does not know.
        custom_objects: other classes and functions by name.
        compression, options: as for `DistributedOptimizer`.
        legacy_opts: must be False: Keras 3 has no legacy optimizers.

    Returns:
        The model. One that was saved without an optimizer has none.
    """
    if legacy_opts:
        raise UsageError("load_model: Keras 3 has no legacy optimizers")
    names = {kind.__name__: kind for kind in custom_optimizers or ()} | dict(custom_objects or {})
    model = keras.models.load_model(filepath, custom_objects=names)
    if getattr(model, "optimizer", None) is not None:
        DistributedOptimizer(model.optimizer, compression=compression, **options)
    return model
