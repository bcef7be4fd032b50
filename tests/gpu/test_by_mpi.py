"""From GPU to GPU by MPI: which way is taken and why, and that no message leaves before its GPU is ready.

The stand-in's memory is open to the host, as a GPU's is to an MPI that takes it; that the MPI does is said by
RINGDP_MPI_TAKES_GPU_MEMORY, as the MPIs of machines without a GPU say no.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
from driver.environ import environment, mpirun
from gpu.processes import LIMIT, MPI, TESTS, run, says, works

from ringdp import _core

NO_NCCL = 'os.environ["RINGDP_NCCL_LIBRARY"] = "no-such-library.so"\n'
AUTO = {**MPI, "RINGDP_GPU_TRANSPORT": "auto"}
needs_kernels = pytest.mark.skipif(
    not _core.gpu.kernels.built(), reason="there was no nvcc when ringdp was built (RINGDP_NVCC names one)"
)

# Every operation on 7 elements: `reduced` is who does the sums, `moved` who only moves.
EACH = """
def each(moved, reduced):
    rdp.allreduce(cupy.array(np.ones(1)))  # finds the way
    sums = [1 + 2 * i for i in range(7)]
    for dtype in ("float32", "float16", "int32", "int16", "uint8"):
        goes(reduced, dtype, sums, lambda x: rdp.allreduce(x, op=rdp.Sum))
        goes(reduced, dtype, [3 * s for s in sums], lambda x: rdp.allreduce(x, op=rdp.Sum, postscale_factor=3.0))
        goes(reduced, dtype, [1 + i for i in range(7)], lambda x: rdp.allreduce(x, op=rdp.Max))
        goes(reduced, dtype, sums[:4] if ringdp.rank() == 0 else sums[4:], lambda x: rdp.reducescatter(x, op=rdp.Sum))
        goes(moved, dtype, [*range(7), *range(1, 8)], lambda x: rdp.allgather(x))
        goes(moved, dtype, list(range(1, 8)), lambda x: rdp.broadcast(x, 1))
        mine = [*range(3), *range(1, 4)] if ringdp.rank() == 0 else [*range(3, 7), *range(4, 8)]
        goes(moved, dtype, mine, lambda x: rdp.alltoall(x, splits=np.array([3, 4]))[0])
    ones = cupy.array(np.ones(4, np.float32))
    assert ways(lambda: rdp.allreduce(ones, op=rdp.Adasum)) == ["by_host_memory"]
"""


def takes(body: str, way: str, **environ: str) -> str:
    """The way that sums take is `way`; what rank 0 said."""
    check = f"""
    def way():
        sums(5)
        assert ways(lambda: sums(5000)) == [{way!r}], ways(lambda: sums(5))
    """
    done = run(textwrap.dedent(check) + textwrap.dedent(body), **environ)
    assert done.returncode == 0, done.stderr
    return done.stderr


# --- the way ----------------------------------------------------------------------------------------------------


@needs_kernels
def test_all_of_it() -> None:
    works(EACH + 'on_ranks(lambda: each(["by_mpi"], ["by_mpi"]))', **MPI)


def test_without_kernels_sums_go_through_host_memory() -> None:
    body = EACH + 'on_ranks(lambda: each(["by_mpi"], ["by_host_memory"]))'
    works(body, **MPI, RINGDP_STANDIN_FAIL="cuModuleLoadData:-1:209")


@needs_kernels
def test_one_gpu_without_kernels_is_enough_for_that() -> None:
    body = EACH + 'on_ranks(lambda: each(["by_mpi"], ["by_host_memory"]))'
    works(body, **MPI, RINGDP_STANDIN_NO_MODULES="1")


@needs_kernels
def test_nccl_comes_first_then_mpi() -> None:
    assert "through host memory" not in takes("on_ranks(way)", "by_nccl", **AUTO)
    assert "through host memory" not in takes(NO_NCCL + "on_ranks(way)", "by_mpi", **AUTO)


@needs_kernels
def test_ranks_that_share_a_gpu_go_by_mpi() -> None:
    body = """
    def shared():
        with cupy.cuda.Device(0), cupy.cuda.Stream():
            way()
    run_local(3, 1, [], shared)
    """
    takes(body, "by_mpi", **AUTO)


@pytest.mark.parametrize(
    ("takes_it", "why"),
    [
        ("no", "the MPI of rank 0 says that it takes no memory of GPUs"),
        ("auto", "the MPI of rank 0 says that it"),
    ],
)
def test_an_mpi_that_says_no_is_not_tried(takes_it: str, why: str) -> None:
    """In memory that nobody may touch: the least message from it would end the process."""
    settings = {"RINGDP_MPI_TAKES_GPU_MEMORY": takes_it, "RINGDP_STANDIN_OPEN": ""}
    said = takes(NO_NCCL + "on_ranks(way)", "by_host_memory", **settings)
    assert "through host memory: rank 0 has no NCCL (pip install" in said and f", and {why}" in said, said
    says("on_ranks(sums)", "RINGDP_GPU_TRANSPORT=mpi, but " + why, **{**MPI, **settings})


def test_values_of_the_options_that_are_none() -> None:
    body, wrong = "on_ranks(sums)", "RINGDP_GPU_TRANSPORT=ucx is not one of auto, nccl, mpi, host"
    says(body, wrong, RINGDP_GPU_TRANSPORT="ucx")
    wrong = "RINGDP_MPI_TAKES_GPU_MEMORY=maybe is not one of auto, yes, no"
    says(body, wrong, RINGDP_MPI_TAKES_GPU_MEMORY="maybe")


# --- under mpirun, where each rank has an environment of its own --------------------------------------------------

RANKS = """
import os, sys
rank = int(os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ["PMI_RANK"])
import numpy as np, standin
standin.use()
{settings}
import cupy, ringdp, ringdp.cupy as rdp
from counting import ways
ringdp.init()
x = cupy.array(np.arange(300_000, dtype=np.float32) % 1000 * (rank + 1))
with cupy.cuda.Stream():
    try:
        rdp.allreduce(x)  # finds the way
        result = []
        went = ways(lambda: result.append(rdp.allreduce(x, op=rdp.Sum).get()))
    except ringdp.RingdpError as error:
        print("raised", error, flush=True)
    else:
        assert (result[0] == np.arange(300_000) % 1000 * 3).all()
        print("went", went, flush=True)
ringdp.shutdown()
"""


def under_mpirun(settings: str, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {**environment(), **MPI, "PYTHONPATH": str(TESTS), "RINGDP_TIMEOUT": "20", **environ}
    words = [mpirun(), "-n", "2", sys.executable, "-c", RANKS.format(settings=settings)]
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=LIMIT)


@needs_kernels
def test_two_processes() -> None:
    done = under_mpirun("")
    assert done.stdout.count("went ['by_mpi']") == 2, done.stdout + done.stderr


@pytest.mark.parametrize("says_no", [0, 1])
def test_one_mpi_that_says_no_is_enough(says_no: int) -> None:
    """The others' is not tried either: in memory that nobody may touch."""
    no = f'if rank == {says_no}: os.environ["RINGDP_MPI_TAKES_GPU_MEMORY"] = "no"'
    why = f"the MPI of rank {says_no} says that it takes no memory of GPUs"
    done = under_mpirun(no, RINGDP_STANDIN_OPEN="")
    assert done.stdout.count(f"RINGDP_GPU_TRANSPORT=mpi, but {why}") == 2, done.stdout + done.stderr
    without = {"RINGDP_STANDIN_OPEN": "", "RINGDP_GPU_TRANSPORT": "auto"}
    done = under_mpirun(no + "\n" + NO_NCCL, **without)
    assert done.stdout.count("went ['by_host_memory']") == 2, done.stdout + done.stderr
    assert done.stderr.count(f", and {why}") == 1, done.stderr


def test_ranks_that_want_other_ways_are_told_so() -> None:
    done = under_mpirun('if rank == 1: os.environ["RINGDP_GPU_TRANSPORT"] = "host"')
    why = "RINGDP_GPU_TRANSPORT=mpi, but rank 1 has RINGDP_GPU_TRANSPORT=host"
    assert done.stdout.count(why) == 2, done.stdout + done.stderr


def test_one_process_whose_mpi_does_not_do_what_it_says() -> None:
    """Its neighbour sees other bytes, or it does: all ranks hear of it, and go another way together."""
    elsewhere = 'if rank == 1: os.environ["RINGDP_STANDIN_OPEN"] = "elsewhere"\n'
    done = under_mpirun(elsewhere)
    assert done.stdout.count("raised") == 2 and "known bytes that MPI brought" in done.stdout, done.stdout
    done = under_mpirun(elsewhere + NO_NCCL, RINGDP_GPU_TRANSPORT="auto")
    assert done.stdout.count("went ['by_host_memory']") == 2, done.stdout + done.stderr


# --- the probe ----------------------------------------------------------------------------------------------------


def test_known_values_that_come_out_wrong() -> None:
    wrong = r"GPU \d \(stand-in\): of 525288 known bytes that MPI brought from rank \d's GPU \d+ are wrong"
    elsewhere = {"RINGDP_STANDIN_OPEN": "elsewhere"}
    says(
        "on_ranks(sums, size=3)",
        r"GpuError: rank \d: RINGDP_GPU_TRANSPORT=mpi, but rank 0: " + wrong,
        **{**MPI, **elsewhere},
    )
    said = takes(NO_NCCL + "on_ranks(way, size=3)", "by_host_memory", **{**AUTO, **elsewhere})
    assert "through host memory: rank 0 has no NCCL" in said and "known bytes that MPI brought" in said, said


@needs_kernels
@pytest.mark.parametrize(
    ("kernel", "what"),
    [
        ("ringdp_scale_float32", "the sum of known values"),
        ("ringdp_reduce_float32_max", "the maximum of known values"),
    ],
)
def test_a_wrong_kernel_is_noticed_before_it_is_used(kernel: str, what: str) -> None:
    says("on_ranks(sums)", f"GpuError: .*{what}", **MPI, RINGDP_STANDIN_NO_KERNEL=kernel)


# --- events ---------------------------------------------------------------------------------------------------------

HELD = """
import ctypes
from cupy.driver import inside
library = ctypes.CDLL(os.environ["RINGDP_CUDA_LIBRARY"])
library.standin_hold.argtypes = [ctypes.c_void_p]

# What the stream has still to write is exchanged: the stream is held, the host is not.
def held(call, wanted, late=True):
    n, rank = ringdp.size(), ringdp.rank()
    x, y = cupy.array(np.zeros(6000, np.float32)), cupy.array(np.arange(6000, dtype=np.float32) + rank)
    x.get(), y.get()
    rdp.barrier()
    with inside(x.device.id):
        hold = library.standin_hold(cupy.cuda.get_current_stream().ptr)
    x[...] = y
    handle = call(x)
    time.sleep(0.2)
    early = handle.poll()
    rdp.barrier()
    library.standin_release(hold)
    got = rdp.synchronize(handle)
    got = (got[0] if isinstance(got, tuple) else got).get()
    assert not early
    return (got == wanted(np.arange(6000, dtype=np.float32), n)).all()

CASES = [
    (lambda x: rdp.allreduce_async(x, op=rdp.Sum), lambda i, n: i * n + n * (n - 1) // 2),
    (lambda x: rdp.allreduce_async_(x, op=rdp.Sum), lambda i, n: i * n + n * (n - 1) // 2),
    (lambda x: rdp.broadcast_async(x, 1), lambda i, n: i + 1),
    (lambda x: rdp.allgather_async(x), lambda i, n: np.concatenate([i + r for r in range(n)])),
]
"""


@needs_kernels
def test_messages_wait_for_the_stream_and_the_host_does_not() -> None:
    body = """
    def cases():
        sums(100)
        for call, wanted in CASES:
            assert held(call, wanted)
    on_ranks(cases, size=3)
    """
    works(HELD + textwrap.dedent(body), **MPI)


@needs_kernels
def test_without_that_wait_the_numbers_are_wrong() -> None:
    """Events that say too early that they have passed: as if the core did not ask."""
    body = """
    def cases():
        sums(100)
        rdp.barrier()
        for call, wanted in CASES:
            library.standin_events_pass(1)
            try:
                assert not held(call, wanted)
            except AssertionError as error:
                raise AssertionError("right numbers, or an operation that is not done early") from error
    on_ranks(cases, size=3)
    """
    works(HELD.replace("assert not early", "pass") + textwrap.dedent(body), **MPI)


def test_messages_wait_for_the_place_of_what_comes() -> None:
    """The stream has still to write where an output lies, which it had given to another array before."""
    body = """
    def gathered():
        n, rank = ringdp.size(), ringdp.rank()
        x = cupy.array(np.arange(5000, dtype=np.float32) + rank)
        before = cupy.empty(5000 * n, np.float32)
        x.get()
        rdp.allgather(cupy.array(np.ones(3)))  # finds the way
        if rank > 0:
            rdp.barrier()
        handle = rdp.allgather_async(x, name="x")
        if rank == 0:  # the others come when all is held up here
            with inside(x.device.id):
                hold = library.standin_hold(cupy.cuda.get_current_stream().ptr)
            address = before.data.ptr
            del before  # and poisoned, in the stream
            rdp.barrier()
            time.sleep(0.3)
            library.standin_release(hold)
        got = rdp.synchronize(handle)
        assert rank > 0 or got.data.ptr == address
        assert (got.get() == np.concatenate([np.arange(5000) + r for r in range(n)])).all()
    on_ranks(gathered, size=3)
    """
    works(HELD + textwrap.dedent(body), **MPI)


@needs_kernels
def test_memory_in_between_is_not_written_while_kernels_read_it() -> None:
    """A reduce-scatter is over for the host when its kernels are launched, and the next one's messages come at once."""
    body = """
    def many():
        n, rank = ringdp.size(), ringdp.rank()
        sums(100)
        xs = [cupy.array(np.full(30_000, 10 * i + rank, np.float32)) for i in range(24)]
        for x in xs:
            x.get()
        rdp.barrier()
        handles = [rdp.reducescatter_async(x, op=rdp.Sum, name=f"x{i}") for i, x in enumerate(xs)]
        for i, handle in enumerate(handles):
            assert (rdp.synchronize(handle).get() == 10 * i * n + n * (n - 1) // 2).all(), i
    on_ranks(many, size=3)
    """
    works(body, **MPI, RINGDP_STANDIN_DELAY_US="4000")


@needs_kernels
def test_the_gpu_copies_what_a_rank_sends_to_itself() -> None:
    """The host of a GPU could not: only the stand-in's can."""
    body = """
    import ctypes
    library = ctypes.CDLL(os.environ["RINGDP_CUDA_LIBRARY"])
    copies = lambda: library.standin_calls(b"cuMemcpyDtoDAsync_v2")
    def each():
        sums(100)
        x = cupy.array(np.ones(6, np.float32))
        calls = {
            "all-gather": lambda: rdp.allgather(x),
            "all-to-all": lambda: rdp.alltoall(x, splits=np.array([3, 3])),
            "reduce-scatter": lambda: rdp.reducescatter(x),
            "all-reduce": lambda: rdp.allreduce(x),
        }
        for name, call in calls.items():
            rdp.barrier()
            before = copies()
            rdp.barrier()
            call()
            rdp.barrier()
            assert copies() - before == 2, (name, copies() - before)
        rdp.barrier()
        before = copies()
        rdp.barrier()
        rdp.broadcast(x, 1)
        rdp.barrier()
        assert copies() - before == 1
    on_ranks(each)
    """
    works(body, **MPI)


# --- what goes wrong --------------------------------------------------------------------------------------------------


@needs_kernels
def test_no_memory_for_what_comes_in_between_fails_on_all_ranks_and_touches_nothing() -> None:
    body = """
    import ctypes, pytest
    library = ctypes.CDLL(os.environ["RINGDP_CUDA_LIBRARY"])
    errors = []
    def full():
        sums(100)
        x = cupy.array(np.full(900_000, ringdp.rank(), np.float32))
        rdp.barrier()
        if ringdp.rank() == 0:
            library.standin_fail(b"cuMemAlloc_v2", 1, 2)  # of one rank, whichever comes first
        rdp.barrier()
        with pytest.raises(ringdp.PeerError) as raised:
            rdp.allreduce_(x, op=rdp.Sum, name="x")
        errors.append(str(raised.value))
        assert (x.get() == ringdp.rank()).all()
        sums()
    on_ranks(full, size=3)
    assert sum("no memory for" in e for e in errors) == 1, errors
    assert sum("gave up this operation" in e for e in errors) == 2, errors
    """
    works(body, **MPI)


@needs_kernels
def test_a_stream_that_does_not_come_to_its_end_in_time_fails_on_all_ranks() -> None:
    """Nothing has been sent: the output is untouched, and what comes later works."""
    body = """
    import pytest
    def late():
        sums(100)
        x = cupy.array(np.full(5000, ringdp.rank(), np.float32))
        x.get()
        rdp.barrier()
        if ringdp.rank() == 0:
            with inside(x.device.id):
                hold = library.standin_hold(cupy.cuda.get_current_stream().ptr)
        with pytest.raises(ringdp.DeadlineError, match="did not complete within RINGDP_TIMEOUT"):
            rdp.allreduce_(x, op=rdp.Sum, name="x")
        if ringdp.rank() == 0:
            library.standin_release(hold)
        assert (x.get() == ringdp.rank()).all()
        for _ in range(3):
            sums(100)
    on_ranks(late, size=3)
    """
    works(HELD + textwrap.dedent(body), **MPI, RINGDP_TIMEOUT="2")


@needs_kernels
def test_few_at_a_time_hold_memory_in_between() -> None:
    """However many are submitted: each has as much as its tensor."""
    body = """
    import ctypes
    library = ctypes.CDLL(os.environ["RINGDP_CUDA_LIBRARY"])
    def many():
        number = lane("plan")
        xs = [cupy.array(np.full(300_000, ringdp.rank() + i, np.float32)) for i in range(40)]
        leave(number, 0, xs[0]).wait()
        rdp.barrier()
        before = library.standin_calls(b"cuMemAlloc_v2")
        rdp.barrier()
        handles = [leave(number, 1 + i, x) for i, x in enumerate(xs[1:])]
        for i, handle in enumerate(handles):
            assert (handle.wait().get() == 3 * (i + 1) + 3).all()
        rdp.barrier()
        assert library.standin_calls(b"cuMemAlloc_v2") - before <= 3 * 6
    on_ranks(many, size=3)
    """
    works(body, **MPI)


def test_no_memory_for_an_output() -> None:
    body = """
    def gathered():
        rdp.allgather(cupy.array(np.ones((150, 1000))))
    on_ranks(gathered)
    """
    says(body, "no memory for", **MPI, RINGDP_STANDIN_MEMORY="3000000")
