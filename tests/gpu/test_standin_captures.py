"""Captures of the stand-in for libcuda: which streams are part of them, and what CUDA refuses meanwhile."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable, Iterator
from ctypes import byref, c_char_p, c_int, c_ulonglong, c_void_p

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
    RELAXED,
    SUCCESS,
    THREAD_LOCAL,
    UNJOINED,
    UNMATCHED,
    UNSUPPORTED,
    WRONG_THREAD,
    CaptureInfo,
    allocate,
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
    put,
    record,
    replay,
    status,
    stays_behind,
    stream,
    wait,
)

LEGACY, PER_THREAD = 1, 2  # streams that are always there


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


def test_what_a_stream_says_of_its_capture() -> None:
    origin, branch, other, memory = stream(), stream(), stream(), allocate(4)
    assert CaptureInfo(origin).status == NONE
    begin(origin)
    begin(other)
    start = CaptureInfo(origin)
    assert start.status == ACTIVE and start.nodes == []
    fill(memory, 1, 4, origin)
    first = CaptureInfo(origin)
    assert len(first.nodes) == 1 and first.number == start.number != CaptureInfo(other).number
    wait(branch, mark(origin))
    assert CaptureInfo(branch).nodes == first.nodes and CaptureInfo(branch).number == start.number
    fill(memory, 1, 4, branch)
    fill(memory, 1, 4, origin)
    second, beside = CaptureInfo(origin), CaptureInfo(branch)
    assert len({*first.nodes, *second.nodes, *beside.nodes}) == 3
    wait(origin, mark(branch))
    assert sorted(CaptureInfo(origin).nodes) == sorted(second.nodes + beside.nodes)
    found = c_int()
    ok(
        cuda().cuStreamGetCaptureInfo_v2(origin, byref(found), None, None, None, None)
    )  # all others may be null
    assert found.value == ACTIVE
    assert cuda().cuGraphInstantiateWithFlags(byref(c_void_p()), first.graph, 0) == INVALID_HANDLE
    assert end(origin) == start.graph == second.graph != end(other)
    begin(origin)
    assert CaptureInfo(origin).number not in (start.number, 0)
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
