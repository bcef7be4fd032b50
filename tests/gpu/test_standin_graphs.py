"""Captures and graphs of the stand-in for libcuda: what is captured, what each launch does, and what CUDA refuses."""

from __future__ import annotations

import ctypes
import functools
import threading
import time
from collections.abc import Callable, Iterator
from ctypes import byref, c_char_p, c_int, c_size_t, c_ulonglong, c_void_p

import numpy as np
import pytest
from gpu import on_standins
from gpu.on_standins import (
    ACTIVE,
    CAPTURED_EVENT,
    GLOBAL,
    ILLEGAL_STATE,
    IMPLICIT,
    INVALID,
    INVALID_HANDLE,
    INVALID_VALUE,
    INVALIDATED,
    ISOLATION,
    MERGE,
    NONE,
    OUT_OF_MEMORY,
    RELAXED,
    SUCCESS,
    THREAD_LOCAL,
    UNJOINED,
    UNMATCHED,
    UNSUPPORTED,
    WRONG_THREAD,
    allocate,
    becomes,
    begin,
    captured,
    cuda,
    end,
    ends_with,
    event,
    fill,
    finish,
    get,
    instantiate,
    kernel,
    launch,
    mark,
    mode_of_thread,
    ok,
    on,
    passed,
    pinned,
    process,
    put,
    record,
    replay,
    status,
    stays_behind,
    stream,
    wait,
)

LEGACY, PER_THREAD = 1, 2


@pytest.fixture(autouse=True)
def _device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in on_standins.settings().items():
        monkeypatch.setenv(name, value)
    with on(0):
        yield


def elsewhere(body: Callable[[], object]) -> object:
    """What it gives in another thread."""
    answers: list[object] = []

    def there() -> None:
        with on(0):
            answers.append(body())

    thread = threading.Thread(target=there)
    thread.start()
    thread.join()
    assert len(answers) == 1
    return answers[0]


def copy(to: int, of: int, nbytes: int, at: int) -> None:
    ok(cuda().cuMemcpyDtoDAsync_v2(to, of, nbytes, at))


# --- what a launch does -------------------------------------------------------------------------------------


def test_what_is_captured_is_done_by_each_launch_and_not_before() -> None:
    one, scale = stream(), kernel("ringdp_scale_float32")
    host, back = np.zeros(100, np.float32), np.zeros(100, np.float32)
    first, second = allocate(400), put(np.zeros(400, np.uint8))
    executable = captured(
        one,
        lambda: fill(first, 0xFF, 400, one),
        lambda: ok(cuda().cuMemcpyHtoDAsync_v2(first, host.ctypes.data, 396, one)),
        lambda: ok(launch(scale, "<QQQd", first, first, 99, 2.0, at=one)),
        lambda: copy(second, first, 400, one),
        lambda: ok(cuda().cuMemcpyDtoHAsync_v2(back.ctypes.data, second, 400, one)),
    )
    finish(one)
    assert (get(first, 400) == 0xCD).all() and not get(second, 400).any() and not back.any()
    for step in range(3):
        host[:] = np.arange(100) + step
        replay(executable, one)
        finish(one)
        assert (back[:99] == 2 * host[:99]).all() and back[99:].view(np.uint32) == 0xFFFFFFFF
        back[:] = 0


def test_a_kernel_has_the_parameters_of_its_capture() -> None:
    one, scale, memory = stream(), kernel("ringdp_scale_float32"), put(np.ones(10, np.float32))
    executable = captured(one, lambda: ok(launch(scale, "<QQQd", memory, memory, 10, 3.0, at=one)))
    for wanted in (3, 9, 27):
        ok(launch(scale, "<QQQd", memory, memory, 10, 1.0, at=one))
        replay(executable, one)
        finish(one)
        assert (get(memory, 10, np.float32) == wanted).all()


def test_one_graph_makes_several_executables_which_outlive_it() -> None:
    memory, one = put(np.zeros(4, np.uint8)), stream()
    begin(one)
    fill(memory, 7, 4, one)
    graph = end(one)
    both = instantiate(graph), instantiate(graph)
    ok(cuda().cuGraphDestroy(graph))
    for executable in both:
        fill(memory, 0, 4, one)
        replay(executable, one)
        finish(one)
        assert (get(memory, 4) == 7).all()
        ok(cuda().cuGraphExecDestroy(executable))
        assert cuda().cuGraphLaunch(executable, one) == INVALID_HANDLE
    assert cuda().cuGraphInstantiateWithFlags(byref(c_void_p()), graph, 0) == INVALID_HANDLE
    assert cuda().cuGraphDestroy(graph) == cuda().cuGraphExecDestroy(both[0]) == INVALID_HANDLE


def test_a_launch_comes_behind_what_its_stream_was_given_and_what_it_is_given_later_behind_the_launch() -> (
    None
):
    memory, out, origin, one = put(np.zeros(4, np.uint8)), allocate(4), stream(), stream()
    executable = captured(origin, lambda: copy(out, memory, 4, origin), lambda: fill(memory, 2, 4, origin))
    held = cuda().standin_hold(one)
    fill(memory, 1, 4, one)
    replay(executable, one)
    fill(memory, 3, 4, one)
    stays_behind(mark(one))
    assert not get(memory, 4).any()
    cuda().standin_release(held)
    finish(one)
    assert (get(out, 4) == 1).all() and (get(memory, 4) == 3).all()


def test_a_launch_comes_behind_the_launch_before_of_the_same_executable() -> None:
    memory, origin, first, second = put(np.zeros(4, np.uint8)), stream(), stream(), stream()
    executable, other = (captured(origin, lambda: fill(memory, 1, 4, origin)) for _ in range(2))
    held = cuda().standin_hold(first)
    replay(executable, first)
    replay(executable, second)
    stays_behind(mark(second))
    third = stream()
    replay(other, third)  # not behind those of another one
    finish(third)
    cuda().standin_release(held)
    finish(second)


def test_an_empty_graph_orders_the_streams_it_is_launched_in_all_the_same() -> None:
    origin, first, second = stream(), stream(), stream()
    executable = captured(origin)
    held = cuda().standin_hold(first)
    replay(executable, first)
    replay(executable, second)
    stays_behind(mark(second))
    cuda().standin_release(held)
    finish(second)


def test_launches_in_the_legacy_stream_keep_its_order() -> None:
    memory, out, origin, blocking = put(np.zeros(4, np.uint8)), allocate(4), stream(), stream(flags=0)
    executable = captured(origin, lambda: copy(out, memory, 4, origin))
    held = cuda().standin_hold(blocking)
    fill(memory, 5, 4, blocking)
    replay(executable, LEGACY)
    stays_behind(mark(LEGACY))
    cuda().standin_release(held)
    finish(LEGACY)
    assert (get(out, 4) == 5).all()


BRANCHES = """
with on(0):
    memory, out, origin, branch, one = allocate(64), allocate(1), stream(), stream(), stream()
    begin(origin)
    forked = mark(origin)
    wait(branch, forked)
    fill(memory, 1, 64, origin)
    {middle}
    fill(memory, 2, 64, branch)
    wait(origin, mark(branch))
    ok(cuda().cuMemcpyDtoDAsync_v2(out, memory, 1, origin))
    executable = instantiate(end(origin))
    seen = set()
    for _ in range(100):
        replay(executable, one)
        finish(one)
        seen.add(int(get(out, 1)[0]))
    print(sorted(seen))
"""


def test_branches_overtake_one_another_but_where_they_wait() -> None:
    def run(middle: str, **environ: str) -> str:
        done = process(BRANCHES.replace("{middle}", middle), RINGDP_STANDIN_DELAY_US="300", **environ)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert run("") == "[1, 2]"
    assert run("wait(branch, mark(origin))") == "[2]"


def test_dependencies_reach_across_streams_and_launches() -> None:
    """Three streams hand a value on; the last one waits for no other than the one before it."""
    body = """
with on(0):
    places, streams, one = [allocate(4) for _ in range(4)], [stream() for _ in range(3)], stream()
    begin(streams[0])
    for n in range(3):
        if n > 0:
            wait(streams[n], mark(streams[n - 1]))
        ok(cuda().cuMemcpyDtoDAsync_v2(places[n + 1], places[n], 4, streams[n]))
    wait(streams[0], mark(streams[2]))
    executable = instantiate(end(streams[0]))
    for step in range(50):
        fill(places[0], step, 4, one)
        replay(executable, one)
        finish(one)
        assert (get(places[3], 4) == step).all(), step
    print("good")
"""
    done = process(body, RINGDP_STANDIN_DELAY_US="300")
    assert done.stdout.strip() == "good", done.stderr


# --- events ------------------------------------------------------------------------------------------------------


def test_who_waits_for_a_captured_event_joins_the_capture() -> None:
    origin, branch, other = stream(), stream(), stream()
    memory = put(np.zeros(4, np.uint8))
    held = cuda().standin_hold(branch)  # what it was given before is none of the capture's business
    begin(origin)
    wait(branch, mark(origin))
    assert [status(s) for s in (origin, branch, other)] == [ACTIVE, ACTIVE, NONE]
    fill(memory, 1, 4, branch)
    fill(memory, 2, 4, other)
    finish(other)
    wait(origin, mark(branch))
    executable = instantiate(end(origin))
    assert [status(s) for s in (origin, branch, other)] == [NONE] * 3
    replay(executable, other)
    finish(other)
    assert (get(memory, 4) == 1).all()
    stays_behind(mark(branch))
    cuda().standin_release(held)
    finish(branch)


def test_streams_of_other_gpus_join_too() -> None:
    origin = stream()
    with on(1):
        branch, memory = stream(), put(np.zeros(4, np.uint8))
    begin(origin)
    wait(branch, mark(origin))
    with on(1):
        fill(memory, 1, 4, branch)
        marker = mark(branch)
    wait(origin, marker)
    replay(instantiate(end(origin)), origin)
    finish(origin)
    assert (get(memory, 4) == 1).all()


ASK = {
    "cuEventQuery": lambda marker: cuda().cuEventQuery(marker),
    "cuEventSynchronize": lambda marker: cuda().cuEventSynchronize(marker),
    "cuEventElapsedTime": lambda marker: cuda().cuEventElapsedTime(byref(ctypes.c_float()), marker, marker),
}


@pytest.mark.parametrize("ask", ASK)
def test_nobody_can_ask_a_captured_event_which_spoils_its_capture(ask: str) -> None:
    one = stream()
    begin(one)
    marker = mark(one)
    assert ASK[ask](marker) == CAPTURED_EVENT
    assert status(one) == INVALID and ends_with(one) == INVALIDATED
    assert ASK[ask](marker) == CAPTURED_EVENT  # still


def test_an_event_that_is_recorded_again_outside_is_an_ordinary_one() -> None:
    captured_stream, one, waiting = stream(), stream(), stream()
    begin(captured_stream)
    marker = mark(captured_stream)
    held = cuda().standin_hold(one)
    record(marker, one)
    wait(waiting, marker)
    assert status(waiting) == NONE and not passed(marker)
    cuda().standin_release(held)
    finish(waiting)
    assert passed(marker) and status(captured_stream) == ACTIVE
    end(captured_stream)


def test_a_wait_of_one_capture_for_another_spoils_both() -> None:
    first, second = stream(), stream()
    begin(first)
    begin(second)
    assert cuda().cuStreamWaitEvent(second, mark(first), 0) == MERGE
    assert status(first) == status(second) == INVALID
    assert ends_with(first) == ends_with(second) == INVALIDATED


def test_a_capture_does_not_wait_for_what_is_outside() -> None:
    one, marker = stream(), mark(stream())
    begin(one)
    assert cuda().cuStreamWaitEvent(one, marker, 0) == ISOLATION
    assert status(one) == INVALID and ends_with(one) == INVALIDATED
    begin(one)
    wait(one, event())  # never recorded: nothing to wait for
    end(one)


@pytest.mark.parametrize("how", ["well", "invalid"])
def test_nobody_waits_for_an_event_of_a_capture_that_has_ended(how: str) -> None:
    one, other = stream(), stream()
    begin(one)
    marker = mark(one)
    if how == "invalid":
        assert cuda().cuStreamSynchronize(one) == UNSUPPORTED
    assert (ends_with(one) == INVALIDATED) if how == "invalid" else end(one)
    assert cuda().cuStreamWaitEvent(other, marker, 0) == ISOLATION and status(other) == NONE
    begin(other)
    assert cuda().cuStreamWaitEvent(other, marker, 0) == ISOLATION and status(other) == INVALID
    assert ends_with(other) == INVALIDATED


# --- begin, end, and what is asked between --------------------------------------------------------------------------


def test_where_no_capture_begins() -> None:
    one = stream()
    assert cuda().cuStreamBeginCapture_v2(0, RELAXED) == UNSUPPORTED
    assert cuda().cuStreamBeginCapture_v2(LEGACY, RELAXED) == UNSUPPORTED
    assert cuda().cuStreamBeginCapture_v2(12345, RELAXED) == INVALID_HANDLE
    assert cuda().cuStreamBeginCapture_v2(one, 3) == INVALID_VALUE
    assert ends_with(one) == ILLEGAL_STATE
    begin(one)
    assert cuda().cuStreamBeginCapture_v2(one, GLOBAL) == ILLEGAL_STATE
    end(one)
    begin(PER_THREAD)
    end(PER_THREAD)


def test_a_capture_ends_where_it_began() -> None:
    origin, branch = stream(), stream()
    begin(origin)
    wait(branch, mark(origin))
    assert ends_with(branch) == UNMATCHED
    assert status(origin) == status(branch) == ACTIVE
    wait(origin, mark(branch))
    end(origin)


def test_only_a_relaxed_capture_is_ended_by_another_thread() -> None:
    one = stream()
    for mode in (GLOBAL, THREAD_LOCAL):
        begin(one, mode)
        assert elsewhere(lambda: ends_with(one)) == WRONG_THREAD
        end(one)
    begin(one, RELAXED)
    assert elsewhere(lambda: end(one))


@pytest.mark.parametrize("late", [True, False])
def test_a_branch_that_was_not_joined(late: bool) -> None:
    origin, branch = stream(), stream()
    memory = put(np.zeros(4, np.uint8))
    begin(origin)
    wait(branch, mark(origin))
    fill(memory, 1, 4, branch)
    if late:  # it was given something after the origin waited for it
        wait(origin, mark(branch))
        fill(memory, 1, 4, branch)
    assert ends_with(origin) == UNJOINED
    assert status(origin) == status(branch) == NONE
    for one in (origin, branch):  # as before
        fill(memory, 9, 4, one)
        finish(one)
    assert (get(memory, 4) == 9).all()


def test_a_branch_is_joined_by_way_of_another_one() -> None:
    origin, first, second = stream(), stream(), stream()
    memory = allocate(4)
    begin(origin)
    fill(memory, 1, 4, origin)
    wait(first, mark(origin))
    fill(memory, 1, 4, first)
    wait(second, mark(first))
    fill(memory, 1, 4, second)
    wait(origin, mark(second))
    end(origin)


def test_an_invalid_capture_takes_nothing_until_it_ends() -> None:
    origin, branch, outside = stream(), stream(), stream()
    memory, host, scale = put(np.zeros(8, np.uint8)), np.zeros(8, np.uint8), kernel("ringdp_scale_float32")
    begin(origin)
    forked = mark(origin)
    wait(branch, forked)
    assert cuda().cuStreamSynchronize(branch) == UNSUPPORTED
    for one in (origin, branch):
        assert status(one) == INVALID
        assert [
            cuda().cuMemsetD8Async(memory, 1, 8, one),
            cuda().cuMemcpyHtoDAsync_v2(memory, host.ctypes.data, 8, one),
            cuda().cuMemcpyDtoHAsync_v2(host.ctypes.data, memory, 8, one),
            cuda().cuMemcpyDtoDAsync_v2(memory, memory, 8, one),
            launch(scale, "<QQQd", memory, memory, 2, 1.0, at=one),
            cuda().cuEventRecord(event(), one),
            cuda().cuStreamWaitEvent(one, forked, 0),
        ] == 7 * [INVALIDATED]
    assert cuda().cuStreamWaitEvent(outside, forked, 0) == INVALID_VALUE and status(outside) == NONE
    assert cuda().cuStreamBeginCapture_v2(origin, RELAXED) == ILLEGAL_STATE
    assert ends_with(origin) == INVALIDATED
    finish(origin)
    finish(branch)
    assert not get(memory, 8).any()


class Info:
    """What a stream says of its capture."""

    def __init__(self, at: int) -> None:
        found, number, graph, nodes, count = c_int(), c_ulonglong(), c_void_p(), c_void_p(), c_size_t()
        out = [byref(x) for x in (found, number, graph, nodes, count)]
        ok(cuda().cuStreamGetCaptureInfo_v2(at, *out))
        self.status, self.number, self.graph = found.value, number.value, graph.value
        self.nodes = list((c_void_p * count.value).from_address(nodes.value)) if count.value else []


def test_what_a_stream_says_of_its_capture() -> None:
    origin, branch, other, memory = stream(), stream(), stream(), allocate(4)
    assert Info(origin).status == NONE
    begin(origin)
    begin(other)
    start = Info(origin)
    assert start.status == ACTIVE and start.nodes == []
    fill(memory, 1, 4, origin)
    first = Info(origin)
    assert len(first.nodes) == 1 and first.number == start.number != Info(other).number
    wait(branch, mark(origin))
    assert Info(branch).nodes == first.nodes and Info(branch).number == start.number
    fill(memory, 1, 4, branch)
    fill(memory, 1, 4, origin)
    second, beside = Info(origin), Info(branch)
    assert len({*first.nodes, *second.nodes, *beside.nodes}) == 3
    wait(origin, mark(branch))
    assert sorted(Info(origin).nodes) == sorted(second.nodes + beside.nodes)
    found = c_int()
    ok(
        cuda().cuStreamGetCaptureInfo_v2(origin, byref(found), None, None, None, None)
    )  # all others may be null
    assert found.value == ACTIVE
    assert cuda().cuGraphInstantiateWithFlags(byref(c_void_p()), first.graph, 0) == INVALID_HANDLE
    assert end(origin) == start.graph == second.graph != end(other)
    begin(origin)
    assert Info(origin).number not in (start.number, 0)
    end(origin)


# --- the legacy default stream --------------------------------------------------------------------------------------


def test_the_legacy_stream_is_of_no_use_while_one_that_blocks_with_it_is_captured() -> None:
    memory, host, scale = put(np.zeros(8, np.uint8)), np.zeros(8, np.uint8), kernel("ringdp_scale_float32")
    one = stream(flags=0)
    executable = captured(one)
    uses = {
        "memset": lambda: cuda().cuMemsetD8Async(memory, 1, 8, LEGACY),
        "to": lambda: cuda().cuMemcpyHtoDAsync_v2(memory, host.ctypes.data, 8, 0),
        "from": lambda: cuda().cuMemcpyDtoHAsync_v2(host.ctypes.data, memory, 8, LEGACY),
        "on": lambda: cuda().cuMemcpyDtoDAsync_v2(memory, memory, 8, LEGACY),
        "kernel": lambda: launch(scale, "<QQQd", memory, memory, 2, 1.0, at=LEGACY),
        "record": lambda: cuda().cuEventRecord(event(), LEGACY),
        "wait": lambda: cuda().cuStreamWaitEvent(LEGACY, event(), 0),
        "graph": lambda: cuda().cuGraphLaunch(executable, LEGACY),
        "synchronize": lambda: cuda().cuStreamSynchronize(LEGACY),
    }
    for name, use in uses.items():
        begin(one)
        assert cuda().cuStreamIsCapturing(LEGACY, byref(c_int())) == IMPLICIT
        assert status(one) == ACTIVE  # who asks spoils nothing
        assert use() == IMPLICIT, name
        assert status(one) == INVALID and ends_with(one) == INVALIDATED, name
        assert use() == SUCCESS, name
    finish(LEGACY)


def test_the_legacy_stream_goes_on_beside_captures_that_do_not_block_with_it() -> None:
    memory, one = put(np.zeros(8, np.uint8)), stream()
    with on(1):
        of_another = stream(flags=0)
    begin(one, THREAD_LOCAL)
    begin(of_another, THREAD_LOCAL)
    fill(memory, 1, 8, LEGACY)
    assert status(LEGACY) == NONE and status(one) == status(of_another) == ACTIVE
    marker = mark(one)
    assert cuda().cuStreamWaitEvent(LEGACY, marker, 0) == UNSUPPORTED  # it cannot join
    assert ends_with(one) == INVALIDATED and end(of_another)
    finish(LEGACY)


# --- what might disturb a capture -----------------------------------------------------------------------------------

UNSAFE: dict[str, Callable[[int], int]] = {  # given a stream
    "cuMemAlloc": lambda _: cuda().cuMemAlloc_v2(byref(c_ulonglong()), 8),
    "cuMemFree": lambda _: cuda().cuMemFree_v2(0),
    "cuMemHostAlloc": lambda _: cuda().cuMemHostAlloc(byref(c_void_p()), 8, 1),
    "cuModuleLoadData": lambda _: cuda().cuModuleLoadData(byref(c_void_p()), c_char_p(b"image")),
    "cuStreamSynchronize": lambda other: cuda().cuStreamSynchronize(other),
    "cuEventQuery": lambda _: cuda().cuEventQuery(event()),
    "cuEventSynchronize": lambda _: cuda().cuEventSynchronize(event()),
}


@pytest.mark.parametrize("call", UNSAFE)
def test_calls_that_are_unsafe_while_a_stream_is_captured(call: str) -> None:
    one, other = stream(), stream()
    unsafe = functools.partial(UNSAFE[call], other)
    assert unsafe() == SUCCESS
    begin(one, GLOBAL)
    assert unsafe() == UNSUPPORTED and status(one) == INVALID
    assert ends_with(one) == INVALIDATED and unsafe() == SUCCESS


@pytest.mark.parametrize("thread", [GLOBAL, THREAD_LOCAL, RELAXED])
@pytest.mark.parametrize("capture", [GLOBAL, THREAD_LOCAL, RELAXED])
@pytest.mark.parametrize("own", [True, False])
def test_which_modes_forbid_them(thread: int, capture: int, own: bool) -> None:
    refused = {
        (GLOBAL, GLOBAL, True), (GLOBAL, GLOBAL, False), (GLOBAL, THREAD_LOCAL, True),
        (THREAD_LOCAL, GLOBAL, True), (THREAD_LOCAL, THREAD_LOCAL, True),
    }  # fmt: skip
    one = stream()
    begin(one, capture)

    def ask() -> int:
        with mode_of_thread(thread):
            return cuda().cuMemFree_v2(0)

    given = ask() if own else elsewhere(ask)
    is_refused = (thread, capture, own) in refused
    assert given == (UNSUPPORTED if is_refused else SUCCESS)
    assert status(one) == (INVALID if is_refused else ACTIVE)
    assert (ends_with(one) == INVALIDATED) if is_refused else end(one)


def test_only_the_captures_that_a_call_might_disturb_are_spoiled() -> None:
    first, second = stream(), stream()
    begin(first, RELAXED)
    begin(second, GLOBAL)
    assert UNSAFE["cuMemFree"](0) == UNSUPPORTED
    assert status(first) == ACTIVE and end(first)
    assert ends_with(second) == INVALIDATED


def test_modes_are_swapped_and_each_thread_has_its_own() -> None:
    def swap(mode: int) -> tuple[int, int]:
        swapped = c_int(mode)
        return cuda().cuThreadExchangeStreamCaptureMode(byref(swapped)), swapped.value

    assert swap(RELAXED) == (SUCCESS, GLOBAL)
    assert elsewhere(lambda: swap(THREAD_LOCAL)) == (SUCCESS, GLOBAL)
    assert swap(GLOBAL) == (SUCCESS, RELAXED)
    assert swap(3) == (INVALID_VALUE, 3) and swap(-1) == (INVALID_VALUE, -1)


def test_nobody_waits_for_a_stream_that_is_captured() -> None:
    one = stream()
    begin(one)
    assert cuda().cuStreamSynchronize(one) == UNSUPPORTED
    assert status(one) == INVALID and ends_with(one) == INVALIDATED
    ok(cuda().cuStreamSynchronize(one))


# --- what a graph holds ---------------------------------------------------------------------------------------------

DESTROY = ctypes.CFUNCTYPE(None, c_void_p)


class Held:
    """An object that a graph is given, and says when it is destroyed."""

    def __init__(self, references: int = 1, number: int = 7) -> None:
        self.destroyed: list[tuple[int, int]] = []
        self.callback = DESTROY(lambda given: self.destroyed.append((given, threading.get_ident())))
        self.handle = c_void_p()
        ok(cuda().cuUserObjectCreate(byref(self.handle), number, self.callback, references, 1))

    def move_to(self, graph: int | None, count: int = 1) -> int:
        return cuda().cuGraphRetainUserObject(graph, self.handle, count, 1)


@pytest.mark.parametrize("first", ["graph", "executable"])
def test_an_object_goes_when_the_graph_and_all_made_of_it_are_gone(first: str) -> None:
    one, held = stream(), Held()
    begin(one)
    ok(held.move_to(Info(one).graph))
    graph = end(one)
    both = instantiate(graph), instantiate(graph)
    replay(both[0], one)
    finish(one)
    if first == "graph":
        ok(cuda().cuGraphDestroy(graph))
    ok(cuda().cuGraphExecDestroy(both[0]))
    ok(cuda().cuGraphExecDestroy(both[1]) if first == "executable" else SUCCESS)
    time.sleep(0.02)
    assert not held.destroyed
    ok(cuda().cuGraphDestroy(graph) if first == "executable" else cuda().cuGraphExecDestroy(both[1]))
    becomes(lambda: bool(held.destroyed), "it is never destroyed")
    [(number, thread)] = held.destroyed
    assert number == 7 and thread not in {t.ident for t in threading.enumerate()}


def test_an_object_goes_with_a_capture_that_failed() -> None:
    one, held = stream(), Held()
    begin(one)
    ok(held.move_to(Info(one).graph))
    assert cuda().cuStreamSynchronize(one) == UNSUPPORTED
    time.sleep(0.02)
    assert not held.destroyed
    assert ends_with(one) == INVALIDATED
    becomes(lambda: len(held.destroyed) == 1, "it is never destroyed")


def test_what_is_under_way_ends_first_and_nobody_waits_for_it() -> None:
    one, origin, held, memory = stream(), stream(), Held(), put(np.zeros(4, np.uint8))
    begin(origin)
    fill(memory, 1, 4, origin)
    graph = end(origin)
    ok(held.move_to(graph))  # as well as before its end
    executable = instantiate(graph)
    ok(cuda().cuGraphDestroy(graph))
    stopped = cuda().standin_hold(one)
    replay(executable, one)
    ok(cuda().cuGraphExecDestroy(executable))
    time.sleep(0.02)
    assert not held.destroyed and not get(memory, 4).any()
    cuda().standin_release(stopped)
    becomes(lambda: len(held.destroyed) == 1, "it is never destroyed")
    assert (get(memory, 4) == 1).all()


def test_references_move_from_who_made_the_object() -> None:
    one, held = stream(), Held(references=3)
    begin(one)
    first = end(one)
    begin(one)
    second = end(one)
    assert held.move_to(12345) == INVALID_HANDLE
    assert held.move_to(first, 4) == held.move_to(first, 0) == INVALID_VALUE
    ok(held.move_to(first, 2))
    assert held.move_to(second, 2) == INVALID_VALUE
    ok(held.move_to(second))
    assert held.move_to(second) == INVALID_HANDLE  # it has none left
    ok(cuda().cuGraphDestroy(first))
    time.sleep(0.02)
    assert not held.destroyed
    ok(cuda().cuGraphDestroy(second))
    becomes(lambda: len(held.destroyed) == 1, "it is never destroyed")


def test_objects_that_cannot_be() -> None:
    callback, made = DESTROY(lambda _: None), c_void_p()
    for destroy, references, flags in ((None, 1, 1), (callback, 0, 1), (callback, 1, 0)):
        assert cuda().cuUserObjectCreate(byref(made), None, destroy, references, flags) == INVALID_VALUE


# --- failures on purpose, and what a GPU may not say ----------------------------------------------------------------

CALLS: dict[str, Callable[[], int]] = {
    "cuStreamBeginCapture_v2": lambda: cuda().cuStreamBeginCapture_v2(stream(), RELAXED),
    "cuStreamEndCapture": lambda: cuda().cuStreamEndCapture(stream(), byref(c_void_p())),
    "cuStreamIsCapturing": lambda: cuda().cuStreamIsCapturing(stream(), byref(c_int())),
    "cuStreamGetCaptureInfo_v2": lambda: cuda().cuStreamGetCaptureInfo_v2(
        stream(), byref(c_int()), *4 * [None]
    ),
    "cuThreadExchangeStreamCaptureMode": lambda: cuda().cuThreadExchangeStreamCaptureMode(
        byref(c_int(GLOBAL))
    ),
    "cuGraphInstantiateWithFlags": lambda: cuda().cuGraphInstantiateWithFlags(byref(c_void_p()), None, 0),
    "cuGraphLaunch": lambda: cuda().cuGraphLaunch(None, stream()),
    "cuGraphExecDestroy": lambda: cuda().cuGraphExecDestroy(None),
    "cuGraphDestroy": lambda: cuda().cuGraphDestroy(None),
    "cuUserObjectCreate": lambda: cuda().cuUserObjectCreate(byref(c_void_p()), None, None, 1, 1),
    "cuGraphRetainUserObject": lambda: cuda().cuGraphRetainUserObject(None, None, 1, 1),
}


@pytest.mark.parametrize("function", CALLS)
def test_calls_are_counted_and_fail_on_purpose(function: str) -> None:
    before = cuda().standin_calls(function.encode())
    cuda().standin_fail(function.encode(), 2, OUT_OF_MEMORY)
    answers = [CALLS[function]() for _ in range(3)]
    assert [answer == OUT_OF_MEMORY for answer in answers] == [False, True, False]
    assert cuda().standin_calls(function.encode()) == before + 3


def test_after_some_errors_no_graph_is_launched() -> None:
    body = """
with on(0):
    one, memory = stream(), put(np.zeros(4, np.uint8))
    executable = captured(one, lambda: fill(memory, 1, 4, one))
    statuses = [cuda().cuGraphLaunch(executable, one) for _ in range(3)]
    os.write(1, repr(statuses).encode())
    os._exit(0)
"""
    done = process(body, RINGDP_STANDIN_FAIL="cuGraphLaunch:2:700")
    assert done.stdout == "[0, 700, 700]", done


def test_errors_have_names() -> None:
    name = c_char_p()
    for error, text in ((900, "STREAM_CAPTURE_UNSUPPORTED"), (908, "STREAM_CAPTURE_WRONG_THREAD")):
        ok(cuda().cuGetErrorName(error, byref(name)))
        assert name.value == f"CUDA_ERROR_{text}".encode()


BEGIN = """
a, s = 0, 0
def free_in(given):
    cuda().cuMemFree_v2(0)
DESTROY = ctypes.CFUNCTYPE(None, c_void_p)(free_in)

def holds(graph):
    held = c_void_p()
    ok(cuda().cuUserObjectCreate(byref(held), None, DESTROY, 1, 1))
    ok(cuda().cuGraphRetainUserObject(graph, held, 1, 1))

with on(0):
    a, s = allocate(16), stream()
    {body}
    sys.exit("all is well")
"""


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("e = captured(s, lambda: fill(a, 1, 16, s)); replay(e, s); finish(s)", "all is well"),
        (
            "e = captured(s, lambda: fill(a, 1, 16, s)); cuda().cuMemFree_v2(a); replay(e, s); finish(s)",
            "cuMemsetD8Async: no device memory, or it has been freed",
        ),
        ("begin(s); fill(a, 1, 17, s)", "cuMemsetD8Async: it runs out of an allocation"),
        ("begin(s); cuda().standin_hold(s)", "standin_hold of a stream that is captured"),
        ("e = captured(s); begin(s); replay(e, s)", "cuGraphLaunch into a stream that is captured"),
        ("begin(s); g = end(s); holds(g); cuda().cuGraphDestroy(g)", "cuMemFree_v2 where a user object is destroyed"),
    ],
)  # fmt: skip
def test_what_a_gpu_may_not_say(body: str, says: str) -> None:
    done = process(BEGIN.replace("{body}", body))
    assert done.returncode == (1 if "well" in says else -6) and says in done.stderr, done.stderr


MISTAKES = """
with on(0):
    one, branch, host = stream(), stream(), pinned(8)
    values = put(np.zeros(8, np.uint8))
    ctypes.memmove(host, bytes(range(1, 9)), 8)
    scale, scaled = kernel("ringdp_scale_float32"), put(np.ones(1, np.float32))
    begin(one)
    wait(branch, mark(one))
    print("branch", status(branch))
    ok(cuda().cuMemcpyHtoDAsync_v2(values, host, 8, one))
    ok(launch(scale, "<QQQd", scaled, scaled, 1, 2.0, at=one))
    executable = instantiate(end(one))
    for _ in range(3):
        replay(executable, one)
        finish(one)
    print(get(values, 8).tolist(), get(scaled, 1, np.float32)[0])
"""


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({}, "branch 1\n[1, 2, 3, 4, 5, 6, 7, 8] 8.0"),
        ({"RINGDP_STANDIN_DROP_WAIT": "1"}, "branch 0\n[1, 2, 3, 4, 5, 6, 7, 8] 8.0"),
        ({"RINGDP_STANDIN_WRONG_OFFSET": "1"}, "branch 1\n[5, 6, 7, 8, 0, 0, 0, 0] 8.0"),
        ({"RINGDP_STANDIN_NO_KERNEL": "ringdp_scale_float32"}, "branch 1\n[1, 2, 3, 4, 5, 6, 7, 8] 1.0"),
        ({"RINGDP_STANDIN_WRONG_KERNEL": "ringdp_scale_float32"}, "branch 1\n[1, 2, 3, 4, 5, 6, 7, 8] 12.0"),
    ],
)
def test_mistakes_on_purpose_in_what_is_captured(environ: dict[str, str], says: str) -> None:
    done = process(MISTAKES, **environ)
    assert done.stdout.strip() == says, done.stdout + done.stderr


# --- kernels that write to the host, and that stop the GPU ------------------------------------------------------------


def test_kernels_reach_pinned_memory() -> None:
    one, begin_replay = stream(), kernel("ringdp_begin_replay")
    progress = pinned(48)
    words = np.frombuffer((ctypes.c_char * 48).from_address(progress), np.uint64)
    ctypes.memset(progress, 0, 48)
    count, told = put(np.zeros(1, np.uint64)), allocate(16)
    executable = captured(one, lambda: ok(launch(begin_replay, "<QQQQ", progress, count, told, 5, at=one)))
    assert words[0] == 0
    for number in range(1, 4):
        replay(executable, one)
        finish(one)
        assert words[0] == number and tuple(get(told, 2, np.uint64)) == (5, number)


@pytest.mark.parametrize("where", ["np.zeros(6, np.uint64).ctypes.data", "pinned(16) + 16", "pinned(12) + 8"])
def test_kernels_do_not_reach_other_memory_of_the_host(where: str) -> None:
    body = f"""
with on(0):
    launch(kernel("ringdp_note_exchange"), "<QQ", {where} - 8, 1, at=stream())
    time.sleep(10)
"""
    done = process(body)
    assert done.returncode == -6 and "neither the GPU's nor pinned" in done.stderr, done.stderr


STOP = """
with on(0):
    one, other, held = stream(), stream(), stream()
    memory, stop = put(np.zeros(4, np.uint8)), kernel("ringdp_stop")
    event_before, waiting = mark(other), []
    before = captured(other, lambda: fill(memory, 1, 4, other))
    hold = cuda().standin_hold(held)
    def waits():
        with on(0):
            waiting.append(cuda().cuStreamSynchronize(held))
    thread = threading.Thread(target=waits)
    thread.start()
    later = stream()
    hold_later = cuda().standin_hold(later)
    fill(memory, 1, 4, later)  # given before, and to come after
    ok(launch(stop, "<Q", 0, at=one))
    becomes(lambda: cuda().cuEventQuery(event_before) == LAUNCH_FAILED, "it does not stop")
    thread.join(LIMIT)
    print(waiting)
    print([cuda().cuGraphLaunch(before, other), cuda().cuMemsetD8Async(memory, 1, 4, other),
           cuda().cuStreamSynchronize(other), cuda().cuEventSynchronize(event_before)])
    cuda().standin_release(hold_later)
    cuda().standin_synchronize_all()
    print(get(memory, 4).tolist(), flush=True)
    os._exit(0)
"""


def test_a_kernel_that_stops_the_gpu() -> None:
    """All calls fail, what waits for ever ends, and what was to come is not done."""
    done = process(STOP)
    assert done.stdout.split("\n")[:3] == ["[719]", "[719, 719, 719, 719]", "[0, 0, 0, 0]"], done.stderr
