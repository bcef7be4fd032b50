"""What fails, fails on every rank, with ringdp's text, and the job goes on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from frameworks.jax.helpers import WAYS, raises, same, total, values

import ringdp.jax as hvd

ways = pytest.mark.parametrize("way", WAYS)
LARGE = (400, 500)  # JAX runs it in the background


def works():
    same(hvd.allreduce(jnp.asarray(values((3,))), op=hvd.Sum), total((3,)))
    program = jax.jit(lambda x: hvd.allreduce(x, op=hvd.Sum))
    for shape in ((3,), LARGE):
        same(program(jnp.asarray(values(shape))), total(shape))


@ways
@pytest.mark.shows("mismatch: an error on every rank", "jax", "eager", "compiled")
def test_mismatches(way):
    rank = hvd.rank()
    for shape in ((3 + rank,), (LARGE[0] + rank, LARGE[1])):
        text = raises(hvd.MismatchError, way, lambda x: hvd.allreduce(x * 2), jnp.ones(shape))
        assert all(f"rank {r}: allreduce of float32[{shape[0] - rank + r}" in text for r in range(hvd.size()))
        works()
    text = raises(hvd.MismatchError, way, hvd.allreduce, jnp.ones(3, jnp.float32 if rank else jnp.int32))
    assert "int32[3]" in text and "float32[3]" in text
    op = hvd.Sum if rank else hvd.Max
    text = raises(hvd.MismatchError, way, lambda x: hvd.allreduce(x, op=op, name="ops"), jnp.ones(3))
    assert "'ops'" in text and "op Sum" in text and "op Max" in text
    works()


@ways
def test_other_operations_meet(way):
    """One rank calls another operation."""
    call = hvd.allgather if hvd.rank() == 0 else hvd.allreduce
    text = raises(hvd.MismatchError, way, call, jnp.ones(3))
    assert "allgather of float32" in text and "allreduce of float32" in text
    works()


@ways
def test_a_leaf_differs(way):
    """The text names it."""
    tree = {"layer": {"bias": jnp.ones(4), "kernel": jnp.ones((2, 3 + hvd.rank()))}, "scale": jnp.ones(2)}
    text = raises(hvd.MismatchError, way, hvd.grouped_allreduce, tree)
    assert all(f"rank {r}: ['layer']['kernel']: float32[2, {3 + r}]" in text for r in range(hvd.size()))
    # As many elements, otherwise laid out.
    tree = {"kernel": jnp.ones((6, 2) if hvd.rank() else (2, 6))}
    text = raises(hvd.MismatchError, way, hvd.grouped_allreduce, tree)
    assert "['kernel']: float32[6, 2]" in text and "['kernel']: float32[2, 6]" in text
    tree = {"a": jnp.ones(3), **({"b": jnp.ones(3, jnp.int32)} if hvd.rank() == 0 else {})}
    text = raises(hvd.MismatchError, way, hvd.allreduce_gradients, tree)
    assert "rank 0: ['b']: int32[3]" in text
    tree = {"a": jnp.ones(3)}
    op = hvd.Sum if hvd.rank() else hvd.Average
    text = raises(hvd.MismatchError, way, lambda tree: hvd.grouped_allreduce(tree, op=op), tree)
    assert "op Sum" in text and "op Average" in text
    text = raises(hvd.MismatchError, way, hvd.broadcast_parameters, {"w": jnp.ones((2 + hvd.rank(),))})
    assert "rank 1: ['w']: float32[3]" in text
    works()


def test_rows_that_were_not_compiled_for():
    rows = 2 + hvd.rank()
    text = raises(hvd.MismatchError, "compiled", hvd.allgather, jnp.ones((rows, 2)))
    came = ", ".join(str(2 + r) for r in range(hvd.size()))
    assert f"rows {came} have come from the ranks" in text and "rows=" in text
    with pytest.raises(hvd.UsageError, match="received_splits"):
        jax.jit(lambda x: hvd.alltoall(x, [1] * hvd.size()))(jnp.ones((hvd.size(), 2)))
    with pytest.raises(hvd.UsageError, match="rows says 7"):
        jax.jit(lambda x: hvd.allgather(x, rows=[7] * hvd.size()))(jnp.ones((2, 2)))
    works()


@ways
def test_usage(way):
    run = WAYS[way]
    with pytest.raises(hvd.UsageError, match="at least one dimension"):
        run(hvd.allgather)(jnp.float32(1))
    with pytest.raises(hvd.UsageError, match="root_rank 77"):
        raise hvd.own_error(_error_of(lambda x: hvd.broadcast(x, 77), run)) or AssertionError
    with pytest.raises(hvd.UsageError, match="bool tensors have no average"):
        raise hvd.own_error(_error_of(hvd.allreduce, run, jnp.asarray([True]))) or AssertionError
    with pytest.raises(hvd.UsageError, match="op="):
        run(lambda x: hvd.allreduce(x, average=True, op=hvd.Sum))(jnp.ones(2))
    with pytest.raises(hvd.UsageError, match="Adasum"):
        run(lambda x: hvd.grouped_allreduce([x], op=hvd.Adasum))(jnp.ones(2))
    with pytest.raises(hvd.UsageError, match="compression must have"):
        run(lambda x: hvd.allreduce(x, compression=3))(jnp.ones(2))
    with pytest.raises(TypeError, match="complex64"):
        run(hvd.allreduce)(jnp.ones(2, jnp.complex64))
    with pytest.raises(TypeError, match="uint32"):
        run(hvd.allreduce)(jnp.ones(2, jnp.uint32))
    with pytest.raises(TypeError, match="must be a str"):
        run(lambda x: hvd.allreduce(x, name=3))(jnp.ones(2))
    works()


def _error_of(call, run, x=None):
    """As ringdp's error has it where it is JAX's."""
    try:
        jax.block_until_ready(run(call)(jnp.ones(2) if x is None else x))
    except hvd.RingdpError as error:
        return RuntimeError(f"ringdp.{type(error).__name__}: {error}")
    except jax.errors.JaxRuntimeError as error:
        return error
    raise AssertionError("no error")


def test_nothing_is_written():
    x = jnp.ones(3)
    for call in (lambda: hvd.allreduce_(x), lambda: hvd.broadcast_(x, 0)):
        with pytest.raises(TypeError, match="arrays of JAX cannot be written"):
            call()


def test_errors_as_our_own():
    x = jnp.ones(3 + hvd.rank())
    program = jax.jit(hvd.allreduce)
    with pytest.raises(hvd.MismatchError, match="differs between ranks") as found, hvd.own_errors():
        jax.block_until_ready(program(x))
    assert isinstance(found.value.__cause__, jax.errors.JaxRuntimeError)

    @hvd.own_errors()
    def train():
        return jax.block_until_ready(program(x))

    with pytest.raises(hvd.HorovodInternalError):
        train()
    with pytest.raises(jax.errors.JaxRuntimeError), hvd.own_errors():
        raise jax.errors.JaxRuntimeError("INTERNAL: of somebody else")
    works()


def test_of_another_framework():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"ringdp\.torch"):
        hvd.allreduce(torch.ones(3))


def test_a_failure_in_the_middle_of_a_program():
    """What comes behind it in the program runs on no rank; so the next program meets the next of the others."""
    x = jnp.asarray(values(LARGE))

    def program(x, y):
        a = hvd.allreduce(x, op=hvd.Sum)
        b = hvd.allreduce(y, op=hvd.Sum)  # fails
        return a, b, hvd.allreduce(a + 1, op=hvd.Max)

    for _ in range(3):
        raises(hvd.MismatchError, "compiled", program, x, np.ones(3 + hvd.rank()))
        works()
