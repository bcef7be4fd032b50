"""Arrays whose exchange is known exactly, and the ways in which an operation is called."""

import jax
import numpy as np

import ringdp.jax as hvd
from ringdp.constants import Dtype

DTYPES = [dtype.name for dtype in Dtype]
NUMBERS = [name for name in DTYPES if name != "bool" and not name.startswith("float8")]


def wide(dtype):
    """Where 64 bits are what they say."""
    return jax.enable_x64(np.dtype(dtype).itemsize == 8)


def values(shape, dtype="float32", rank=None):
    """Small integers that encode rank and index; sums over four ranks fit in every dtype of numbers."""
    rank = hvd.rank() if rank is None else rank
    index = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    return ((index % 5) + 7 * rank).astype(dtype)


def total(shape, dtype="float32", size=None):
    size = hvd.size() if size is None else size
    return sum(values(shape, np.int64, rank) for rank in range(size)).astype(dtype)


def same(got, wanted):
    """Dtype, shape and every bit."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert got.dtype == wanted.dtype and got.shape == wanted.shape, (
        got.dtype,
        got.shape,
        wanted.dtype,
        wanted.shape,
    )
    assert got.tobytes() == wanted.tobytes(), (got, wanted)


def eager(function):
    return function


WAYS = {"eager": eager, "compiled": jax.jit}


def raises(kind, way, call, *args):
    """The text of the error; as ringdp's own outside of jit, and as JAX's inside."""
    import pytest

    if way == "eager":
        with pytest.raises(kind) as found:
            call(*args)
        return str(found.value)
    with pytest.raises(jax.errors.JaxRuntimeError) as found:
        jax.block_until_ready(jax.jit(call)(*args))
    assert f"ringdp.{kind.__name__}: rank {hvd.rank()}" in str(found.value)
    ours = hvd.own_error(found.value)
    assert type(ours) is kind
    return str(ours)
