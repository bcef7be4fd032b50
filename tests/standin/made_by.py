"""Who makes a tensor: modes that put what tests make on a GPU must not do it to what ringdp makes by itself."""

from __future__ import annotations

import sys

BETWEEN = ("torch.", "standin.", "frameworks.torch.on_cuda")


def is_of_ringdp():
    """The caller's caller was called by ringdp."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(BETWEEN):
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__", "").startswith("ringdp.")
