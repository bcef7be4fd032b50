"""Devices and streams: current ones for each thread."""

import ctypes
import threading

from .driver import call, inside

_here = threading.local()


def current_device():
    return getattr(_here, "device", 0)


class Device:
    def __init__(self, number=None):
        self.id = current_device() if number is None else number
        self._before = []

    def use(self):
        _here.device = self.id

    def __enter__(self):
        self._before.append(current_device())
        self.use()
        return self

    def __exit__(self, *_):
        _here.device = self._before.pop()


class ExternalStream:
    def __init__(self, ptr):
        self.ptr = ptr

    def __enter__(self):
        streams = _here.__dict__.setdefault("streams", {})
        _here.__dict__.setdefault("before", []).append(streams.get(current_device()))
        streams[current_device()] = self
        return self

    def __exit__(self, *_):
        _here.streams[current_device()] = _here.before.pop()


class Stream(ExternalStream):
    """A new one."""

    def __init__(self):
        made = ctypes.c_void_p()
        with inside(current_device()):
            call("cuStreamCreateWithPriority", ctypes.byref(made), ctypes.c_uint(1), ctypes.c_int(0))
        super().__init__(made.value)

    def synchronize(self):
        with inside(current_device()):
            call("cuStreamSynchronize", ctypes.c_void_p(self.ptr))


def get_current_stream():
    return getattr(_here, "streams", {}).get(current_device()) or ExternalStream(0)
