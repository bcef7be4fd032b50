"""The stand-in for libcuda itself: streams, events and memory are as CUDA's, and it sees what a GPU would not say."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from gpu import on_standins
from gpu.on_standins import (
    INVALID_CONTEXT,
    INVALID_DEVICE,
    INVALID_HANDLE,
    INVALID_VALUE,
    NOT_FOUND,
    OUT_OF_MEMORY,
    SUCCESS,
    allocate,
    cuda,
    event,
    fill,
    finish,
    get,
    kernel,
    launch,
    mark,
    ok,
    on,
    passed,
    process,
    put,
    record,
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


# --- streams and events -------------------------------------------------------------------------------------


def test_a_stream_does_one_after_the_other() -> None:
    memory, one = allocate(100_000), stream()
    held = cuda().standin_hold(one)
    for value in range(1, 50):
        fill(memory, value, 100_000, one)
    assert (get(memory, 100_000) == 0xCD).all()  # nothing yet
    cuda().standin_release(held)
    finish(one)
    assert (get(memory, 100_000) == 49).all()


def test_streams_do_not_wait_for_each_other_by_themselves() -> None:
    memory, first, second = allocate(10), stream(), stream()
    held = cuda().standin_hold(first)
    fill(memory, 1, 10, first)
    fill(memory, 2, 10, second)
    finish(second)
    assert (get(memory, 10) == 2).all()
    cuda().standin_release(held)
    finish(first)
    assert (get(memory, 10) == 1).all()


@pytest.mark.parametrize("device", [0, 1])
def test_a_stream_waits_for_an_event_of_another_one(device: int) -> None:
    first = stream()
    held = cuda().standin_hold(first)
    marker = mark(first)
    with on(device):
        second = stream()
        wait(second, marker)
        behind = mark(second)
        stays_behind(behind)
        cuda().standin_release(held)
        finish(second)
    assert passed(behind) and passed(marker)


def test_an_event_that_was_never_recorded_holds_nothing_up() -> None:
    marker, one = event(), stream()
    assert passed(marker)
    wait(one, marker)
    finish(one)


def test_an_event_recorded_again_means_the_later_point_and_who_waits_waits_for_the_earlier() -> None:
    marker, first, second, waiting = event(), stream(), stream(), stream()
    holds = [cuda().standin_hold(one) for one in (first, second, waiting)]
    record(marker, first)
    wait(waiting, marker)
    record(marker, second)
    behind = mark(waiting)
    cuda().standin_release(holds[2])  # it comes to the wait after all that
    stays_behind(behind)
    cuda().standin_release(holds[0])
    finish(waiting)
    assert not passed(marker)
    cuda().standin_release(holds[1])
    finish(second)
    assert passed(marker)


def test_an_event_is_of_one_gpu() -> None:
    marker = event()
    with on(1):
        assert cuda().cuEventRecord(marker, stream()) == INVALID_HANDLE


def test_synchronize_waits_for_its_stream_alone() -> None:
    memory, one, other = allocate(1 << 20), stream(), stream()
    held = cuda().standin_hold(other)
    for value in range(30):
        fill(memory, value, 1 << 20, one)
    ok(cuda().cuStreamSynchronize(one))
    assert (get(memory, 1 << 20) == 29).all()
    cuda().standin_release(held)


@pytest.mark.parametrize("of_thread", [False, True])
def test_the_legacy_default_stream_and_those_that_block(of_thread: bool) -> None:
    """Each waits for what the other was given before; one with the flag for that does not."""
    blocking, other = PER_THREAD if of_thread else stream(flags=0), stream()
    held = cuda().standin_hold(blocking)
    after = mark(LEGACY)
    third = mark(stream(flags=0))  # given after that, so it waits too
    finish(other)
    stays_behind(after)
    assert not passed(third)
    cuda().standin_release(held)
    finish(blocking)

    held = cuda().standin_hold(0)  # frameworks call the same stream 0
    after = mark(blocking)
    finish(other)
    stays_behind(after)
    cuda().standin_release(held)
    finish(LEGACY)


def test_each_thread_has_a_default_stream_of_its_own() -> None:
    held = cuda().standin_hold(PER_THREAD)
    errors: list[BaseException] = []

    def other() -> None:
        try:
            with on(0):
                finish(PER_THREAD)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    stays_behind(mark(PER_THREAD))
    cuda().standin_release(held)
    finish(PER_THREAD)
    assert not errors


def test_handles_that_are_none() -> None:
    assert cuda().cuEventQuery(12345) == INVALID_HANDLE
    assert cuda().cuStreamSynchronize(12345) == INVALID_HANDLE
    assert cuda().cuStreamWaitEvent(stream(), 12345, 0) == INVALID_HANDLE


# --- memory -------------------------------------------------------------------------------------------------


def test_new_memory_holds_nothing_of_use() -> None:
    memory = allocate(1000)
    assert (get(memory, 1000) == 0xCD).all()
    fill(memory, 7, 1000, LEGACY)
    finish(LEGACY)
    ok(cuda().cuMemFree_v2(memory))
    assert allocate(1000) == memory and (get(memory, 1000) == 0xCD).all()
    pinned = ctypes.c_void_p()
    ok(cuda().cuMemHostAlloc(ctypes.byref(pinned), 100, 1))
    assert ctypes.string_at(pinned, 100) == b"\xcd" * 100


def test_copies_both_ways_and_on_the_gpu() -> None:
    values, one = np.arange(100_000, dtype=np.int64), stream()
    out = np.zeros_like(values)
    first, second = allocate(values.nbytes), allocate(values.nbytes)
    ok(cuda().cuMemcpyHtoDAsync_v2(first, values.ctypes.data, values.nbytes, one))
    ok(cuda().cuMemcpyDtoDAsync_v2(second, first, values.nbytes, one))
    ok(cuda().cuMemcpyDtoHAsync_v2(out.ctypes.data, second, values.nbytes, one))
    finish(one)
    assert (out == values).all()


def test_the_host_is_read_when_a_copy_runs() -> None:
    values, one = np.zeros(10, np.uint8), stream()
    memory = allocate(10)
    held = cuda().standin_hold(one)
    ok(cuda().cuMemcpyHtoDAsync_v2(memory, values.ctypes.data, 10, one))
    values[:] = 3
    cuda().standin_release(held)
    finish(one)
    assert (get(memory, 10) == 3).all()


def test_a_gpu_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    address = ctypes.c_ulonglong()
    monkeypatch.setenv("RINGDP_STANDIN_DEVICES", "8")
    with on(7):  # where nothing else is
        monkeypatch.setenv("RINGDP_STANDIN_MEMORY", "10240")
        taken = allocate(10000)
        assert cuda().cuMemAlloc_v2(ctypes.byref(address), 512) == OUT_OF_MEMORY
        ok(cuda().cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)))
        assert (free.value, total.value) == (0, 10240)
        with on(6):
            allocate(512)  # of another one
        ok(cuda().cuMemFree_v2(taken))
        allocate(512)
        assert cuda().cuMemAlloc_v2(ctypes.byref(address), 0) == INVALID_VALUE


def test_what_an_address_is() -> None:
    kind, number, pinned = ctypes.c_uint(), ctypes.c_int(), ctypes.c_void_p()
    ok(cuda().cuMemHostAlloc(ctypes.byref(pinned), 100, 1))
    with on(2):
        memory = allocate(100)
    for address, wanted in ((memory + 99, (2, 2)), ((pinned.value or 0) + 99, (1, 0))):
        ok(cuda().cuPointerGetAttribute(ctypes.byref(kind), 2, address))
        ok(cuda().cuPointerGetAttribute(ctypes.byref(number), 9, address))
        assert (kind.value, number.value) == wanted
    elsewhere = np.zeros(1)
    for address in (memory + 100, elsewhere.ctypes.data):
        assert cuda().cuPointerGetAttribute(ctypes.byref(kind), 2, address) == INVALID_VALUE


BEGIN = """
a, b, s, scale, host = 0, 0, 0, 0, np.zeros(64, np.uint8)
def begin():
    global a, b, s, scale
    a, b, s, scale = allocate(16), allocate(16), stream(), kernel("ringdp_scale_float32")
"""


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("cuda().cuMemFree_v2(a); cuda().cuMemFree_v2(a)", "not allocated, or was freed before"),
        ("cuda().cuMemFree_v2(a + 8)", "not allocated"),
        (
            "cuda().cuMemFree_v2(a); fill(a, 1, 16, s)",
            "cuMemsetD8Async: no device memory, or it has been freed",
        ),
        ("fill(a, 1, 17, s)", "cuMemsetD8Async: it runs out of an allocation"),
        ("fill(a + 8, 1, 9, s)", "it runs out of an allocation"),
        ("fill(a + 16, 1, 1, s)", "no device memory"),
        (
            "cuda().cuMemcpyHtoDAsync_v2(a, host.ctypes.data, 17, s)",
            "HtoDAsync: it runs out of an allocation",
        ),
        (
            "cuda().cuMemcpyDtoHAsync_v2(host.ctypes.data, a, 17, s)",
            "DtoHAsync: it runs out of an allocation",
        ),
        ("cuda().cuMemcpyDtoDAsync_v2(a, b, 17, s)", "DtoDAsync: it runs out of an allocation"),
        ("cuda().cuMemcpyDtoDAsync_v2(a, host.ctypes.data, 16, s)", "DtoDAsync: no device memory"),
        (
            "h = cuda().standin_hold(s); fill(a, 1, 16, s); cuda().cuMemFree_v2(a); "
            "cuda().standin_release(h); finish(s)",
            "it has been freed",
        ),
        (
            "p = c_void_p(); cuda().cuMemHostAlloc(byref(p), 8, 1); "
            "cuda().cuMemcpyDtoHAsync_v2(p.value + 4, a, 5, s)",
            "it runs out of pinned memory",
        ),
        (
            "launch(scale, '<QQQd', a, b, 5, 2.0, at=s); finish(s)",
            "something was written behind an allocation",
        ),
        (
            "cuda().cuMemFree_v2(a); launch(scale, '<QQQd', a, b, 4, 2.0, at=s); finish(s); allocate(16)",
            "written after it had been freed",
        ),
        ("launch(scale, '<QQQd', a, b, 4, 2.0, at=s); finish(s); sys.exit('all is well')", "all is well"),
    ],
)
def test_what_a_gpu_may_not_say(body: str, says: str) -> None:
    done = process(f"{BEGIN}\nwith on(0):\n    begin()\n    {body}")
    assert done.returncode == (1 if "well" in says else -6) and says in done.stderr, done.stderr


# --- kernels --------------------------------------------------------------------------------------------------------


def test_a_kernel_runs_in_its_stream_with_the_parameters_of_its_launch() -> None:
    values, one, scale = np.arange(1000, dtype=np.float32), stream(), kernel("ringdp_scale_float32")
    memory = put(values)
    held = cuda().standin_hold(one)
    for factor in (2.0, 0.5, -3.0):
        ok(launch(scale, "<QQQd", memory, memory, 1000, factor, at=one))
    assert (get(memory, 1000, np.float32) == values).all()
    cuda().standin_release(held)
    finish(one)
    assert (get(memory, 1000, np.float32) == -3 * values).all()


def test_launches_that_are_refused() -> None:
    function = ctypes.c_void_p()
    assert cuda().cuModuleGetFunction(ctypes.byref(function), None, b"no_such_kernel") == NOT_FOUND
    scale = kernel("ringdp_scale_float32")
    assert launch(scale, "<QQQd", 0, 0, 0, 1.0, at=stream(), blocks=0) == INVALID_VALUE
    assert launch(scale, "<QQQd", 0, 0, 0, 1.0, at=12345) == INVALID_HANDLE


# --- devices, contexts, errors ------------------------------------------------------------------------------


def test_without_a_context_there_is_an_error() -> None:
    answers: list[int] = []

    def elsewhere() -> None:  # contexts are current for a thread
        address, made = ctypes.c_ulonglong(), ctypes.c_void_p()
        answers.append(cuda().cuMemAlloc_v2(ctypes.byref(address), 10))
        answers.append(cuda().cuStreamCreateWithPriority(ctypes.byref(made), 1, 0))
        answers.append(cuda().cuEventCreate(ctypes.byref(made), 2))
        answers.append(cuda().cuCtxPopCurrent_v2(ctypes.byref(made)))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert answers == [INVALID_CONTEXT] * 4


def test_devices() -> None:
    number = ctypes.c_int()
    ok(cuda().cuDeviceGetCount(ctypes.byref(number)))
    assert number.value == 4
    assert [cuda().cuDeviceGet(ctypes.byref(number), n) for n in (-1, 0, 3, 4)] == [
        INVALID_DEVICE,
        SUCCESS,
        SUCCESS,
        INVALID_DEVICE,
    ]


UUIDS = """
for device in range(2):
    uuid = (c_ubyte * 16)()
    ok(cuda().cuDeviceGetUuid_v2(byref(uuid), device))
    print(bytes(uuid).hex())
"""


def test_the_gpus_of_a_host_are_those_of_all_its_processes_unless_each_is_to_have_its_own() -> None:
    first, again = (process(UUIDS).stdout.split() for _ in range(2))
    assert first == again and len(set(first)) == 2
    own = [process(UUIDS, RINGDP_STANDIN_RANK_DEVICES="1").stdout.split() for _ in range(2)]
    assert len({*own[0], *own[1]}) == 4


def test_a_call_that_fails_on_purpose_fails_once() -> None:
    marker, one = event(), stream()
    cuda().standin_fail(b"cuEventRecord", 2, OUT_OF_MEMORY)
    assert [cuda().cuEventRecord(marker, one) for _ in range(3)] == [SUCCESS, OUT_OF_MEMORY, SUCCESS]


def test_after_some_errors_every_call_fails() -> None:
    body = """
with on(0):
    marker, one, number = event(), stream(), c_int()
    statuses = [cuda().cuEventRecord(marker, one) for _ in range(3)]
    statuses += [cuda().cuEventQuery(marker), cuda().cuDeviceGetCount(byref(number)), cuda().cuStreamSynchronize(one)]
    context = c_void_p()
    statuses += [cuda().cuCtxPopCurrent_v2(byref(context))]  # the thread's own stack goes on
    os.write(1, repr(statuses).encode())
    os._exit(0)
"""
    done = process(body, RINGDP_STANDIN_FAIL="cuEventRecord:2:700")
    assert done.stdout == "[0, 700, 700, 700, 700, 700, 0]", done


def test_events_that_pass_too_early_on_purpose() -> None:
    one = stream()
    held = cuda().standin_hold(one)
    marker = mark(one)
    assert not passed(marker)
    cuda().standin_events_pass(1)
    assert passed(marker)
    cuda().standin_events_pass(0)
    assert not passed(marker)
    cuda().standin_release(held)
    finish(one)


def test_memory_that_the_host_may_touch_or_finds_elsewhere() -> None:
    body = """
with on(0):
    there = put(np.arange(5, dtype=np.uint8))
    found = list(ctypes.string_at(there, 5))
    ctypes.memset(there, 7, 5)
    print(found, get(there, 5).tolist())
"""
    assert process(body).returncode == -11  # SIGSEGV
    assert process(body, RINGDP_STANDIN_OPEN="1").stdout.split("\n")[0] == "[0, 1, 2, 3, 4] [7, 7, 7, 7, 7]"
    done = process(body, RINGDP_STANDIN_OPEN="elsewhere")
    assert done.stdout.split("\n")[0] == "[0, 0, 0, 0, 0] [0, 1, 2, 3, 4]", done.stderr
