"""GPU tensors in two levels: which steps there are, that they overlap, and what happens when one fails."""

from __future__ import annotations

import re
import textwrap

import pytest
from gpu.processes import run

TWO_HOSTS = (0, 0, 1, 1)
BEGIN = """
def on_two_hosts(body):
    on_ranks(body, size=4, hosts=HOSTS)
"""


def works(body: str, limit: float = 60, hosts: tuple[int, ...] = TWO_HOSTS, **environ: str) -> str:
    code = BEGIN.replace("HOSTS", repr(hosts)) + textwrap.dedent(body)
    done = run(code, limit, **{"RINGDP_GPU_TRANSPORT": "two_level", **environ})
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


# --- which steps --------------------------------------------------------------------------------------------


def test_each_segment_takes_three_steps_that_overlap() -> None:
    """NCCL twice, host memory once. An all-gather begins while the next chunk is between the hosts: that one rank after
    the other would be slower, and not wrong, so nothing else shows it."""
    body = """
    def steps():
        sums(10)  # finds the way
        done = counted(lambda: sum_of(np.ones(1000, np.float32)))
        assert {name: done[name] for name in done if name != "named"} == {
            "by_two_levels": 1, "by_nccl": 2, "by_host_memory": 1}, done
        for megabytes, segments in ((1, 1), (4, 4), (20, 8)):
            x = np.arange(megabytes << 18, dtype=np.float32) % 1000 * (ringdp.rank() + 1)
            got = []
            done = counted(lambda: got.append(sum_of(x)))
            assert (got[0] == np.arange(x.size) % 1000 * 10).all()
            assert (done["by_two_levels"], done["by_nccl"], done["by_host_memory"]) == (1, 2 * segments, segments), done
            assert "by_chunks" not in done
            assert done["overlapped"] >= (1 if segments >= 4 else 0), done
    on_two_hosts(steps)
    """
    works(body)


def test_what_nccl_does_not_reduce_our_kernels_do_in_the_host() -> None:
    body = """
    def steps():
        sums(10)
        x = np.array([np.nan, 1, 2, 3] if ringdp.rank() == 2 else [0, 1, np.nan, ringdp.rank()], np.float32)
        got = []
        for op in (rdp.Max, rdp.Min):
            done = counted(lambda: got.append(rdp.allreduce(cupy.array(x), op=op).get()))
            assert (done["by_chunks"], done["by_nccl"], done["by_host_memory"]) == (1, 1, 1), done
        for one, last in zip(got, (3, 0)):
            assert np.isnan(one).tolist() == [True, False, True, False] and one[1] == 1 and one[3] == last
        # A number of elements that the ranks of a host do not divide, and one that leaves some with none.
        for count in (1, 7, 1_000_001):
            done = counted(lambda: got.append(sum_of(np.arange(count, dtype=np.float32) % 100)))
            assert done["by_chunks"] == 1 and (got[-1] == np.arange(count) % 100 * 4).all(), (count, done)
        assert sum_of(np.ones(0, np.float32)).size == 0
    on_two_hosts(steps)
    """
    works(body)


def test_without_kernels_hosts_reduce_in_host_memory_what_nccl_does_not() -> None:
    body = """
    def steps():
        sums(10)
        done = counted(lambda: sum_of(np.ones(1000, np.float32)))
        assert (done["by_nccl"], done["by_host_memory"]) == (2, 1), done
        got = []
        done = counted(lambda: got.append(rdp.allreduce(cupy.array(np.arange(7, dtype=np.float32)), op=rdp.Max)))
        assert (done["by_nccl"], done["by_host_memory"]) == (1, 2), done
        assert got[0].get().tolist() == list(range(7))
    on_two_hosts(steps)
    """
    works(body, RINGDP_STANDIN_FAIL="cuModuleLoadData:-1:209")


def test_factors_and_divisors_count_once() -> None:
    body = """
    def factors():
        r = ringdp.rank()
        for dtype in ("float32", "float64", "float16", "int32", "int64", "uint8", "int16"):
            x = (np.arange(8 * 9).reshape(8, 9) % 7 + r).astype(dtype)
            total = (np.arange(8 * 9).reshape(8, 9) % 7) * 4 + 6
            mean = total / 4 if dtype.startswith("float") else total // 4
            for options, wanted in (
                ({"op": rdp.Average}, mean),
                ({"op": rdp.Sum, "prescale_factor": 2.0}, total * 2),
                ({"op": rdp.Sum, "postscale_factor": 3.0}, total * 3 if dtype != "uint8" else None),
                ({"op": rdp.Average, "prescale_factor": 4.0, "postscale_factor": 2.0}, total * 2),
            ):
                got = rdp.allreduce(cupy.array(x), **options).get()
                assert wanted is None or (got == wanted).all(), (dtype, options, got, wanted)
    on_two_hosts(factors)
    """
    works(body)


def test_everything_else_goes_through_host_memory() -> None:
    body = """
    def others():
        sums(10)
        x = cupy.array(np.arange(8, dtype=np.float32))
        for call in (lambda: rdp.allgather(x), lambda: rdp.broadcast(x, 1), lambda: rdp.alltoall(x),
                     lambda: rdp.reducescatter(x, op=rdp.Sum), lambda: rdp.allreduce(x, op=rdp.Adasum)):
            done = counted(call)
            assert done["by_host_memory"] == 1 and not {"by_nccl", "by_chunks", "by_two_levels"} & set(done), done
    on_two_hosts(others)
    """
    works(body)


def test_a_process_set_in_one_host_goes_by_nccl_and_one_of_other_places_through_host_memory() -> None:
    body = """
    def sets():
        r = ringdp.rank()
        host, across, all_of_them = (rdp.add_process_set(ranks) for ranks in ([0, 1], [1, 2], [0, 1, 2, 3]))
        x = np.ones(1000, np.float32)
        went = []
        for one in (host, across, all_of_them):
            if one.included():
                sum_of(x, process_set=one)  # finds the way
                went.append(ways(lambda: sum_of(x, process_set=one)))
        two_levels = ["by_nccl", "by_host_memory", "by_two_levels"]
        host_memory = ["by_host_memory"]
        assert went == [[["by_nccl"], two_levels], [["by_nccl"], host_memory, two_levels], [host_memory, two_levels],
                        [two_levels]][r], went
        assert rdp.remove_process_set(all_of_them)
        assert (sum_of(x) == 4).all()
    on_two_hosts(sets)
    """
    works(body)


def test_buckets_of_plans_beside_named_operations() -> None:
    body = """
    def steps():
        rank = ringdp.rank()
        first, second = lane("first"), lane("second")
        for step in range(4):
            xs = [cupy.array(np.arange(n, dtype=np.float32) % 97 * (rank + 1)) for n in (1, 1000, 700_000, 0)]
            ys = [cupy.array(np.full(n, rank + step, np.float32)) for n in (5, 3_000_000)]
            z = cupy.array(np.full(5, rank + step, np.float32))
            named = [rdp.allreduce_async(z, name=f"n{step}", op=rdp.Sum)] if rank == 1 else []
            one = [leave(first, 10 * step + i, x) for i, x in enumerate(xs)]
            other = [leave(second, 10 * step + i, y) for i, y in enumerate(ys)]
            named = named or [rdp.allreduce_async(z, name=f"n{step}", op=rdp.Sum)]
            for handle, x in zip(one, xs):
                assert (handle.wait().get() == np.arange(x.size, dtype=np.float32) % 97 * 10).all()
            for handle in other:
                assert (handle.wait().get() == 6 + 4 * step).all()
            assert (named[0].wait().get() == 6 + 4 * step).all()
        assert world.current().engine.counters()["by_two_levels"] >= 4 * 7
    on_two_hosts(steps)
    """
    works(body)


# --- without it ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "why"),
    [
        ({"RINGDP_NCCL_LIBRARY": "none.so"}, r"rank 0: NCCL cannot be had in its host: rank 0 has no NCCL"),
        (
            {"RINGDP_STANDIN_NCCL_FAIL": "ncclCommInitRankConfig:1:2"},
            r"rank \d: .*ncclCommInitRankConfig failed",
        ),
    ],
    ids=["no NCCL", "one host cannot"],
)
def test_where_a_host_has_no_nccl_all_go_through_host_memory(environ: dict[str, str], why: str) -> None:
    body = """
    os.environ.update(ENVIRON)
    def falls_back():
        sums(300_000)
        done = counted(lambda: sum_of(np.ones(1000, np.float32)))
        assert done["by_host_memory"] == 1 and not {"by_nccl", "by_two_levels"} & set(done), done
    on_two_hosts(falls_back)
    """
    said = works(body.replace("ENVIRON", repr(environ)))
    assert re.search(r"process set 0 exchanges GPU tensors through host memory: " + why, said), said
    assert said.count("through host memory") == 1, said


def test_ranks_of_one_host_that_share_a_gpu() -> None:
    body = """
    def shared():
        device = cupy.cuda.Device(min(ringdp.rank(), 2))
        with device, cupy.cuda.Stream():
            sums()
    run_local(4, 1, list((0, 0, 1, 1)), shared)
    """
    assert re.search(
        r"rank 2: NCCL cannot be had in its host: rank 2 and rank 3 use the same GPU", works(body)
    )


@pytest.mark.parametrize("hosts", [(0, 0, 0, 1), (0, 1, 2, 3)])
def test_hosts_with_other_numbers_of_ranks(hosts: tuple[int, ...]) -> None:
    said = works("on_two_hosts(sums)", hosts=hosts)
    assert "through host memory: rank 0 has RINGDP_GPU_TRANSPORT=two_level, which all" in said


# --- what goes wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["ncclReduceScatter:5:1", "ncclAllGather:20:1", "async:15:6"])
def test_a_failure_in_one_host_ends_all_ranks(fault: str) -> None:
    """Long before any deadline; the other host's GPUs and rings wait for it."""
    body = """
    on_two_hosts(lambda: each_raises(lambda: until_it_raises(2_000_000)))
    import re
    kinds = [kind for kind, _ in raised]
    assert len(raised) == 4 and "GpuError" in kinds, raised
    for kind, text in raised:
        assert kind == "GpuError" or re.search("rank . has (failed .on its GPU|shut ringdp down)", text), raised
    """
    works(body, limit=50, RINGDP_STANDIN_NCCL_FAIL=fault, RINGDP_TIMEOUT="1000")


def test_what_never_ends_on_one_gpu_ends_all_ranks_in_time() -> None:
    body = """
    on_two_hosts(lambda: each_raises(lambda: until_it_raises(1000)))
    assert len(raised) == 4 and "GpuError" in [kind for kind, _ in raised], raised
    """
    works(body, limit=50, RINGDP_STANDIN_NCCL_FAIL="async:25:-1", RINGDP_TIMEOUT="2")


def test_no_memory_for_a_step_fails_before_any_has_begun() -> None:
    """On all ranks, and nothing else: what needs none goes on."""
    body = """
    def too_much():
        import pytest
        sums(1000)
        x = cupy.array(np.ones(500_000, np.int16))
        with pytest.raises(ringdp.GpuError, match="a rank has no memory for what comes in between"):
            rdp.allreduce_(x, op=rdp.Sum)
        assert (x.get() == 1).all()
        sums(1000)
    on_two_hosts(too_much)
    """
    works(body, RINGDP_STANDIN_MEMORY="1900000")


def test_a_bucket_that_is_another_one_elsewhere_fails_on_all_ranks() -> None:
    body = """
    def differ():
        import pytest
        number = lane("plan")
        assert leave(number, 0, cupy.array(np.ones(10, np.float32))).wait().get()[0] == 4
        x = cupy.array(np.ones(1000, np.float32))
        with pytest.raises(ringdp.MismatchError, match="bucket 1 of plan 1 is another one"):
            leave(number, 1, x, digest=7 + (ringdp.rank() == 3)).wait()
        assert (x.get() == 1).all()
        with pytest.raises(ringdp.PeerError, match="plan 1 has failed"):
            leave(number, 2, x).wait()
        sums(100)
    on_two_hosts(differ)
    """
    works(body)


def test_a_bucket_that_a_rank_leaves_out_fails_in_time() -> None:
    body = """
    def leaves_out():
        import pytest
        number = lane("plan")
        x = cupy.array(np.ones(1000, np.float32))
        assert leave(number, 0, x).wait().get()[0] == ringdp.size()
        if ringdp.rank() < 3:
            with pytest.raises(ringdp.DeadlineError, match="bucket 1 of plan 1"):
                leave(number, 1, x).wait()
        else:
            time.sleep(3)
        sums(100)
    on_two_hosts(leaves_out)
    """
    works(body, RINGDP_TIMEOUT="2")


def test_a_rank_that_leaves_early_is_still_there_for_what_was_begun() -> None:
    """And in the end no communicator was aborted."""
    body = """
    def leaves():
        sums(10)
        handles = [rdp.allreduce_async(cupy.array(np.ones(2_000_000, np.float32)), op=rdp.Sum) for _ in range(3)]
        if ringdp.rank() != 1:
            for handle in handles:
                assert (handle.wait().get() == 4).all()
        else:
            handles[-1].wait()
    on_two_hosts(leaves)
    assert ended_communicators() == (4, 0)
    """
    works(body, RINGDP_TIMEOUT="1000")


def test_a_bucket_whose_rank_has_left_fails_soon() -> None:
    body = """
    def leaves():
        import pytest
        number = lane("plan")
        x = cupy.array(np.ones(1000, np.float32))
        assert leave(number, 0, x).wait().get()[0] == ringdp.size()
        if ringdp.rank() != 1:
            with pytest.raises(ringdp.PeerError, match="rank 1 has shut ringdp down"):
                leave(number, 1, x).wait()
    on_two_hosts(leaves)
    """
    works(body, limit=40, RINGDP_TIMEOUT="1000")


def test_without_its_waits_the_sums_are_wrong() -> None:
    body = BEGIN.replace("HOSTS", repr(TWO_HOSTS)) + "on_two_hosts(lambda: sums(2_000_000))"
    done = run(
        body,
        RINGDP_GPU_TRANSPORT="two_level",
        RINGDP_STANDIN_DROP_WAIT="all",
        RINGDP_STANDIN_DELAY_US="2000",
    )
    wrong = "wrong sums|of known values came out wrong|stand-in: .* (it has|after it had) been freed"
    assert done.returncode != 0 and re.search(wrong, done.stderr), done.stderr
