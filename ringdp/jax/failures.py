"""ringdp's own errors, where JAX raises its own: a compiled program fails by JaxRuntimeError, with our text."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from jax.errors import JaxRuntimeError

from ringdp import errors

# As the core writes it (csrc/xla/handlers.cc), behind XLA's name for the kind of error.
_OURS = re.compile(r"ringdp\.(\w+): (.*)", re.DOTALL)


def own_error(error: BaseException) -> errors.RingdpError | None:
    """The error of ringdp that an error of JAX tells of; None if it tells of another one."""
    found = _OURS.search(str(error))
    kind = getattr(errors, found[1], None) if found else None
    if found is None or not (isinstance(kind, type) and issubclass(kind, errors.RingdpError)):
        return None
    return kind(found[2])


@contextlib.contextmanager
def own_errors() -> Iterator[None]:
    """Inside, what fails in a compiled program is raised as ringdp's own error, as outside of `jit`: MismatchError,
    PeerError, … The JaxRuntimeError is its `__cause__`. Also a decorator, as for functions given to `elastic.run`.

    JAX runs compiled programs in the background: wait for the results inside, by `jax.block_until_ready()`, or read
    them.
    """
    try:
        yield
    except JaxRuntimeError as error:
        ours = own_error(error)
        if ours is None:
            raise
        raise ours from error
