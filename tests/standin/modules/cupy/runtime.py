"""As much of the CUDA runtime, which is CuPy's to bind, as the tests ask for."""

import ctypes

from .driver import call, inside

streamCaptureModeGlobal, streamCaptureModeThreadLocal, streamCaptureModeRelaxed = 0, 1, 2
memcpyHostToDevice, memcpyDeviceToHost, memcpyDeviceToDevice = 1, 2, 3


def getDeviceCount():
    count = ctypes.c_int()
    call("cuInit", ctypes.c_uint(0))
    call("cuDeviceGetCount", ctypes.byref(count))
    return count.value


def getDeviceProperties(device):
    name = ctypes.create_string_buffer(100)
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    with inside(device):
        call("cuDeviceGetName", name, ctypes.c_int(100), ctypes.c_int(device))
        call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return {"name": name.value, "major": 0, "minor": 0, "totalGlobalMem": total.value}


def memcpyAsync(dst, src, size, kind, stream):
    from .cuda import current_device

    name = {1: "cuMemcpyHtoDAsync_v2", 2: "cuMemcpyDtoHAsync_v2", 3: "cuMemcpyDtoDAsync_v2"}[kind]
    address = {1: ctypes.c_void_p, 2: ctypes.c_ulonglong, 3: ctypes.c_ulonglong}[kind]
    target = {1: ctypes.c_ulonglong, 2: ctypes.c_void_p, 3: ctypes.c_ulonglong}[kind]
    with inside(current_device()):
        call(name, target(dst), address(src), ctypes.c_size_t(size), ctypes.c_void_p(stream))


def memcpyPeerAsync(dst, dstDevice, src, srcDevice, size, stream):
    memcpyAsync(dst, src, size, memcpyDeviceToDevice, stream)


def memGetInfo():
    from .cuda import current_device

    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    with inside(current_device()):
        call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return free.value, total.value
