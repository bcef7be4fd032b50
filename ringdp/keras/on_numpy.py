"""Arrays in host memory: one flat exchange of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from ringdp.flat import FlatExchange
from ringdp.keras.exchange import Options

_flat: dict[Options, FlatExchange] = {}  # their memory is kept


def exchange(arrays: Sequence[NDArray[Any]], options: Options, compression: str) -> list[NDArray[Any]]:
    """New arrays, combined over the ranks."""
    if options not in _flat:
        _flat[options] = FlatExchange(
            options.name,
            options.op,
            compression,
            options.process_set,
            gradient_predivide_factor=options.predivide,
        )
    return _flat[options](arrays)
