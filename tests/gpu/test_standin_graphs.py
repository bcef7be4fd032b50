"""Captures and graphs of the stand-ins: they record, replay and refuse what CUDA does, and NCCL in them."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from ctypes import byref, c_int, c_ulonglong, c_void_p

import numpy as np
import pytest
from gpu import on_standins
from gpu.on_standins import (
    DESTROY,
    IN_PROGRESS,
    INVALID_HANDLE,
    SUCCESS,
    SUM,
    TYPES,
    Rank,
    allocate,
    cuda,
    event,
    fill,
    finish,
    get,
    kernel,
    launch,
    nccl,
    ok,
    on,
    process,
    put,
    ranks,
    record,
    stream,
    wait,
)

GLOBAL, THREAD_LOCAL, RELAXED = range(3)
NONE, ACTIVE, INVALID = range(3)
UNSUPPORTED, INVALIDATED, MERGE, UNMATCHED, UNJOINED, ISOLATION = range(900, 906)
CAPTURED_EVENT, WRONG_THREAD, LAUNCH_FAILED = 907, 908, 719
LEGACY = 1


@pytest.fixture(autouse=True)
def _device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in on_standins.settings().items():
        monkeypatch.setenv(name, value)
    with on(0):
        yield


class Graph:
    """What was captured, ready to be launched."""

    def __init__(self, graph: c_void_p) -> None:
        self.graph, self.executable = graph, c_void_p()
        ok(cuda().cuGraphInstantiateWithFlags(byref(self.executable), graph, 0))

    def launch(self, at: int) -> None:
        ok(cuda().cuGraphLaunch(self.executable, at))

    def destroy(self) -> None:
        ok(cuda().cuGraphExecDestroy(self.executable))
        ok(cuda().cuGraphDestroy(self.graph))


def begin(at: int, how: int = GLOBAL) -> None:
    ok(cuda().cuStreamBeginCapture_v2(at, how))


def end(at: int) -> Graph:
    graph = c_void_p()
    ok(cuda().cuStreamEndCapture(at, byref(graph)))
    return Graph(graph)


def ends_with(error: int, at: int) -> None:
    graph = c_void_p(1)
    assert cuda().cuStreamEndCapture(at, byref(graph)) == error
    assert not graph.value and state(at) == NONE


def state(at: int) -> int:
    found = c_int(-1)
    ok(cuda().cuStreamIsCapturing(at, byref(found)))
    return found.value


@contextlib.contextmanager
def mode(how: int) -> Iterator[None]:
    before = c_int(how)
    ok(cuda().cuThreadExchangeStreamCaptureMode(byref(before)))
    try:
        yield
    finally:
        ok(cuda().cuThreadExchangeStreamCaptureMode(byref(before)))


def elsewhere(body: Callable[[], object]) -> object:
    """In a thread of its own."""
    got: list[object] = []

    def run() -> None:
        with on(0):
            got.append(body())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(on_standins.LIMIT)
    return got[0]


# --- what is captured, and what launches do -----------------------------------------------------------------


def test_nothing_is_done_before_a_launch_and_all_by_each() -> None:
    source, target, one = allocate(100), allocate(100), stream()
    fill(target, 0, 100, one)
    finish(one)
    begin(one)
    assert state(one) == ACTIVE
    ok(cuda().cuMemcpyDtoDAsync_v2(target, source, 100, one))
    graph = end(one)
    assert state(one) == NONE
    for value in (1, 2, 3):
        assert not (get(target, 100) == value).any()
        fill(source, value, 100, one)
        graph.launch(one)
        finish(one)
        assert (get(target, 100) == value).all()
    graph.destroy()


def test_kernels_have_what_they_were_given_when_captured() -> None:
    values, one = put(np.ones(10, np.float32)), stream()
    function = kernel("ringdp_scale_float32")
    begin(one)
    ok(launch(function, "QQQd", values, values, 10, 3.0, at=one))
    graph = end(one)
    for power in (1, 2, 3):
        graph.launch(one)
        finish(one)
        assert (get(values, 10, np.float32) == 3.0**power).all()


def test_a_stream_that_waits_for_a_captured_event_joins() -> None:
    first, second, memory, marker, done = stream(), stream(), allocate(10), event(), event()
    begin(first)
    record(marker, first)
    wait(second, marker)
    assert state(second) == ACTIVE
    fill(memory, 5, 10, second)
    record(done, second)
    wait(first, done)
    graph = end(first)
    assert state(second) == NONE
    graph.launch(first)
    finish(first)
    assert (get(memory, 10) == 5).all()


def test_branches_of_a_graph_overtake_one_another_but_for_what_they_wait_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = """
from gpu.test_standin_graphs import *
with on(0):
    first, second = stream(), stream()
    apart, after, source = allocate(1), allocate(1), allocate(1)
    fill(source, 0, 1, first)
    finish(first)
    markers = [event() for _ in range(3)]
    begin(first)
    record(markers[0], first)
    wait(second, markers[0])
    for _ in range(6):
        fill(source, 1, 1, first)
    ok(cuda().cuMemcpyDtoDAsync_v2(apart, source, 1, second))  # beside the fills
    record(markers[1], first)
    wait(second, markers[1])
    ok(cuda().cuMemcpyDtoDAsync_v2(after, source, 1, second))  # behind them
    record(markers[2], second)
    wait(first, markers[2])
    graph = end(first)
    seen = set()
    for _ in range(60):
        fill(source, 0, 1, first)
        graph.launch(first)
        finish(first)
        seen.add(int(get(apart, 1)[0]))
        assert get(after, 1)[0] == 1
    print(sorted(seen))
"""
    done = process(body, RINGDP_STANDIN_DELAY_US="300")
    assert done.returncode == 0 and "[0, 1]" in done.stdout, done.stderr


def test_launches_come_behind_the_stream_and_before_what_it_is_given_later() -> None:
    memory, one, other = allocate(10), stream(), stream()
    begin(one)
    fill(memory, 2, 10, one)
    graph = end(one)
    held = cuda().standin_hold(other)
    fill(memory, 1, 10, other)
    graph.launch(other)
    fill(memory, 3, 10, other)
    time.sleep(0.01)
    assert (get(memory, 10) == 0xCD).all()
    cuda().standin_release(held)
    finish(other)
    assert (get(memory, 10) == 3).all()


def test_capture_info() -> None:
    one, number, again, graph = stream(), c_ulonglong(), c_ulonglong(), c_void_p()
    found = c_int(-1)
    ok(cuda().cuStreamGetCaptureInfo_v2(one, byref(found), None, None, None, None))
    assert found.value == NONE
    for id_of in (number, again):
        begin(one)
        ok(cuda().cuStreamGetCaptureInfo_v2(one, byref(found), byref(id_of), byref(graph), None, None))
        assert found.value == ACTIVE and graph.value
        end(one)
    assert 0 < number.value < again.value


# --- user objects -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["executable first", "graph first"])
def test_a_user_object_lives_as_long_as_graph_and_executables(order: str) -> None:
    gone: list[int] = []
    destroy = DESTROY(gone.append)
    one, captured, held = stream(), c_void_p(), c_void_p()
    begin(one)
    found = c_int()
    ok(cuda().cuStreamGetCaptureInfo_v2(one, byref(found), None, byref(captured), None, None))
    ok(cuda().cuUserObjectCreate(byref(held), 7, destroy, 1, 1))
    ok(cuda().cuGraphRetainUserObject(captured, held, 1, 1))
    graph = end(one)
    second = Graph(graph.graph)
    ends = [
        lambda: ok(cuda().cuGraphExecDestroy(graph.executable)),
        lambda: ok(cuda().cuGraphDestroy(graph.graph)),
    ]
    for act in ends if order == "executable first" else ends[::-1]:
        act()
        assert not gone
    ok(cuda().cuGraphExecDestroy(second.executable))
    assert gone == [7]


def test_an_invalid_capture_gives_its_user_objects_up() -> None:
    gone: list[int] = []
    destroy = DESTROY(gone.append)
    one, captured, held, found = stream(), c_void_p(), c_void_p(), c_int()
    begin(one)
    ok(cuda().cuStreamGetCaptureInfo_v2(one, byref(found), None, byref(captured), None, None))
    ok(cuda().cuUserObjectCreate(byref(held), 7, destroy, 1, 1))
    ok(cuda().cuGraphRetainUserObject(captured, held, 1, 1))
    assert cuda().cuStreamSynchronize(one) == UNSUPPORTED
    ends_with(INVALIDATED, one)
    assert gone == [7]


def test_who_destroys_a_user_object_may_ask_nothing_of_cuda() -> None:
    body = """
from gpu.test_standin_graphs import *
with on(0):
    destroy = DESTROY(lambda _: event())
    one, captured, held, found = stream(), c_void_p(), c_void_p(), c_int()
    begin(one)
    ok(cuda().cuStreamGetCaptureInfo_v2(one, byref(found), None, byref(captured), None, None))
    ok(cuda().cuUserObjectCreate(byref(held), 7, destroy, 1, 1))
    ok(cuda().cuGraphRetainUserObject(captured, held, 1, 1))
    end(one).destroy()
"""
    assert "stand-in: cuEventCreate where a user object is destroyed" in process(body).stderr


# --- what CUDA forbids --------------------------------------------------------------------------------------


def test_events_in_and_out_of_captures() -> None:
    one, other, third, outside, inside = stream(), stream(), stream(), event(), event()
    record(outside, one)
    begin(one)
    assert cuda().cuStreamWaitEvent(one, outside, 0) == ISOLATION
    ends_with(INVALIDATED, one)
    begin(one)
    record(inside, one)
    assert cuda().cuEventSynchronize(inside) == UNSUPPORTED  # whatever the event, it is unsafe now
    with mode(RELAXED):
        assert cuda().cuEventQuery(inside) == CAPTURED_EVENT
        assert cuda().cuEventSynchronize(inside) == CAPTURED_EVENT
    ends_with(INVALIDATED, one)
    begin(one)
    record(inside, one)
    begin(other)
    assert cuda().cuStreamWaitEvent(other, inside, 0) == MERGE
    ends_with(INVALIDATED, one)
    ends_with(INVALIDATED, other)
    begin(one)
    record(inside, one)
    end(one)
    assert cuda().cuStreamWaitEvent(third, inside, 0) == ISOLATION  # its capture is over
    record(inside, one)  # an ordinary one again
    wait(third, inside)
    finish(third)


def test_ends_that_are_none() -> None:
    one, other, marker, memory = stream(), stream(), event(), allocate(10)
    assert cuda().cuStreamEndCapture(one, byref(c_void_p())) == UNMATCHED
    assert cuda().cuStreamBeginCapture_v2(LEGACY, GLOBAL) == UNSUPPORTED
    begin(one)
    record(marker, one)
    wait(other, marker)
    assert cuda().cuStreamEndCapture(other, byref(c_void_p())) == UNMATCHED
    fill(memory, 1, 10, other)
    ends_with(UNJOINED, one)
    assert state(other) == NONE
    begin(one)
    assert elsewhere(lambda: cuda().cuStreamEndCapture(one, byref(c_void_p()))) == WRONG_THREAD
    end(one)
    begin(one, RELAXED)
    assert elsewhere(lambda: cuda().cuStreamEndCapture(one, byref(c_void_p()))) == SUCCESS
    assert cuda().cuGraphLaunch(c_void_p(5), one) == INVALID_HANDLE


UNSAFE = {
    "cuMemAlloc": lambda: cuda().cuMemAlloc_v2(byref(c_ulonglong()), 100),
    "cuMemHostAlloc": lambda: cuda().cuMemHostAlloc(byref(c_void_p()), 100, 1),
    "cuEventQuery": lambda: cuda().cuEventQuery(event()),
    "cuStreamSynchronize": lambda: cuda().cuStreamSynchronize(stream()),
    "cuModuleLoadData": lambda: cuda().cuModuleLoadData(byref(c_void_p()), ctypes.c_char_p(b"image")),
}


@pytest.mark.parametrize("call", UNSAFE)
@pytest.mark.parametrize(
    "captures", [GLOBAL, THREAD_LOCAL, RELAXED], ids=["global", "thread-local", "relaxed"]
)
@pytest.mark.parametrize("asks", [GLOBAL, THREAD_LOCAL, RELAXED], ids=["global", "thread-local", "relaxed"])
@pytest.mark.parametrize("own", [True, False], ids=["the same thread", "another thread"])
def test_what_may_disturb_a_capture(call: str, captures: int, asks: int, own: bool) -> None:
    one = stream()
    begin(one, captures)

    def ask() -> int:
        with mode(asks):
            return UNSAFE[call]()

    forbidden = asks != RELAXED and captures != RELAXED and (own or asks == captures == GLOBAL)
    assert (ask() if own else elsewhere(ask)) == (UNSUPPORTED if forbidden else SUCCESS)
    assert state(one) == (INVALID if forbidden else ACTIVE)
    if forbidden:
        ends_with(INVALIDATED, one)
    else:
        end(one)


# --- NCCL ---------------------------------------------------------------------------------------------------


def reduce_in_graph(r: Rank, values: int, at: int) -> Graph:
    begin(at, THREAD_LOCAL)
    with mode(RELAXED):
        r.call("ncclAllReduce", values, values, 100, TYPES["float32"], SUM, at=at)
    return end(at)


def test_nccl_in_a_graph() -> None:
    def body(r: Rank) -> None:
        values, one = put(np.full(100, r.rank + 1, np.float32)), stream()
        graph = reduce_in_graph(r, values, one)
        for times in range(1, 4):
            graph.launch(one)
            finish(one)
            assert (get(values, 100, np.float32) == 6 * 3 ** (times - 1)).all()
        assert nccl().ncclCommFinalize(r.handle) == IN_PROGRESS
        time.sleep(0.02)
        assert r.state() == IN_PROGRESS  # graphs refer to it
        graph.destroy()
        ok(r.settle())
        ok(nccl().ncclCommDestroy(r.handle))

    ranks(3, body, ends=False)


@pytest.mark.parametrize("call", ["ncclCommAbort", "ncclCommDestroy"])
def test_nccl_would_wait_for_graphs(call: str) -> None:
    code = f"""
from gpu.test_standin_graphs import *
def body(r):
    graph = reduce_in_graph(r, put(np.ones(100, np.float32)), stream())
    nccl().{call}(r.handle)
ranks(1, body, ends=False)
"""
    assert f"stand-in: {call} would wait for the graphs that refer to it" in process(code).stderr


def test_a_capture_that_ends_before_nccl_is_done() -> None:
    code = """
from gpu.test_standin_graphs import *
def body(r):
    values, one = put(np.ones(100, np.float32)), stream()
    for _ in range(200):
        begin(one, THREAD_LOCAL)
        r.start("ncclAllReduce", values, values, 100, TYPES["float32"], SUM, at=one)
        end(one)
        r.settle()
ranks(1, body, ends=False)
"""
    assert "stand-in: the capture ended while a call of NCCL was under way" in process(code).stderr


# --- a kernel that stops the GPU ----------------------------------------------------------------------------


def test_a_trap_ends_everything() -> None:
    code = """
from gpu.test_standin_graphs import *
def body(r):
    values, one, other = put(np.ones(100, np.float32)), stream(), stream()
    if r.rank == 0:
        r.call("ncclAllReduce", values, values, 100, TYPES["float32"], SUM)  # for which nobody comes
        ok(launch(kernel("ringdp_stop"), "Q", 0, at=other))
        end_of_wait = time.monotonic() + LIMIT
        while cuda().cuEventCreate(byref(c_void_p()), 2) != LAUNCH_FAILED:
            assert time.monotonic() < end_of_wait
        cuda().standin_synchronize_all()
        nccl().ncclCommAbort(r.handle)
        print("stopped")
from gpu.on_standins import LIMIT
ranks_of = on_standins.new_id
try:
    ranks(2, body, ends=False)
except AssertionError as error:
    print(error)
"""
    done = process(code)
    assert "stopped" in done.stdout, done.stderr
