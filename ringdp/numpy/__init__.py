"""NumPy arrays: all that `ringdp` itself offers at the top level, the same functions.

    import numpy as np
    import ringdp.numpy as rdp

    rdp.init()
    total = rdp.allreduce(x, op=rdp.Sum)          # a new array
    rdp.allreduce(x, op=rdp.Sum, out=y)           # into another one
    rdp.allreduce_(x, op=rdp.Sum)                 # in place

Arrays may have any shape and strides, and the dtypes that `ringdp.constants.Dtype` lists; bfloat16 and the 8-bit floats
are those of ml_dtypes. What is only read may be read-only, and anything that `numpy.asarray` takes.
"""

from typing import TYPE_CHECKING, Any

import ringdp
from ringdp import __all__ as __all__

if TYPE_CHECKING:
    from ringdp import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(ringdp, name)
    raise AttributeError(f"module 'ringdp.numpy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
