"""Devices and streams: current ones for each thread."""

import contextlib
import ctypes
import threading
from types import SimpleNamespace

from . import runtime
from .driver import call, call_or_not_ready, inside

__all__ = [
    "Device",
    "Event",
    "ExternalStream",
    "Stream",
    "alloc_pinned_memory",
    "get_current_stream",
    "get_elapsed_time",
    "set_allocator",
    "runtime",
]

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

    def synchronize(self):
        with inside(current_device()):
            call("cuStreamSynchronize", ctypes.c_void_p(self.ptr))

    def wait_event(self, event):
        with inside(current_device()):
            call("cuStreamWaitEvent", ctypes.c_void_p(self.ptr), event.handle, ctypes.c_uint(0))

    def begin_capture(self, mode=None):
        mode = runtime.streamCaptureModeRelaxed if mode is None else mode
        with inside(current_device()):
            call("cuStreamBeginCapture_v2", ctypes.c_void_p(self.ptr), ctypes.c_int(mode))

    def is_capturing(self):
        status = ctypes.c_int()
        with inside(current_device()):
            call("cuStreamIsCapturing", ctypes.c_void_p(self.ptr), ctypes.byref(status))
        return status.value != 0

    def end_capture(self):
        graph = ctypes.c_void_p()
        with inside(current_device()):
            call("cuStreamEndCapture", ctypes.c_void_p(self.ptr), ctypes.byref(graph))
        return Graph(graph)


class Graph:
    """What a stream has captured, ready to be launched."""

    def __init__(self, graph):
        self._graph, self._executable = graph, ctypes.c_void_p()
        with inside(current_device()):
            call("cuGraphInstantiateWithFlags", ctypes.byref(self._executable), graph, ctypes.c_ulonglong(0))

    def launch(self, stream=None):
        with inside(current_device()):
            call("cuGraphLaunch", self._executable, ctypes.c_void_p((stream or get_current_stream()).ptr))

    def upload(self, stream=None):
        """Nothing here makes the first launch slower than others."""

    def __del__(self):
        with contextlib.suppress(Exception):  # at the end of the process there may be nothing left
            if self._executable:
                call("cuGraphExecDestroy", self._executable)
            call("cuGraphDestroy", self._graph)


class Stream(ExternalStream):
    """A new one."""

    def __init__(self, non_blocking=False):
        made = ctypes.c_void_p()
        with inside(current_device()):
            call("cuStreamCreateWithPriority", ctypes.byref(made), ctypes.c_uint(1), ctypes.c_int(0))
        super().__init__(made.value)


def get_current_stream():
    return getattr(_here, "streams", {}).get(current_device()) or ExternalStream(0)


class Event:
    """With a time."""

    def __init__(self):
        self.handle = ctypes.c_void_p()
        with inside(current_device()):
            call("cuEventCreate", ctypes.byref(self.handle), ctypes.c_uint(0))

    def record(self, stream=None):
        with inside(current_device()):
            call("cuEventRecord", self.handle, ctypes.c_void_p((stream or get_current_stream()).ptr))

    def synchronize(self):
        call("cuEventSynchronize", self.handle)

    def query(self):
        """It has come so far."""
        with inside(current_device()):
            return call_or_not_ready("cuEventQuery", self.handle)


def get_elapsed_time(start_event, end_event):
    """Milliseconds."""
    time = ctypes.c_float()
    call("cuEventElapsedTime", ctypes.byref(time), start_event.handle, end_event.handle)
    return time.value


def alloc_pinned_memory(size):
    """Kept for good."""
    place = ctypes.c_void_p()
    with inside(current_device()):
        call("cuMemHostAlloc", ctypes.byref(place), ctypes.c_size_t(size), ctypes.c_uint(0))
    return SimpleNamespace(ptr=place.value)


def set_allocator(allocator):
    """There is but one way to allocate, and it gives as much as was asked for."""
    assert allocator is None
