"""What goes wrong with GPUs, on purpose, and whether the stand-ins would show a mistake in the core."""

from __future__ import annotations

import os
import re
import subprocess
import textwrap

import pytest
from gpu.processes import run, says, works

# Not by their names alone: a test that is called "mpi" is left out where there is no mpirun.
WAYS = [pytest.param(way, id=f"by_{way}") for way in ("host", "nccl", "mpi")]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("hosts", [(), (0, 0), (0, 1)], ids=["messages", "one host", "two hosts"])
def test_sums(way: str, hosts: tuple[int, ...]) -> None:
    works(f"on_ranks(sums, hosts={hosts})", RINGDP_GPU_TRANSPORT=way)


@pytest.mark.parametrize("way", ["host", "nccl"])
def test_without_its_waits_the_sums_are_wrong(way: str) -> None:
    done = run(
        "on_ranks(sums)",
        RINGDP_GPU_TRANSPORT=way,
        RINGDP_STANDIN_DROP_WAIT="all",
        RINGDP_STANDIN_DELAY_US="2000",
    )
    # Or what was still in use has been given back.
    wrong = "wrong sums|sum of known values came out wrong|stand-in: .* (it has|after it had) been freed"
    assert done.returncode != 0 and re.search(wrong, done.stderr), done.stderr


def test_a_wrong_offset_is_noticed() -> None:
    wrong = "wrong sums|sum of known values came out wrong"
    says("on_ranks(sums)", wrong, RINGDP_GPU_TRANSPORT="host", RINGDP_STANDIN_WRONG_OFFSET="5")
    says("on_ranks(sums)", "wrong sums", RINGDP_GPU_TRANSPORT="host", RINGDP_STANDIN_WRONG_OFFSET="9")


EVERYTHING = """
def everything(whole, chunked):
    rdp.allreduce(cupy.array(np.ones(1)))  # finds the way
    for dtype in ("float32", "float16", "int32", "int16", "uint8"):
        is_float = dtype.startswith("float")
        direct = whole if dtype != "int16" else chunked
        sums = [1 + 2 * i for i in range(7)]
        goes(["by_nccl"] if dtype != "int16" else chunked, dtype, sums, lambda x: rdp.allreduce(x, op=rdp.Sum))
        goes(direct, dtype, [3 * s for s in sums], lambda x: rdp.allreduce(x, op=rdp.Sum, postscale_factor=3.0))
        halves = [s / 2 if is_float else s // 2 for s in sums]
        goes(["by_nccl"] if is_float else direct, dtype, halves, lambda x: rdp.allreduce(x))
        maxima = [1 + i for i in range(7)]
        by = chunked if is_float or dtype == "int16" else ["by_nccl"]
        goes(by, dtype, maxima, lambda x: rdp.allreduce(x, op=rdp.Max))
        mine = sums[:4] if ringdp.rank() == 0 else sums[4:]
        goes(chunked, dtype, mine, lambda x: rdp.reducescatter(x, op=rdp.Sum))
        rows = [*range(7), *range(1, 8)]
        goes(["by_nccl"], dtype, rows, lambda x: rdp.allgather(x))
        goes(["by_nccl"], dtype, list(range(7)), lambda x: rdp.broadcast(x, 0))
    x = cupy.array(np.array([np.nan, 1.0, np.nan], np.float32) if ringdp.rank() else np.ones(3, np.float32))
    assert np.isnan(rdp.allreduce(x, op=rdp.Min).get()).tolist() == [True, False, True]
"""


def test_kernels_of_ours_do_what_nccl_does_not() -> None:
    works(
        EVERYTHING + 'on_ranks(lambda: everything(["by_nccl"], ["by_chunks"]))', RINGDP_GPU_TRANSPORT="nccl"
    )


def test_without_kernels_it_goes_through_host_memory() -> None:
    works(
        EVERYTHING + 'on_ranks(lambda: everything(["by_host_memory"], ["by_host_memory"]))',
        RINGDP_GPU_TRANSPORT="nccl",
        RINGDP_STANDIN_FAIL="cuModuleLoadData:-1:209",
    )


@pytest.mark.parametrize(
    ("hosts", "shared"),
    [((), 0), ((0, 0, 0), 1), ((0, 0, 1, 1), 1)],
    ids=["messages", "one host", "two hosts"],
)
def test_through_host_memory_is_through_what_ranks_of_a_host_share(
    hosts: tuple[int, ...], shared: int
) -> None:
    """Messages would give the same sums, and later."""
    body = f"""
    def one_sum():
        sums(10)  # finds the way
        done = counted(lambda: sum_of(np.ones(300_000, np.float32)))
        assert (done["by_host_memory"], done["in_host"]) == (1, {shared}), done
    on_ranks(one_sum, size={len(hosts) or 2}, hosts={hosts})
    """
    algorithm = "two_level" if len(set(hosts)) > 1 else "auto"
    works(body, RINGDP_GPU_TRANSPORT="host", RINGDP_ALGORITHM=algorithm)


@pytest.mark.parametrize(
    ("kernel", "what"),
    [
        ("ringdp_scale_float32", "the sum of known values"),
        ("ringdp_reduce_float32_max", "the maximum of known values"),
    ],
)
def test_a_wrong_kernel_is_noticed_before_it_is_used(kernel: str, what: str) -> None:
    body = """
        def raises():
            try:
                sums()
            except ringdp.GpuError as error:
                assert WHAT in str(error), error
            else:
                raise AssertionError("no error")
        on_ranks(raises)
    """
    works(body.replace("WHAT", repr(what)), RINGDP_STANDIN_NO_KERNEL=kernel, RINGDP_GPU_TRANSPORT="nccl")


def test_without_the_abort_a_gpu_waits_for_ever() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run(
            "on_ranks(until_it_raises)",
            limit=15,
            RINGDP_STANDIN_NCCL_FAIL="async:12:6",
            RINGDP_STANDIN_NCCL_NO_ABORT="1",
        )


def test_sets_that_overlap_in_other_orders_on_each_rank() -> None:
    """What the agreed order of launches is for: the stand-in blocks without it, as GPUs may."""
    body = """
    def both_sets():
        first, second = rdp.add_process_set([0, 1]), rdp.add_process_set([1, 2])
        third = rdp.add_process_set([0, 2])
        mine = [s for s in (first, second, third) if s.included()]
        x = cupy.array(np.ones(1000, np.float32))
        for k in range(80):  # so often that some come in other orders on each rank
            order = mine if (ringdp.rank() + k) % 2 else mine[::-1]
            handles = [rdp.allreduce_async(x, name=f"x{i}", op=rdp.Sum, process_set=s) for i in range(3) for s in order]
            for handle in handles:
                assert (rdp.synchronize(handle).get() == 2).all()
    on_ranks(both_sets, size=3)
    """
    works(body, RINGDP_GPU_TRANSPORT="nccl")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("hosts", [(), (0, 0, 0), (0, 0, 1)], ids=["messages", "one host", "two hosts"])
def test_buckets_of_plans_beside_named_operations(way: str, hosts: tuple[int, ...]) -> None:
    body = """
    def steps():
        rank = ringdp.rank()
        first, second = lane("first"), lane("second")
        for step in range(4):
            xs = [cupy.array(np.arange(n, dtype=np.float32) % 97 * (rank + 1)) for n in (1, 1000, 70_000, 0)]
            ys = [cupy.array(np.full(n, rank + step, np.float32)) for n in (5, 300_000)]
            named = [rdp.allreduce_async(ys[0], name=f"n{step}", op=rdp.Sum)] if rank == 1 else []
            one = [leave(first, 10 * step + i, x) for i, x in enumerate(xs)]
            other = [leave(second, 10 * step + i, y) for i, y in enumerate(ys)]
            named = named or [rdp.allreduce_async(cupy.array(np.full(5, rank + step, np.float32)), name=f"n{step}",
                                                  op=rdp.Sum)]
            for handle, x in zip(one, xs):
                assert (handle.wait().get() == np.arange(x.size, dtype=np.float32) % 97 * 6).all()
            for handle in other:
                assert (handle.wait().get() == 3 + 3 * step).all()
            assert named[0].wait().size == 5
    on_ranks(steps, size=3, hosts=HOSTS)
    """
    works(body.replace("HOSTS", repr(hosts)), RINGDP_GPU_TRANSPORT=way)


@pytest.mark.parametrize("way", WAYS)
def test_a_bucket_that_is_another_one_elsewhere_fails_on_all_ranks(way: str) -> None:
    body = """
    def differ():
        import pytest
        number = lane("plan")
        assert leave(number, 0, cupy.array(np.ones(10, np.float32))).wait().get()[0] == ringdp.size()
        x = cupy.array(np.ones(1000, np.float32))
        with pytest.raises((ringdp.MismatchError, ringdp.PeerError), match="bucket 1 of plan 1"):
            leave(number, 1, x, digest=7 + ringdp.rank()).wait()
        assert (x.get() == 1).all()
        with pytest.raises(ringdp.PeerError, match="plan 1 has failed"):
            leave(number, 2, x).wait()
        sums(100)
    on_ranks(differ)
    """
    works(body, RINGDP_GPU_TRANSPORT=way)


@pytest.mark.parametrize("way", WAYS)
def test_a_bucket_that_a_rank_leaves_out_fails_in_time(way: str) -> None:
    body = """
    def leaves_out():
        import pytest
        number = lane("plan")
        x = cupy.array(np.ones(1000, np.float32))
        assert leave(number, 0, x).wait().get()[0] == ringdp.size()
        if ringdp.rank() == 0:
            with pytest.raises(ringdp.DeadlineError, match="bucket 1 of plan 1"):
                leave(number, 1, x).wait()
        else:
            time.sleep(3)
        sums(100)
    on_ranks(leaves_out)
    """
    works(body, RINGDP_GPU_TRANSPORT=way, RINGDP_TIMEOUT="2")


@pytest.mark.parametrize("way", WAYS)
def test_a_rank_that_is_late_while_the_way_is_found_is_an_error_on_all(way: str) -> None:
    """What has been told cannot be taken back, so nothing begins anew; and nothing hangs."""
    body = """
    def late():
        import pytest
        number = lane("plan")
        x = cupy.array(np.ones(1000, np.float32))
        if ringdp.rank() == 0:
            for index in (0, 1):
                with pytest.raises((ringdp.DeadlineError, ringdp.PeerError)):
                    leave(number, index, x).wait()
        else:
            time.sleep(3)
        for _ in range(2):
            with pytest.raises(ringdp.RingdpError):
                sums(100)
        assert (x.get() == 1).all()
    on_ranks(late)
    """
    works(body, limit=40, RINGDP_GPU_TRANSPORT=way, RINGDP_TIMEOUT="2")


@pytest.mark.parametrize("way", WAYS)
def test_a_bucket_whose_rank_has_left_fails_soon(way: str) -> None:
    body = """
    def leaves():
        import pytest
        number = lane("plan")
        x = cupy.array(np.ones(1000, np.float32))
        assert leave(number, 0, x).wait().get()[0] == ringdp.size()
        if ringdp.rank() == 0:
            with pytest.raises(ringdp.PeerError, match="rank 1 has shut ringdp down"):
                leave(number, 1, x).wait()
    on_ranks(leaves)
    """
    works(body, limit=40, RINGDP_GPU_TRANSPORT=way, RINGDP_TIMEOUT="1000")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("hosts", "size", "algorithm"),
    [((), 3, "auto"), ((0, 0, 0), 3, "auto"), ((0, 0, 1), 3, "auto"), ((), 4, "halving_doubling")],
    ids=["messages", "one host", "two hosts", "chunks in another order than ranks"],
)
def test_halves_of_a_bucket(way: str, hosts: tuple[int, ...], size: int, algorithm: str) -> None:
    """Whatever the ranks share, the own chunk is that of messages."""
    body = """
    from ringdp import _core
    Half = _core.schedules.Half
    def halves():
        number, engine = lane("plan"), world.current().engine
        n = ringdp.size()
        for i, count in enumerate((1, 5, 1000, 60_001)):
            wanted = np.arange(count, dtype=np.float32) % 97 * (n * (n + 1) // 2)
            x = cupy.array(np.arange(count, dtype=np.float32) % 97 * (ringdp.rank() + 1))
            whole = leave(number, 3 * i + 2, cupy.array(x.get())).wait().get()
            assert (whole == wanted).all()
            got = leave(number, 3 * i, x, half=Half.reduce_scatter).wait().get()
            own = slice(*engine.own_chunk(0, count, int(Dtype.float32), True))
            assert (got[own] == wanted[own]).all()
            mine = np.full(count, 77, np.float32)
            mine[own] = got[own]
            y = cupy.array(mine)
            assert (leave(number, 3 * i + 1, y, half=Half.all_gather).wait().get() == wanted).all()
    """
    body = textwrap.dedent(body) + f"on_ranks(halves, size={size}, hosts={hosts})"
    works(body, RINGDP_GPU_TRANSPORT=way, RINGDP_ALGORITHM=algorithm)


def test_a_name_with_tensors_on_a_gpu_and_in_host_memory_is_an_error_on_all() -> None:
    body = """
    def mixed():
        import pytest
        x = np.ones(10, np.float32)
        with pytest.raises(ringdp.MismatchError, match="on a GPU"):
            if ringdp.rank() == 0:
                rdp.allreduce(cupy.array(x), name="x")
            else:
                ringdp.allreduce(x, name="x")
    on_ranks(mixed)
    """
    works(body)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_given_up_is_given_back_at_once(way: str) -> None:
    """No cycle keeps the memory of a GPU until Python collects its garbage."""
    body = """
    import gc, weakref
    gc.disable()
    def gathered():
        x = cupy.array(np.ones(1000))
        output = rdp.allgather(x)
        parts, rows = rdp.alltoall(x, splits=np.array([400, 600]))
        total = rdp.allreduce(x)
        kept = [weakref.ref(one) for one in (x, output, parts, total)]
        assert output.get().sum() == 2000 and parts.size == sum(rows)
        del x, output, parts, total
        rdp.allreduce(cupy.array(np.ones(1)))  # lets go of what is done
        assert not [ref() for ref in kept if ref() is not None]
    on_ranks(gathered)
    """
    works(body, RINGDP_GPU_TRANSPORT=way)


def test_a_second_gpu_of_a_rank_is_refused() -> None:
    body = """
    def second():
        sums(10)
        with cupy.cuda.Device(3):
            rdp.allreduce(cupy.array(np.ones(3)), name="x")
    on_ranks(second, size=1)
    """
    says(body, r"UsageError: rank 0: 'x' lies on GPU 3 .*exchanges tensors of GPU 0.*local_rank")


def test_no_gpu_says_why() -> None:
    body = """
    os.environ["RINGDP_CUDA_LIBRARY"] = "no-such-library.so"
    assert not _core.gpu.driver()["usable"] and "no-such-library" in _core.gpu.driver()["missing"]
    on_ranks(sums)
    """
    says(body, "GpuError: this process has no GPU that ringdp can use: no-such-library")


def test_no_nccl_goes_through_host_memory_and_says_so() -> None:
    body = """
    os.environ["RINGDP_NCCL_LIBRARY"] = "no-such-library.so"
    on_ranks(sums)
    """
    done = run(body)
    assert done.returncode == 0, done.stderr
    assert "through host memory: rank 0 has no NCCL (pip install" in done.stderr


def test_nccl_that_is_insisted_on_is_not_replaced() -> None:
    body = """
    os.environ["RINGDP_NCCL_LIBRARY"] = "no-such-library.so"
    on_ranks(sums)
    """
    says(body, "RINGDP_GPU_TRANSPORT=nccl, but rank 0 has no NCCL", RINGDP_GPU_TRANSPORT="nccl")


def test_ranks_that_share_a_gpu_go_through_host_memory() -> None:
    body = """
    def shared():
        with cupy.cuda.Device(0), cupy.cuda.Stream():
            sums()
    run_local(2, 1, [], shared)
    """
    done = run(body)
    assert done.returncode == 0, done.stderr
    assert "through host memory: rank 0 and rank 1 use the same GPU" in done.stderr


@pytest.mark.parametrize("hosts", [(), (0, 0), (0, 0, 1, 1)], ids=["messages", "one host", "two hosts"])
def test_no_pinned_memory_fails_the_operation_on_all_ranks(hosts: tuple[int, ...]) -> None:
    """Those of the others that wait for it in shared memory, for its messages, or on another host."""
    size = max(2, len(hosts))
    body = f"""
    raised = []
    def fails():
        sums()
        before = time.monotonic()
        try:
            sums(10_000_000)
        except ringdp.errors.PeerError as error:
            raised.append((time.monotonic() - before, str(error)))
        sums(1000)  # goes on
    os.environ["RINGDP_STANDIN_LITTLE_PINNED"] = "1:16000000"
    on_ranks(fails, {size}, {hosts})
    assert len(raised) == {size} and max(raised)[0] < 4, raised
    print(*[text for _, text in raised], sep="\\n")
    """
    errors = works(body, RINGDP_GPU_TRANSPORT="host")
    why = r"no memory for \d+ bytes of pinned host memory; of its own \d+ of \d+ bytes are free"
    assert len(re.findall(why, errors)) == 1, errors


@pytest.mark.parametrize("way", WAYS)
def test_a_gpu_that_fails_names_the_call(way: str) -> None:
    says(
        "on_ranks(sums)",
        r"GpuError: (rank \d: )?.*CUDA_ERROR_ILLEGAL_ADDRESS",
        RINGDP_GPU_TRANSPORT=way,
        RINGDP_STANDIN_FAIL="cuEventRecord:9:700",
    )


def test_a_communicator_that_cannot_be_made_is_told_to_all() -> None:
    done = run("on_ranks(sums)", RINGDP_STANDIN_NCCL_FAIL="ncclCommInitRankConfig:1:2")
    assert done.returncode == 0, done.stderr
    assert "through host memory: rank" in done.stderr and "ncclCommInitRankConfig failed" in done.stderr


def test_an_error_of_nccl_ends_all_ranks() -> None:
    """What was under way ends with anything in its output, so the next call must raise."""
    says(
        "on_ranks(until_it_raises)",
        "GpuError: .*ncclAllReduce failed",
        RINGDP_STANDIN_NCCL_FAIL="ncclAllReduce:5:1",
    )
    says("on_ranks(until_it_raises)", "GpuError: .*NCCL failed", RINGDP_STANDIN_NCCL_FAIL="async:12:6")


@pytest.mark.parametrize("hosts", [(), (0, 0, 0), (0, 0, 1)], ids=["messages", "one host", "two hosts"])
@pytest.mark.parametrize("fault", ["ncclAllReduce:8:1", "async:15:6"])
def test_a_rank_that_fails_tells_the_others_at_once(fault: str, hosts: tuple[int, ...]) -> None:
    """Their GPUs wait for its GPU: long before any deadline all are let go, and each rank raises."""
    body = """
    on_ranks(lambda: each_raises(lambda: until_it_raises(1000)), size=3, hosts=HOSTS)
    assert len(raised) == 3 and "GpuError" in [kind for kind, _ in raised], raised
    """
    works(body.replace("HOSTS", repr(hosts)), limit=40, RINGDP_STANDIN_NCCL_FAIL=fault, RINGDP_TIMEOUT="1000")


def test_what_never_ends_on_a_gpu_is_ended_in_time() -> None:
    says(
        "on_ranks(until_it_raises)",
        "GpuError: .*did not complete on the GPU within RINGDP_TIMEOUT",
        RINGDP_STANDIN_NCCL_FAIL="async:12:-1",
        RINGDP_TIMEOUT="2",
    )


def test_after_a_failure_every_call_says_so() -> None:
    body = """
    import pytest
    def goes_on():
        with pytest.raises(ringdp.RingdpError):
            until_it_raises()
        for call in (lambda: world.current().engine.is_idle(0), sums, rdp.barrier):
            with pytest.raises(ringdp.RingdpError):
                call()
    on_ranks(goes_on)
    """
    works(body, RINGDP_STANDIN_NCCL_FAIL="async:12:6")


def test_communicators_end_without_an_abort() -> None:
    body = """
    on_ranks(sums, size=3)
    assert ended_communicators() == (3, 0)
    """
    works(body, RINGDP_GPU_TRANSPORT="nccl")


def test_an_output_for_which_there_is_no_memory() -> None:
    body = """
    def gathered():
        x = cupy.array(np.ones((150, 1000)))
        rdp.allgather(x)
    on_ranks(gathered)
    """
    says(body, "no memory for", RINGDP_STANDIN_MEMORY="2000000", RINGDP_GPU_TRANSPORT="host")
    says(body, "no memory for its output", RINGDP_STANDIN_MEMORY="2000000", RINGDP_GPU_TRANSPORT="nccl")


def test_the_host_cannot_touch_device_memory() -> None:
    done = run("import ctypes; ctypes.string_at(cupy.array(np.ones(3)).data.ptr, 3)")
    assert done.returncode < 0  # SIGSEGV


def test_nothing_is_left_behind() -> None:
    files = set(os.listdir("/dev/shm"))
    works("on_ranks(sums)", RINGDP_GPU_TRANSPORT="nccl")
    run("on_ranks(sums)", RINGDP_STANDIN_NCCL_FAIL="async:12:6")
    assert not {f for f in set(os.listdir("/dev/shm")) - files if "standin" in f}
