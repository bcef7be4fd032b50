"""What happens to a tensor before it goes on the wire. So far: nothing."""

from __future__ import annotations

from typing import Any

import torch

from ringdp.errors import UsageError


class NoneCompressor:
    """Sends a tensor as it is."""

    @staticmethod
    def compress(tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """(the tensor for the wire, what `decompress` needs)."""
        return tensor, None

    @staticmethod
    def decompress(tensor: torch.Tensor, context: Any) -> torch.Tensor:
        """The tensor that came from the wire, as it was before `compress`."""
        return tensor


class Compression:
    """The compressions there are: `Compression.none`."""

    none = NoneCompressor


def refuse_unknown(compression: Any) -> None:
    """Raise UsageError for anything but `Compression.none`."""
    if compression is not NoneCompressor and not isinstance(compression, NoneCompressor):
        name = getattr(compression, "__name__", repr(compression))
        raise UsageError(f"compression {name} is not offered yet; this release has Compression.none alone")
