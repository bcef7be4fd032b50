"""As much of CuPy as the tests use, over the stand-in for libcuda that RINGDP_CUDA_LIBRARY names. No arithmetic.

Memory that is given up goes to a pool of the stream that was current, as CuPy's does, and is poisoned in that stream:
who still uses it in another one reads, or overwrites, the wrong numbers.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import weakref
from types import SimpleNamespace

import numpy as np

from . import cuda
from .driver import call, inside

__all__ = ["array", "asarray", "ascontiguousarray", "cuda", "empty", "ndarray"]

# (device, stream, bytes): addresses. Without a lock: arrays may be given up at any point, by whoever collects garbage.
_pool = {}


class ndarray:
    """Elements on a device."""

    def __init__(self, address, shape, dtype, device, base, strides=None):
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.device = cuda.Device(device)
        self.data = SimpleNamespace(ptr=address)
        self.base = base
        dense = (
            np.empty(self.shape, np.dtype(f"V{self.dtype.itemsize}")).strides if 0 not in self.shape else None
        )
        self.strides = strides or dense
        self.flags = SimpleNamespace(c_contiguous=strides is None or strides == dense)
        self.size = math.prod(self.shape)
        self.nbytes = self.size * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self):
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.data.ptr, False),
            "version": 3,
            "strides": None if self.flags.c_contiguous else self.strides,
            "stream": cuda.get_current_stream().ptr or 1,
        }

    def get(self):
        """A NumPy array of it, when the current stream has come so far."""
        out = np.empty(self.shape, self.dtype)
        if not self.flags.c_contiguous:
            whole = self.base.get().reshape(-1)
            start = (self.data.ptr - self.base.data.ptr) // self.dtype.itemsize
            return np.lib.stride_tricks.as_strided(whole[start:], self.shape, self.strides).copy()
        with inside(self.device.id):
            stream = cuda.get_current_stream().ptr
            if self.nbytes:
                call(
                    "cuMemcpyDtoHAsync_v2",
                    out.ctypes.data_as(ctypes.c_void_p),
                    address(self),
                    size(self),
                    handle(stream),
                )
            call("cuStreamSynchronize", handle(stream))
        return out

    def __getitem__(self, index):
        """A view; of one dimension only."""
        begin, end, step = index.indices(self.shape[0])
        length = len(range(begin, end, step))
        strides = (self.strides[0] * step,)
        at = self.data.ptr + begin * self.strides[0]
        return ndarray(at, (length,), self.dtype, self.device.id, self, None if step == 1 else strides)

    def __setitem__(self, index, other):
        assert index is Ellipsis
        if self.flags.c_contiguous:
            with inside(self.device.id):
                stream = handle(cuda.get_current_stream().ptr)
                call("cuMemcpyDtoDAsync_v2", address(self), address(other), size(self), stream)
            return
        whole = self.base.get()
        start = (self.data.ptr - self.base.data.ptr) // self.dtype.itemsize
        np.lib.stride_tricks.as_strided(whole.reshape(-1)[start:], self.shape, self.strides)[...] = (
            other.get()
        )
        _upload(self.base, whole)


def address(array):
    return ctypes.c_ulonglong(array.data.ptr)


def size(array):
    return ctypes.c_size_t(array.nbytes)


def handle(stream):
    return ctypes.c_void_p(stream)


def _take(device, stream, nbytes):
    with contextlib.suppress(KeyError, IndexError):
        return _pool[device, stream, nbytes].pop()
    place = ctypes.c_ulonglong()
    call("cuMemAlloc_v2", ctypes.byref(place), ctypes.c_size_t(nbytes))
    return place.value


def _give_back(device, stream, nbytes, place):
    with (
        contextlib.suppress(Exception),
        inside(device),
    ):  # at the end of the process there may be nothing left
        if stream and cuda.ExternalStream(stream).is_capturing():
            return  # a graph goes on using it: kept for good, as frameworks keep it for their graphs alone
        call(
            "cuMemsetD8Async",
            ctypes.c_ulonglong(place),
            ctypes.c_ubyte(0xEE),
            ctypes.c_size_t(nbytes),
            handle(stream),
        )
        _pool.setdefault((device, stream, nbytes), []).append(place)


def empty(shape, dtype=float):
    """Anything may be in it."""
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    dtype = np.dtype(dtype)
    nbytes = math.prod(shape) * dtype.itemsize
    device, stream = cuda.current_device(), cuda.get_current_stream().ptr
    if nbytes == 0:
        return ndarray(0, shape, dtype, device, None)
    with inside(device):
        place = _take(device, stream, nbytes)
    made = ndarray(place, shape, dtype, device, None)
    weakref.finalize(made, _give_back, device, stream, nbytes, place)
    return made


def _upload(made, values):
    values = np.ascontiguousarray(values)
    with inside(made.device.id):
        stream = handle(cuda.get_current_stream().ptr)
        if made.nbytes:
            call(
                "cuMemcpyHtoDAsync_v2",
                address(made),
                values.ctypes.data_as(ctypes.c_void_p),
                size(made),
                stream,
            )
        call("cuStreamSynchronize", stream)  # `values` may change from now on


def array(values, order="K"):
    values = np.asarray(values)  # always laid out as C does
    made = empty(values.shape, values.dtype)
    _upload(made, values)
    return made


def asarray(values):
    if isinstance(values, ndarray):
        return values
    told = getattr(values, "__cuda_array_interface__", None)
    if told is None:
        return array(values)
    return ndarray(told["data"][0], told["shape"], told["typestr"], cuda.current_device(), values)


def ascontiguousarray(values):
    return values if values.flags.c_contiguous else array(values.get())
