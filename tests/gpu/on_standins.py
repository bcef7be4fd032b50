"""The stand-ins for libcuda and libnccl by themselves, without ringdp: their functions, called by ctypes."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_ubyte, c_uint, c_ulonglong, c_void_p
from pathlib import Path

import numpy as np
from standin.build import build

TESTS = Path(__file__).resolve().parent.parent
SUCCESS, INVALID_VALUE, OUT_OF_MEMORY, NOT_FOUND, NOT_READY = 0, 1, 2, 500, 600
INVALID_DEVICE, INVALID_CONTEXT, INVALID_HANDLE, ILLEGAL_STATE, LAUNCH_FAILED = 101, 201, 400, 401, 719
UNSUPPORTED, INVALIDATED, MERGE, UNMATCHED, UNJOINED, ISOLATION, IMPLICIT = range(900, 907)
CAPTURED_EVENT, WRONG_THREAD = 907, 908
GLOBAL, THREAD_LOCAL, RELAXED = range(3)  # modes of captures and of threads
NONE, ACTIVE, INVALID = range(3)  # of a stream: whether it is captured
IN_PROGRESS, UNHANDLED_CUDA_ERROR, SYSTEM_ERROR, INVALID_ARGUMENT, INVALID_USAGE = 7, 1, 2, 4, 5
SUM, PRODUCT, MAX, MIN, AVERAGE = range(5)
TYPES = {
    "int8": 0,
    "uint8": 1,
    "int32": 2,
    "int64": 4,
    "float16": 6,
    "float32": 7,
    "float64": 8,
    "bfloat16": 9,
}
LIMIT = 10.0  # seconds, for what takes milliseconds


def settings(devices: int = 4, **more: str) -> dict[str, str]:
    """The environment that the stand-ins look at."""
    cuda, nccl = build()
    return {
        "RINGDP_CUDA_LIBRARY": str(cuda),
        "RINGDP_NCCL_LIBRARY": str(nccl),
        "RINGDP_STANDIN_DEVICES": str(devices),
        **more,
    }


def process(body: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """`body` in a process of its own."""
    env = {**os.environ, **settings(), "PYTHONPATH": str(TESTS), **environ}
    code = f"from gpu.on_standins import *\n{body}"
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=3 * LIMIT
    )


class UniqueId(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_char * 128)]


class Config(ctypes.Structure):
    _fields_ = [("size", c_size_t), ("magic", c_uint), ("version", c_uint), ("blocking", c_int)]


_CUDA = {
    "cuPointerGetAttribute": (c_void_p, c_int, c_ulonglong),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuDevicePrimaryCtxRetain": (c_void_p, c_int),
    "cuDeviceGetUuid_v2": (c_void_p, c_int),
    "cuMemAlloc_v2": (POINTER(c_ulonglong), c_size_t),
    "cuMemFree_v2": (c_ulonglong,),
    "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cuMemcpyHtoDAsync_v2": (c_ulonglong, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_ulonglong, c_size_t, c_void_p),
    "cuMemcpyDtoDAsync_v2": (c_ulonglong, c_ulonglong, c_size_t, c_void_p),
    "cuMemsetD8Async": (c_ulonglong, c_ubyte, c_size_t, c_void_p),
    "cuStreamCreateWithPriority": (POINTER(c_void_p), c_uint, c_int),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamWaitEvent": (c_void_p, c_void_p, c_uint),
    "cuEventCreate": (POINTER(c_void_p), c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventQuery": (c_void_p,),
    "cuEventSynchronize": (c_void_p,),
    "cuEventElapsedTime": (c_void_p, c_void_p, c_void_p),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuStreamIsCapturing": (c_void_p, POINTER(c_int)),
    "cuStreamGetCaptureInfo_v2": (c_void_p, *5 * (c_void_p,)),
    "cuThreadExchangeStreamCaptureMode": (POINTER(c_int),),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphExecDestroy": (c_void_p,),
    "cuGraphDestroy": (c_void_p,),
    "cuUserObjectCreate": (POINTER(c_void_p), c_void_p, c_void_p, c_uint, c_uint),
    "cuGraphRetainUserObject": (c_void_p, c_void_p, c_uint, c_uint),
    "cuModuleLoadData": (POINTER(c_void_p), c_char_p),
    "cuModuleGetFunction": (POINTER(c_void_p), c_void_p, c_char_p),
    "cuLaunchKernel": (c_void_p, *7 * (c_uint,), c_void_p, POINTER(c_void_p), c_void_p),
    "standin_read": (c_ulonglong, c_void_p, c_size_t),
    "standin_write": (c_ulonglong, c_void_p, c_size_t),
    "standin_hold": (c_void_p,),
    "standin_fail": (c_char_p, c_int, c_int),
    "standin_events_pass": (c_int,),
}
_BUFFERS = (c_void_p, c_void_p, c_size_t, c_int)
_NCCL = {
    "ncclCommInitRankConfig": (c_void_p, c_int, UniqueId, c_int, POINTER(Config)),
    "ncclCommGetAsyncError": (c_void_p, POINTER(c_int)),
    "ncclCommFinalize": (c_void_p,),
    "ncclCommAbort": (c_void_p,),
    "ncclCommDestroy": (c_void_p,),
    "ncclAllReduce": (*_BUFFERS, c_int, c_void_p, c_void_p),
    "ncclReduce": (*_BUFFERS, c_int, c_int, c_void_p, c_void_p),
    "ncclReduceScatter": (*_BUFFERS, c_int, c_void_p, c_void_p),
    "ncclAllGather": (*_BUFFERS, c_void_p, c_void_p),
    "ncclBroadcast": (*_BUFFERS, c_int, c_void_p, c_void_p),
    "ncclSend": (c_void_p, c_size_t, c_int, c_int, c_void_p, c_void_p),
    "ncclRecv": (c_void_p, c_size_t, c_int, c_int, c_void_p, c_void_p),
    "ncclRedOpCreatePreMulSum": (c_void_p, c_void_p, c_int, c_int, c_void_p),
    "ncclRedOpDestroy": (c_int, c_void_p),
}


@functools.cache
def _library(name: str) -> ctypes.CDLL:
    library = ctypes.CDLL(os.environ[name])
    for function, arguments in (_CUDA if "CUDA" in name else _NCCL).items():
        getattr(library, function).argtypes = arguments
    return library


def cuda() -> ctypes.CDLL:
    return _library("RINGDP_CUDA_LIBRARY")


def nccl() -> ctypes.CDLL:
    cuda()
    return _library("RINGDP_NCCL_LIBRARY")


def ok(status: int) -> None:
    assert status == SUCCESS, status


# --- a GPU --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def on(device: int = 0) -> Iterator[None]:
    """Its context is the thread's current one."""
    context = c_void_p()
    ok(cuda().cuDevicePrimaryCtxRetain(byref(context), device))
    ok(cuda().cuCtxPushCurrent_v2(context))
    try:
        yield
    finally:
        ok(cuda().cuCtxPopCurrent_v2(byref(context)))


_here = threading.local()  # taken: what the thread has allocated, where it is to be given back


def allocate(nbytes: int) -> int:
    address = c_ulonglong()
    ok(cuda().cuMemAlloc_v2(byref(address), nbytes))
    if hasattr(_here, "taken"):
        _here.taken.append(address.value)
    return address.value


def put(values: np.ndarray) -> int:
    """New memory of the GPU with them."""
    address = allocate(max(values.nbytes, 1))
    if values.nbytes:
        cuda().standin_write(address, np.ascontiguousarray(values).ctypes.data, values.nbytes)
    return address


def get(address: int, count: int, dtype: object = np.uint8) -> np.ndarray:
    out = np.empty(count, dtype)
    if out.nbytes:
        cuda().standin_read(address, out.ctypes.data, out.nbytes)
    return out


def stream(flags: int = 1) -> int:
    """1: it does not wait for the legacy default stream, nor that one for it."""
    made = c_void_p()
    ok(cuda().cuStreamCreateWithPriority(byref(made), flags, 0))
    return made.value or 0


def event() -> int:
    made = c_void_p()
    ok(cuda().cuEventCreate(byref(made), 2))
    return made.value or 0


def record(marker: int, at: int) -> None:
    ok(cuda().cuEventRecord(marker, at))


def wait(waiting: int, marker: int) -> None:
    ok(cuda().cuStreamWaitEvent(waiting, marker, 0))


def fill(address: int, value: int, nbytes: int, at: int) -> None:
    ok(cuda().cuMemsetD8Async(address, value, nbytes, at))


def kernel(name: str) -> int:
    module, function = c_void_p(), c_void_p()
    ok(cuda().cuModuleLoadData(byref(module), ctypes.c_char_p(b"image")))
    ok(cuda().cuModuleGetFunction(byref(function), module, name.encode()))
    return function.value or 0


def launch(function: int, layout: str, *values: object, at: int, blocks: int = 1) -> int:
    """`layout`: of its parameters, as struct has them."""
    given = ctypes.create_string_buffer(struct.pack(layout, *values))
    parameters = (c_void_p * 1)(ctypes.addressof(given))
    return cuda().cuLaunchKernel(function, blocks, 1, 1, 256, 1, 1, 0, at, parameters, None)


def passed(marker: int) -> bool:
    status = cuda().cuEventQuery(marker)
    assert status in (SUCCESS, NOT_READY), status
    return status == SUCCESS


def mark(at: int) -> int:
    """An event behind all that the stream has been given."""
    made = event()
    record(made, at)
    return made


def finish(at: int) -> None:
    """Wait for a stream, but not for ever."""
    marker = mark(at)
    becomes(lambda: passed(marker), "a stream does not end")


def becomes(true: Callable[[], bool], otherwise: str) -> None:
    end = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < end, otherwise
        time.sleep(1e-5)


def stays_behind(marker: int) -> None:
    """It is not passed, however long one waits."""
    time.sleep(0.02)
    assert not passed(marker)


# --- captures and graphs -------------------------------------------------------------------------------------


def begin(at: int, mode: int = RELAXED) -> None:
    ok(cuda().cuStreamBeginCapture_v2(at, mode))


def end(at: int) -> int:
    """The graph."""
    graph = c_void_p()
    ok(cuda().cuStreamEndCapture(at, byref(graph)))
    return graph.value or 0


def ends_with(at: int) -> int:
    """What a capture that failed ends with."""
    graph = c_void_p(1)
    status = cuda().cuStreamEndCapture(at, byref(graph))
    assert graph.value is None
    return status


def status(at: int) -> int:
    found = c_int()
    ok(cuda().cuStreamIsCapturing(at, byref(found)))
    return found.value


class CaptureInfo:
    """What a stream says of its capture."""

    def __init__(self, at: int) -> None:
        found, number, graph, nodes, count = c_int(), c_ulonglong(), c_void_p(), c_void_p(), c_size_t()
        out = [byref(x) for x in (found, number, graph, nodes, count)]
        ok(cuda().cuStreamGetCaptureInfo_v2(at, *out))
        self.status, self.number, self.graph = found.value, number.value, graph.value
        self.nodes = list((c_void_p * count.value).from_address(nodes.value)) if count.value else []


def instantiate(graph: int) -> int:
    """What can be launched."""
    executable = c_void_p()
    ok(cuda().cuGraphInstantiateWithFlags(byref(executable), graph, 0))
    return executable.value or 0


def captured(at: int, *calls: Callable[[], object], mode: int = RELAXED) -> int:
    """What can be launched of what these give the stream. Its graph is gone."""
    begin(at, mode)
    for call in calls:
        call()
    graph = end(at)
    executable = instantiate(graph)
    ok(cuda().cuGraphDestroy(graph))
    return executable


def replay(executable: int, at: int) -> None:
    ok(cuda().cuGraphLaunch(executable, at))


@contextlib.contextmanager
def mode_of_thread(mode: int) -> Iterator[None]:
    swapped = c_int(mode)
    ok(cuda().cuThreadExchangeStreamCaptureMode(byref(swapped)))
    try:
        yield
    finally:
        ok(cuda().cuThreadExchangeStreamCaptureMode(byref(swapped)))
        assert swapped.value == mode


def pinned(nbytes: int) -> int:
    made = c_void_p()
    ok(cuda().cuMemHostAlloc(byref(made), nbytes, 1))
    return made.value or 0


# --- ranks, each a thread with a GPU of its own -------------------------------------------------------------


def new_id() -> UniqueId:
    made = UniqueId()
    ok(nccl().ncclGetUniqueId(byref(made)))
    return made


class Rank:
    """A communicator on the current GPU."""

    def __init__(self, rank: int, size: int, unique: UniqueId) -> None:
        self.rank, self.size, self.stream, self.handle = rank, size, stream(), c_void_p()
        self.status = nccl().ncclCommInitRankConfig(
            byref(self.handle), size, unique, rank, byref(Config(24, 0xCAFEBEEF, 21400, 0))
        )

    def state(self) -> int:
        state = c_int()
        ok(nccl().ncclCommGetAsyncError(self.handle, byref(state)))
        return state.value

    def settle(self) -> int:
        becomes(lambda: self.state() != IN_PROGRESS, "a call of NCCL does not settle")
        return self.state()

    def call(self, name: str, *arguments: object, at: int | None = None) -> None:
        """Under way when it returns, and settled soon."""
        assert self.start(name, *arguments, at=at) == IN_PROGRESS
        ok(self.settle())

    def start(self, name: str, *arguments: object, at: int | None = None) -> int:
        return getattr(nccl(), name)(*arguments, self.handle, self.stream if at is None else at)

    @contextlib.contextmanager
    def group(self) -> Iterator[None]:
        ok(nccl().ncclGroupStart())
        yield
        assert nccl().ncclGroupEnd() == IN_PROGRESS
        ok(self.settle())

    def factor(self, value: object, dtype: str) -> int:
        """A sum of what is multiplied by it."""
        made, where = c_int(), np.zeros(8, np.uint8)
        raw = np.atleast_1d(value).view(np.uint8)
        where[: raw.size] = raw
        ok(nccl().ncclRedOpCreatePreMulSum(byref(made), where.ctypes.data, TYPES[dtype], 1, self.handle))
        return made.value

    def end(self) -> None:
        assert nccl().ncclCommFinalize(self.handle) == IN_PROGRESS
        ok(self.settle())
        ok(nccl().ncclCommDestroy(self.handle))


def ranks(size: int, body: Callable[[Rank], None], ends: bool = True) -> None:
    """`body` on each of them; raises what the first one raises."""
    unique, errors = new_id(), []

    def one(rank: int) -> None:
        try:
            with on(rank):
                _here.taken = []
                communicator = Rank(rank, size, unique)
                assert communicator.status == IN_PROGRESS
                ok(communicator.settle())
                body(communicator)
                if ends:
                    communicator.end()
                for address in _here.taken:
                    ok(cuda().cuMemFree_v2(address))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(r,), daemon=True) for r in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(0.01 if errors else 3 * LIMIT)  # who waits for one that has failed is left behind
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a rank does not end"
