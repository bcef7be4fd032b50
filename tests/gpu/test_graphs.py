"""Exchanges that are captured in CUDA graphs: what replays do, and what is noticed though no code of ours runs then."""

from __future__ import annotations

import re
import textwrap

import pytest
from gpu.processes import run as run_plain

BEGIN = """
from ringdp import ProcessSet
RELAXED = cupy.cuda.runtime.streamCaptureModeRelaxed  # CuPy allocates meanwhile
THREAD_LOCAL = cupy.cuda.runtime.streamCaptureModeThreadLocal  # ranks are threads here

def arange(n, first=0, dtype=np.float32):
    return cupy.array(np.arange(first, first + n).astype(dtype))

def capture(body, mode=RELAXED):
    stream = cupy.cuda.get_current_stream()
    stream.begin_capture(mode)
    try:
        body()
    finally:
        graph = stream.end_capture()
    return graph

def in_a_stream(body, size=2, hosts=()):
    def inside():
        sums(10)
        with cupy.cuda.Stream(non_blocking=True):
            body(ringdp.rank(), ringdp.size())
        print("good")
    on_ranks(inside, size, hosts)

def until_it_ends():
    for _ in range(40):
        ringdp.barrier()
        time.sleep(0.1)

def fails(call, kind=ringdp.GpuError):
    try:
        call()
    except kind as error:
        print(error)
        return
    raise AssertionError("it did not raise")
"""


def run(body: str, **environ: str):
    environ = {"RINGDP_GPU_TRANSPORT": "nccl", "RINGDP_STANDIN_DELAY_US": "300", **environ}
    return run_plain(BEGIN + textwrap.dedent(body), **environ)


def works(body: str, ranks: int = 2, **environ: str) -> str:
    """All ranks end well. What they have said."""
    done = run(body, **environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("good") == ranks
    return done.stdout + done.stderr


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_replays_do_all_operations_on_what_is_there_then(ranks: int) -> None:
    body = f"""
    def all_operations(r, n):
        x, y, z = arange(1001), arange(12), arange(7, dtype=np.int64)
        rows = cupy.empty((r + 2, 3), np.float32)
        outputs = {{}}

        def calls():
            outputs["sum"] = rdp.allreduce(x, op=rdp.Sum, prescale_factor=0.5, postscale_factor=4.0)
            outputs["average"] = rdp.allreduce(x)
            outputs["min"] = rdp.allreduce(x, op=rdp.Min)  # in chunks
            outputs["integers"] = rdp.allreduce(z)  # divided by a kernel
            outputs["gathered"] = rdp.allgather(rows)
            outputs["scattered"] = rdp.reducescatter(y, op=rdp.Sum)
            outputs["uneven"] = rdp.reducescatter(z, op=rdp.Product)
            outputs["broadcast"] = rdp.broadcast(y, n - 1)
            outputs["exchanged"] = rdp.alltoall(y, [12] + (n - 1) * [0])

        graph = capture(calls)
        for step in range(3):
            given = [np.arange(1001, dtype=np.float32) * (k + 1 + step) for k in range(n)]
            few = [np.arange(12, dtype=np.float32) + 10 * k + step for k in range(n)]
            whole = [np.arange(7) * (2 * k + 2 + step * (k + 1)) for k in range(n)]
            all_rows = [np.full((k + 2, 3), k + step, np.float32) for k in range(n)]
            for place, values in ((x, given), (y, few), (z, whole), (rows, all_rows)):
                place[...] = cupy.array(values[r])
            graph.launch()
            got = {{k: (v[0] if isinstance(v, tuple) else v).get() for k, v in outputs.items()}}
            wanted = {{
                "sum": 2 * sum(given), "average": sum(given) / n, "min": np.minimum.reduce(given),
                "integers": (sum(whole) / n).astype(np.int64), "gathered": np.concatenate(all_rows),
                "scattered": np.array_split(sum(few), n)[r],
                "uneven": np.array_split(np.multiply.reduce(whole), n)[r], "broadcast": few[n - 1],
                "exchanged": np.concatenate(few) if r == 0 else few[0][:0],
            }}
            for name, value in wanted.items():
                close = np.allclose if name == "average" else np.array_equal
                assert close(got[name], value), (name, step, got[name], value)
        sums(10)

    in_a_stream(all_operations, {ranks})
    """
    works(body, ranks)


def test_handles_in_flight_and_calls_outside() -> None:
    body = """
    def mixed(r, n):
        parts = [arange(5000) for _ in range(4)]
        beside = arange(5000)

        def calls():
            handles = [rdp.allreduce_async_(part, op=rdp.Sum, name=f"part.{i}") for i, part in enumerate(parts)]
            for handle in reversed(handles):
                handle.wait()

        graph = capture(calls, THREAD_LOCAL)
        for step in range(5):
            for i, part in enumerate(parts):
                part[...] = arange(5000, first=r + i + step)
            beside[...] = arange(5000, first=r * step)
            rdp.allreduce_async_(beside, op=rdp.Sum).wait()
            graph.launch()
            for i, part in enumerate(parts):
                wanted = n * np.arange(5000) + sum(k + i + step for k in range(n))
                assert (part.get() == wanted).all()
            assert (beside.get() == n * np.arange(5000) + step).all()

    in_a_stream(mixed)
    """
    works(body)


def test_what_is_in_flight_at_a_replay_may_meet_it_on_other_ranks() -> None:
    """Why docs/gpu.md says to wait for handles first: NCCL would mix up the two, and the stand-in says so."""
    body = """
    def in_flight(r, n):
        x, y = arange(1000), arange(1000)
        graph = capture(lambda: rdp.allreduce_(x), THREAD_LOCAL)
        if r == 0:  # it is on the GPU of rank 0 when that of rank 1 begins with the graph
            handle = rdp.allreduce_async_(y)
            time.sleep(1.5)
        graph.launch()
        if r == 1:
            time.sleep(0.5)
            handle = rdp.allreduce_async_(y)
        fails(until_it_ends, ringdp.RingdpError)

    in_a_stream(in_flight)
    """
    done = run(body, RINGDP_TIMEOUT="2")
    assert done.returncode == -6 and "ncclAllGather of 16 uint8" in done.stderr, done.stderr


def test_a_rank_without_memory_for_what_a_graph_keeps() -> None:
    body = """
    import ctypes
    library = ctypes.CDLL(os.environ["RINGDP_CUDA_LIBRARY"])

    def no_memory(r, n):
        x = arange(1000)
        barrier.wait()
        if r == 0:
            library.standin_fail(b"cuMemAlloc_v2", 1, 2)
        barrier.wait()
        capture(lambda: fails(lambda: rdp.allreduce_(x, op=rdp.Sum)), THREAD_LOCAL)
        sums(10)

    barrier = threading.Barrier(2)
    in_a_stream(no_memory)
    """
    assert works(body).count("a rank has no memory") == 2


def test_several_graphs_and_process_sets() -> None:
    body = """
    def several(r, n):
        pair = ringdp.add_process_set([0, 2])
        x, y = arange(100), arange(100)
        first = capture(lambda: rdp.allreduce_(x, op=rdp.Sum))

        def both():
            rdp.allreduce_(x, op=rdp.Sum)
            if pair.included():
                rdp.allreduce_(y, op=rdp.Sum, process_set=pair)
            rdp.allreduce_(x, op=rdp.Max)

        if pair.included():
            rdp.allreduce(y, process_set=pair)
        second = capture(both)
        for step in range(4):
            x[...], y[...] = arange(100, first=r), arange(100, first=step)
            (first, second)[step % 2].launch()
            total = n * np.arange(100) + sum(range(n))
            assert (x.get() == total).all()
            assert (y.get() == (np.arange(100) + step) * (2 if step % 2 and pair.included() else 1)).all()

    in_a_stream(several, 3)
    """
    works(body, 3)


def test_a_graph_that_is_gone_leaves_nothing_behind() -> None:
    body = """
    import ctypes
    library = ctypes.CDLL(os.environ["RINGDP_CUDA_LIBRARY"])
    nccl = ctypes.CDLL(os.environ["RINGDP_NCCL_LIBRARY"])
    barrier = threading.Barrier(2)

    def live(r):  # a graph that is at work when it is destroyed says so behind that
        barrier.wait()
        deadline = time.monotonic() + 60
        while library.standin_live(b"user objects") and time.monotonic() < deadline:
            time.sleep(0.001)
        count = library.standin_live(b"allocations") if r == 0 else 0
        barrier.wait()
        return count

    def made_again(r, n):
        x, y = arange(1000), arange(1000, dtype=np.int16)
        counts = []
        for _ in range(6):
            graph = capture(lambda: (rdp.allreduce_(x), rdp.allreduce_(y, op=rdp.Sum)), THREAD_LOCAL)
            graph.launch()
            x.get()
            del graph
            counts.append(live(r))
        assert counts[2] == counts[-1], counts  # given back when the next one is made

    in_a_stream(made_again)
    ended = nccl.standin_nccl_destroyed(), nccl.standin_nccl_aborted()
    assert ended == (2, 0), ended
    """
    works(body)


def test_who_ends_before_its_graphs_does_not_hang_and_a_later_replay_stops_the_gpu() -> None:
    body = """
    graphs = []

    def kept(r, n):
        x = arange(1000)
        graph = capture(lambda: rdp.allreduce_(x))
        graph.launch()
        graphs.append((graph, x, cupy.cuda.get_current_stream()))

    in_a_stream(kept)
    graph, x, stream = graphs[0]
    with stream:
        graph.launch()
        try:
            x.get()
        except RuntimeError as error:
            print(error)
    """
    assert "gave 719" in works(body)


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["host", "two_level"])
def test_only_what_nccl_carries_out(way: str) -> None:
    body = """
    def refused(r, n):
        x = arange(1000)
        graph = capture(lambda: fails(lambda: rdp.allreduce_(x), ringdp.UsageError))
        sums(10)

    in_a_stream(refused, 4, (0, 0, 1, 1))
    """
    said = works(body, 4, RINGDP_GPU_TRANSPORT=way)
    assert said.count("cannot be captured in a CUDA graph: it goes through host memory or MPI") == 4


@pytest.mark.parametrize(
    ("op", "environ", "why"),
    [
        ("Adasum", {}, "it goes through host memory;"),
        ("Average", {"RINGDP_STANDIN_NO_MODULES": "1"}, "some rank has no kernels"),
    ],
)
def test_no_adasum_and_no_rank_without_kernels(op: str, environ: dict[str, str], why: str) -> None:
    body = f"""
    def refused(r, n):
        x = arange(1000)
        capture(lambda: fails(lambda: rdp.allreduce_(x, op=rdp.{op}), ringdp.UsageError))
        sums(10)

    in_a_stream(refused)
    """
    assert works(body, **environ).count(f"cannot be captured in a CUDA graph: {why}") == 2


def test_a_rank_that_captures_alone_is_a_mismatch() -> None:
    body = """
    def alone(r, n):
        x = arange(1000)
        call = lambda: fails(lambda: rdp.allreduce_(x, name="x"), ringdp.MismatchError)
        capture(call) if r == 0 else call()
        sums(10)

    in_a_stream(alone)
    """
    said = works(body)
    assert (
        said.count("rank 0: allreduce of float32[1000] on a GPU, the first that is captured in a CUDA graph")
        == 2
    )


def test_ranks_must_put_the_same_exchanges_into_a_graph() -> None:
    body = """
    def cut_elsewhere(r, n):
        x = arange(1000)
        one = lambda: rdp.allreduce_(x, name="x")
        other = lambda: fails(lambda: rdp.allreduce_(x, name="y"), ringdp.MismatchError)
        if r == 0:
            capture(one), capture(other)
        else:
            capture(lambda: (one(), other()))

    in_a_stream(cut_elsewhere)
    """
    said = works(body)
    assert said.count(", captured in CUDA graph ") == said.count(", the first that is captured") == 2


def test_a_rank_that_has_joined() -> None:
    body = """
    def joined(r, n):
        x = arange(1000)
        if r == 0:
            capture(lambda: fails(lambda: rdp.allreduce_(x), ringdp.PeerError))
        ringdp.join()
        sums(10)

    in_a_stream(joined)
    """
    assert "cannot be captured in a CUDA graph: a rank has joined" in works(body)


# --- what is noticed ----------------------------------------------------------------------------------------

DIFFER = """
def differ(r, n):
    x = arange(1000)
    first = capture(lambda: rdp.allreduce_(x, name="x"))
    second = capture(lambda: rdp.allreduce_(x, name="x"))
    for graph in ORDER[r]:
        (first, second)[graph].launch()
    fails(until_it_ends, ringdp.RingdpError)

in_a_stream(differ)
"""


def test_ranks_that_replay_different_graphs() -> None:
    said = works("ORDER = (0, 0, 1), (0, 0, 0)" + DIFFER)
    # The stand-in of one process stops both GPUs at once, so perhaps before the other rank has seen it.
    mine = r"rank (0: replay 1|1: replay 3) of a CUDA graph that begins with allreduce 'x' was not begun: "
    assert re.search(mine + "rank [01] replays another graph; all ranks must replay the same graphs", said)


def test_ranks_that_replay_a_graph_unequally_often() -> None:
    body = """
    def unequal(r, n):
        x = arange(1000)
        pair = ringdp.add_process_set([0, 1])
        rdp.allreduce(x, process_set=pair)
        graph = capture(lambda: rdp.allreduce_(x, name="x"))
        other = capture(lambda: rdp.allreduce_(x, process_set=pair))
        graph.launch()
        x.get()
        if r == 0:
            graph.launch()
        fails(until_it_ends, ringdp.RingdpError)

    in_a_stream(unequal)
    """
    said = works(body, RINGDP_TIMEOUT="2")
    assert (
        "rank 0: replay 2 of a CUDA graph that begins with allreduce 'x' has waited RINGDP_TIMEOUT seconds in its"
        in said
    )
    assert "is stopped, for good" in said


@pytest.mark.parametrize("kernel", ["begin_replay", "compare_replays"])
def test_without_the_comparison_ranks_would_mix_their_graphs(kernel: str) -> None:
    body = """
    ORDER = (0, 1), (0, 0)
    """ + textwrap.indent(DIFFER, "    ")
    done = run(body, RINGDP_STANDIN_NO_KERNEL=f"ringdp_{kernel}")
    assert "it did not raise" in done.stderr, done.stderr


def test_without_its_waits_nothing_is_captured() -> None:
    body = """
    def dropped(r, n):
        x = arange(100_000)
        os.environ["RINGDP_STANDIN_DROP_WAIT"] = "all"
        graph = capture(lambda: rdp.allreduce_(x, op=rdp.Sum), THREAD_LOCAL)
        x[...] = arange(100_000)
        graph.launch()
        assert (x.get() == n * np.arange(100_000)).all(), "wrong sums"

    in_a_stream(dropped)
    """
    done = run(body)
    assert done.returncode != 0 and "wrong sums" in done.stderr, done.stderr
