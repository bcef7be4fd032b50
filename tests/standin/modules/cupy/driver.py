"""Calls of the driver, each looked at."""

import contextlib
import ctypes
import os

_driver = ctypes.CDLL(os.environ["RINGDP_CUDA_LIBRARY"])
_contexts = {}


def call(name, *arguments):
    status = getattr(_driver, name)(*arguments)
    if status:
        raise RuntimeError(f"{name} gave {status}")


def call_or_not_ready(name, *arguments):
    """False: CUDA_ERROR_NOT_READY."""
    status = getattr(_driver, name)(*arguments)
    if status not in (0, 600):
        raise RuntimeError(f"{name} gave {status}")
    return status == 0


@contextlib.contextmanager
def relaxed():
    """What is asked of the driver is not the business of whatever is captured."""
    mode = ctypes.c_int(2)
    call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
    try:
        yield
    finally:
        call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))


@contextlib.contextmanager
def inside(device):
    """The device's primary context is current."""
    if device not in _contexts:
        context, number = ctypes.c_void_p(), ctypes.c_int()
        call("cuInit", ctypes.c_uint(0))
        call("cuDeviceGet", ctypes.byref(number), ctypes.c_int(device))
        call("cuDevicePrimaryCtxRetain", ctypes.byref(context), number)
        _contexts[device] = context
    call("cuCtxPushCurrent_v2", _contexts[device])
    try:
        yield
    finally:
        call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
