"""What `import horovod` alone gives."""

from __future__ import annotations

from typing import Any

# The release whose names and signatures are followed: scripts compare it.
__version__ = "0.28.1"
__path__: list[str] = []


def __getattr__(name: str) -> Any:
    if name == "run":
        from ringdp.compat.finder import why_not

        raise AttributeError(why_not("horovod.run"))
    raise AttributeError(f"module 'horovod' (ringdp.compat) has no attribute {name!r}")
