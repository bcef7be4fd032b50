"""One process: what ringdp says of XLA's interface is true, and importing asks for no MPI."""

import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ringdp
import ringdp.jax as hvd
from ringdp.jax.adapter import host_memory, to_jax

ROOT = Path(__file__).resolve().parents[3]


def test_prototypes():
    """csrc/xla/ffi.h beside the header of the jaxlib that is installed."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no compiler")
    include = [f"-I{ROOT / 'csrc'}", f"-I{jax.ffi.include_dir()}"]
    command = [
        compiler,
        "-std=c++17",
        "-fsyntax-only",
        *include,
        str(Path(__file__).with_name("prototypes.cc")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    # It does find what differs.
    wrong = [*command[:-1], "-DXLA_FFI_DataType_S8=XLA_FFI_DataType_S16", command[-1]]
    done = subprocess.run(wrong, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0


def test_names():
    for name in hvd.__all__:
        assert getattr(hvd, name, None) is not None, name
    assert hvd.MismatchError is ringdp.MismatchError and hvd.Sum is ringdp.Sum


def test_importing_touches_no_mpi():
    code = "import ringdp.jax, sys; assert 'mpi4py.MPI' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_large_results_are_not_copied():
    memory = host_memory((1000, 1000), "float32")
    memory[...] = 7
    array = to_jax(memory, jnp.ones(1))
    assert array.unsafe_buffer_pointer() == memory.ctypes.data
    assert np.asarray(array).sum() == 7e6


def test_several_devices():
    code = """
import jax, jax.numpy as jnp
jax.config.update("jax_num_cpu_devices", 2)
import ringdp.jax as hvd
from ringdp.jax.adapter import refuse_elsewhere
from jax.sharding import NamedSharding, PartitionSpec
mesh = jax.make_mesh((2,), ("x",))
spread = jax.device_put(jnp.ones(4), NamedSharding(mesh, PartitionSpec("x")))
try:
    refuse_elsewhere(spread)
except TypeError as error:
    assert "spread over 2 devices" in str(error), error
else:
    raise AssertionError
refuse_elsewhere(jax.device_put(jnp.ones(4), jax.devices()[1]))
from ringdp.jax.primitives import allreduce_p
call = lambda x: allreduce_p.bind(x, names=(), name="jax", process_set=0, rank=-1, ranks=-1, op=1, scale=(1.0, 1.0))
try:
    jax.block_until_ready(jax.jit(call)(spread))
except Exception as error:
    assert "collectives of ringdp" in str(error), error
else:
    raise AssertionError
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def test_before_init():
    """Each call that exchanges something, outside of jit and while a program is traced. What ringdp itself has as well
    is in tests/faults/test_not_initialized.py.
    """
    code = """
import jax, jax.numpy as jnp, optax
import ringdp
import ringdp.jax as hvd
x = jnp.ones(4)
calls = {
    "allreduce": hvd.allreduce, "allgather": hvd.allgather, "reducescatter": hvd.reducescatter,
    "alltoall": hvd.alltoall, "broadcast": lambda x: hvd.broadcast(x, 0), "barrier": lambda x: hvd.barrier(),
    "grouped_allreduce": lambda x: hvd.grouped_allreduce([x]),
    "grouped_allgather": lambda x: hvd.grouped_allgather([x]),
    "grouped_reducescatter": lambda x: hvd.grouped_reducescatter([x]),
    "allreduce_gradients": hvd.allreduce_gradients, "broadcast_parameters": hvd.broadcast_parameters,
    "distributed": lambda x: hvd.distributed(optax.sgd(1.0)).update(x, optax.sgd(1.0).init(x)),
    "value_and_grad": hvd.value_and_grad(jnp.sum),
}
# Refused always; what is told at any time.
others = {"allreduce_", "broadcast_", "Compression", "own_error", "own_errors"}
own = {name for name in hvd.__all__ if getattr(hvd, name) is not getattr(ringdp, name, None)}
assert own == set(calls) | others, own ^ (set(calls) | others)
for call in calls.values():
    for way in (call, jax.jit(call), jax.vmap(call)):
        try:
            way(jnp.ones((4, 4)))
        except hvd.NotInitializedError as error:
            assert "call ringdp.init() first" in str(error), error
        else:
            raise AssertionError(call)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
