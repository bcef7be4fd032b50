"""What a process of gpu/processes.py begins with. It imports this with a star, after standin.use()."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence

import cupy
import numpy as np
from counting import counted, ways  # noqa: F401
from ranks.conftest import run_local

import ringdp
import ringdp.cupy as rdp
from ringdp import world
from ringdp.constants import Dtype
from ringdp.ops import Handle


def on_ranks(body: Callable[[], object], size: int = 2, hosts: Sequence[int] = ()) -> None:
    def on_a_device():
        with cupy.cuda.Device(ringdp.rank()), cupy.cuda.Stream():
            body()

    run_local(size, 1, list(hosts), on_a_device)


# --- sums -----------------------------------------------------------------------------------------------------------


def sums(count: int = 300_000) -> None:
    x = cupy.array(np.arange(count, dtype=np.float32) % 1000 * (ringdp.rank() + 1))
    n = ringdp.size()
    wanted = np.arange(count, dtype=np.float32) % 1000 * (n * (n + 1) // 2)
    for _ in range(4):
        assert (rdp.allreduce(x, op=rdp.Sum).get() == wanted).all(), "wrong sums"


def sum_of(x: np.ndarray, **options: object) -> np.ndarray:
    return rdp.allreduce(cupy.array(x), op=rdp.Sum, **options).get()


def goes(wanted: list[str], dtype: str, wanted_result: list, call: Callable) -> None:
    """`call` takes these ways for an array of 7 elements, and returns this."""
    x = cupy.array((np.arange(7) + ringdp.rank()).astype(dtype))
    got = []
    assert ways(lambda: got.append(call(x).get())) == wanted, (dtype, wanted)
    assert got[0].tolist() == wanted_result, (dtype, got[0], wanted_result)


# --- what goes wrong ------------------------------------------------------------------------------------------------


def until_it_raises(count: int = 300_000) -> None:
    """Sums may come out wrong before."""
    for _ in range(200):
        try:
            sums(count)
        except AssertionError:
            pass


raised: list[tuple[str, str]] = []  # by the ranks of this process: the error's class and text


def each_raises(call: Callable[[], object]) -> None:
    try:
        call()
    except ringdp.RingdpError as error:
        raised.append((type(error).__name__, str(error)))


def ended_communicators() -> tuple[int, int]:
    """Of NCCL: those that were destroyed, those that were aborted."""
    nccl = ctypes.CDLL(os.environ["RINGDP_NCCL_LIBRARY"])
    return nccl.standin_nccl_destroyed(), nccl.standin_nccl_aborted()


# --- plans ----------------------------------------------------------------------------------------------------------


def lane(name: str) -> int:
    opened = world.current().engine.open_plan(0, name, "of buckets")
    return Handle(opened, None, lambda core: int(core.lane()), world.current()).wait()


def leave(number: int, index: int, x: cupy.ndarray, digest: int = 7, **options: object) -> Handle:
    """`x`, a bucket of the plan of this lane, for the sum of all ranks."""
    stream = cupy.cuda.get_current_stream().ptr
    core = world.current().engine.submit_bucket(
        0,
        number,
        index,
        digest,
        x.data.ptr,
        x.size,
        int(Dtype.float32),
        int(rdp.Sum),
        1.0,
        1.0,
        gpu=x.device.id,
        stream=stream,
        **options,
    )
    return Handle(core, x, lambda _: x, world.current(), lambda: cupy.cuda.get_current_stream().ptr)
