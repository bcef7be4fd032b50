"""Launches of the kernels by the core, over the stand-in for libcuda: the right kernel with the right parameters, in
the stream and on the GPU that were named; and what is refused before a GPU stops at it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ringdp import _core

TESTS = Path(__file__).resolve().parent.parent
BEGIN = """
import ctypes
import numpy as np
import standin
standin.use(devices=2, delay_us=2000)
import cupy
from ringdp import _core
from unit.test_kernels import BITS, DTYPES, FLOATS, NAN, assert_same_bits, reduce, scale, divide
from gpu.test_kernels import array
from gpu.test_pack import CASTS, expected

k = _core.gpu.kernels
NUMBER = {d: i for i, d in enumerate(DTYPES)}

def on_gpu(values):
    return cupy.array(values)

def stream():
    return cupy.cuda.get_current_stream().ptr

def gpu():
    return cupy.cuda.Device().id
"""

if not _core.gpu.kernels.built():
    pytest.skip("there was no nvcc when ringdp was built (RINGDP_NVCC names one)", allow_module_level=True)


def run(body: str, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(TESTS), **environ}
    code = BEGIN + textwrap.dedent(body)
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)


def works(body: str, **environ: str) -> None:
    done = run(body, **environ)
    assert done.returncode == 0, done.stderr


def says(body: str, *what: str, **environ: str) -> None:
    done = run(body, **environ)
    assert done.returncode == 1, done.stderr
    for words in what:
        assert words in done.stderr, done.stderr


def test_elementwise() -> None:
    works("""
        for device in (0, 1):
            with cupy.cuda.Device(device), cupy.cuda.Stream():
                for d in DTYPES:
                    a, b = array(d, 9_999, 1), array(d, 9_999, 2)
                    at_a, at_b, to = on_gpu(a), on_gpu(b), cupy.empty(a.size, a.dtype)
                    for op, name in enumerate(("Average", "Sum", "Min", "Max", "Product")):
                        if d == "bool" and name == "Average":
                            continue
                        k.reduce(gpu(), stream(), NUMBER[d], op, to.data.ptr, at_a.data.ptr, at_b.data.ptr, a.size)
                        assert_same_bits(d, to.get(), reduce(d, name, a, b))
                    if d == "bool":
                        continue
                    k.scale(gpu(), stream(), NUMBER[d], to.data.ptr, at_a.data.ptr, -3.0, a.size)
                    assert_same_bits(d, to.get(), scale(d, a, -3.0))
                    k.divide(gpu(), stream(), NUMBER[d], to.data.ptr, at_a.data.ptr, 7, a.size)
                    assert_same_bits(d, to.get(), divide(d, a, 7))
    """)


def test_pack_and_unpack() -> None:
    works("""
        with cupy.cuda.Device(1), cupy.cuda.Stream():
            for source, target in [(d, d) for d in DTYPES] + CASTS:
                factor = 1.0 if source == "bool" else 0.5
                values = [array(source, n, n) for n in (5000, 0, 1, 4097)]
                firsts = [4, 5004, 5004, 5010]
                there = [on_gpu(v) for v in values]
                rows, entries, tiles = k.table(
                    NUMBER[source], [(t.data.ptr, t.size, f) for t, f in zip(there, firsts)]
                )
                assert (entries, tiles) == (3, 5)
                table = on_gpu(np.frombuffer(rows, np.uint64))
                bucket = on_gpu(np.full(9200, 7, expected(source, target, values[0], factor).dtype))
                at = (table.data.ptr, entries, tiles)
                flag = on_gpu(np.zeros(1, np.uint32))
                k.pack(gpu(), stream(), NUMBER[source], NUMBER[target], at, bucket.data.ptr, factor, flag.data.ptr)
                got = bucket.get()
                assert flag.get()[0] == (source in FLOATS)  # the patterns have infinities
                for v, first in zip(values, firsts):
                    assert_same_bits(target, got[first:first + v.size], expected(source, target, v, factor))
                    got[first:first + v.size] = 7
                assert (got == 7).all()
                # And back, by the same table, from a bucket of other values.
                if source == target:
                    other = array(source, 9200, 3)
                    bucket = on_gpu(other)
                    k.unpack(gpu(), stream(), NUMBER[source], NUMBER[target], at, bucket.data.ptr, factor)
                    for t, first in zip(there, firsts):
                        wanted = expected(source, source, other[first:first + t.size], factor)
                        assert_same_bits(source, t.get(), wanted)
    """)


def test_unpack_casts() -> None:
    works("""
        with cupy.cuda.Stream():
            for source, target in CASTS:
                values = array(source, 6000)
                bucket, to = on_gpu(values), cupy.empty(5000, expected(source, target, values, 1.0).dtype)
                rows, entries, tiles = k.table(NUMBER[target], [(to.data.ptr, to.size, 1000)])
                table = on_gpu(np.frombuffer(rows, np.uint64))
                at = (table.data.ptr, entries, tiles)
                k.unpack(gpu(), stream(), NUMBER[source], NUMBER[target], at, bucket.data.ptr, 3.0)
                assert_same_bits(target, to.get(), expected(source, target, values[1000:], 3.0))
    """)


def test_finite_and_int8() -> None:
    works("""
        with cupy.cuda.Stream():
            for d in FLOATS:
                bits = np.ones(70_000, BITS[d])
                for bad in (0, 1):
                    flag = on_gpu(np.zeros(1, np.uint32))
                    bits[69_000] = NAN[d] if bad else 1
                    there = on_gpu(bits)
                    k.finite(gpu(), stream(), NUMBER[d], there.data.ptr, bits.size, flag.data.ptr)
                    assert flag.get()[0] == bad
            x = (np.arange(100_000) % 255 - 127).astype(np.float32)
            for block in (255, 256):
                blocks = -(-x.size // block)
                there, wire = on_gpu(x), cupy.empty(blocks * (block + 4), np.uint8)
                back = cupy.empty(x.size, np.float32)
                k.quantise(gpu(), stream(), wire.data.ptr, there.data.ptr, x.size, block)
                k.dequantise(gpu(), stream(), back.data.ptr, wire.data.ptr, x.size, block)
                assert (back.get() == x).all()  # scales of 1
    """)


def test_no_elements_are_no_launch() -> None:
    works("""
        with cupy.cuda.Stream():
            x = cupy.empty(1, np.float32).data.ptr
            f = NUMBER["float32"]
            k.scale(gpu(), stream(), f, x, x, 2.0, 0)
            k.divide(gpu(), stream(), f, x, x, 2, 0)
            k.reduce(gpu(), stream(), f, 1, x, x, x, 0)
            k.quantise(gpu(), stream(), x, x, 0, 256)
            k.pack(gpu(), stream(), f, f, (x, 0, 0), x, 1.0)
            library = ctypes.CDLL(standin.build()[0])
            assert library.standin_calls(b"cuLaunchKernel") == 0
            k.scale(gpu(), stream(), f, x, x, 2.0, 1)
            assert library.standin_calls(b"cuLaunchKernel") == 1
    """)


# --- what goes wrong ----------------------------------------------------------------------------------------------

ONE = """
held = cupy.empty(16, np.float32)
x = held.data.ptr
with cupy.cuda.Stream():
    """


def test_an_old_driver_gets_ptx() -> None:
    """It refuses the machine code, as one that does not know its form."""
    works(ONE + "assert k.kind(0) == 'PTX', k.kind(0)", RINGDP_STANDIN_FAIL="cuModuleLoadData:1:200")
    works(ONE + "assert k.kind(0) == 'machine code', k.kind(0)")


@pytest.mark.parametrize("call", ["cuModuleGetFunction", "cuLaunchKernel"])
def test_a_status_names_the_kernel(call: str) -> None:
    body = ONE + "k.scale(gpu(), stream(), NUMBER['float32'], x, x, 2.0, 16)"
    says(body, "GpuError", "GPU 0", f"{call} (ringdp_scale_float32)", RINGDP_STANDIN_FAIL=f"{call}:1:700")


REFUSED = """
    NO_ADDRESS = "need an address that"
    for launch, error, why in [
        ("scale('float32', x, x + 2, 2.0, 3)", "UsageError", NO_ADDRESS),
        ("reduce('float64', 1, x + 4, x, x, 1)", "UsageError", NO_ADDRESS),
        ("finite('float32', x, 3, x + 1)", "UsageError", NO_ADDRESS),
        ("pack('int64', 'int64', (x, 1, 1), x + 4, 1.0)", "UsageError", NO_ADDRESS),
        ("pack('int64', 'int64', (x + 4, 1, 1), x, 1.0)", "UsageError", NO_ADDRESS),
        ("scale('bool', x, x, 2.0, 3)", "RingdpError", "bool cannot be scaled"),
        ("divide('bool', x, x, 2, 3)", "RingdpError", "bool has no average"),
        ("divide('int8', x, x, 0, 3)", "RingdpError", "0 ranks"),
        ("reduce('int8', 5, x, x, x, 3)", "RingdpError", "Adasum does not look"),
        ("reduce('bool', 0, x, x, x, 3)", "RingdpError", "bool has no Average"),
        ("finite('int8', x, 3, x)", "RingdpError", "int8 is always finite"),
        ("quantise(x, x, 3, 0)", "RingdpError", "blocks of no elements"),
        ("dequantise(x, x, 3, 0)", "RingdpError", "blocks of no elements"),
        ("pack('bool', 'bool', (x, 1, 1), x, 2.0)", "RingdpError", "bool cannot be scaled"),
        ("pack('float32', 'float64', (x, 1, 1), x, 1.0)", "RingdpError", "is not cast to"),
        ("unpack('int8', 'float16', (x, 1, 1), x, 1.0)", "RingdpError", "is not cast to"),
    ]:
        for d in DTYPES:
            launch = launch.replace(f"'{d}'", str(NUMBER[d]))
        try:
            eval("k." + launch.replace("(", "(0, stream(), ", 1))
        except ringdp.RingdpError as e:
            assert type(e).__name__ == error and why in str(e), (launch, e)
        else:
            raise AssertionError(launch)
    try:
        k.table(NUMBER["float16"], [(x + 1, 1, 0)])
    except ringdp.UsageError as e:
        assert NO_ADDRESS in str(e)
    else:
        raise AssertionError("table")
    assert ctypes.CDLL(standin.build()[0]).standin_calls(b"cuLaunchKernel") == 0
"""


def test_what_no_kernel_does_is_refused() -> None:
    works("import ringdp" + ONE.rstrip(" ").removesuffix("\n") + REFUSED)
