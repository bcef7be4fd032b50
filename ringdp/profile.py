"""The profile: what the choice of algorithms knows of the machine. csrc/collectives/profile.h says what is in it."""

from __future__ import annotations

from typing import Any


def current() -> Any:
    """The profile that RINGDP_PROFILE names, a built-in one or a file; the core's `Profile`.

    Raises:
        UsageError: it is neither, or the file cannot be understood; names the line and the key.
    """
    from ringdp import _core

    return _core.profile()


def described() -> str:
    """As ranks compare it and logs have it, name and digest: "ethernet-10 (1f2e3d4c5b6a7980)"; or why there is none."""
    try:
        found = current()
    except Exception as error:  # the core does not load, or RINGDP_PROFILE is wrong
        return f"none: {error}"
    return f"{found.name} ({found.digest:016x})"
