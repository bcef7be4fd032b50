"""Graphs of the stand-in for libcuda: what each launch does, what they hold, and kernels that stop a GPU."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from ctypes import byref, c_char_p, c_int, c_void_p

import numpy as np
import pytest
from gpu import on_standins
from gpu.on_standins import (
    GLOBAL,
    INVALID_HANDLE,
    INVALID_VALUE,
    INVALIDATED,
    OUT_OF_MEMORY,
    RELAXED,
    SUCCESS,
    UNSUPPORTED,
    CaptureInfo,
    allocate,
    becomes,
    begin,
    captured,
    cuda,
    end,
    ends_with,
    fill,
    finish,
    get,
    instantiate,
    kernel,
    launch,
    mark,
    ok,
    on,
    pinned,
    process,
    put,
    replay,
    stays_behind,
    stream,
)

LEGACY = 1  # the default stream of the GPU


@pytest.fixture(autouse=True)
def _device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in on_standins.settings().items():
        monkeypatch.setenv(name, value)
    with on(0):
        yield


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
    ok(held.move_to(CaptureInfo(one).graph))
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
    ok(held.move_to(CaptureInfo(one).graph))
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
    destroys = threading.Thread(target=cuda().cuGraphExecDestroy, args=(executable,), daemon=True)
    destroys.start()
    destroys.join(on_standins.LIMIT)
    assert not destroys.is_alive()
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
