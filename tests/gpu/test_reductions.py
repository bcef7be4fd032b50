"""What NCCL or MPI and our kernels do together: the bits of the CPU's exchange, nothing of it through host memory."""

from __future__ import annotations

import textwrap

import pytest
from gpu.processes import run, works

from ringdp import _core

if not _core.gpu.kernels.built():
    pytest.skip("there was no nvcc when ringdp was built (RINGDP_NVCC names one)", allow_module_level=True)

WAYS = [pytest.param(way, id=f"by_{way}") for way in ("nccl", "mpi")]
SIZES = [("nccl", 1), ("nccl", 2), ("nccl", 3), ("mpi", 1), ("mpi", 3)]
each_size = pytest.mark.parametrize(("way", "size"), SIZES, ids=[f"by_{way}-{size}" for way, size in SIZES])
BEGIN = """
import ctypes
from ranks.inputs import DTYPES, small, values
FACTORS = [(1.0, 1.0), (2.0, 1.0), (0.5, 1.0), (1.0, -0.3), (4.0, 1.1), (-1.0, 0.25)]
OPS = [rdp.Sum, rdp.Average, rdp.Min, rdp.Max, rdp.Product]

def copies():
    library = ctypes.CDLL(os.environ["RINGDP_CUDA_LIBRARY"])
    return library.standin_calls(b"cuMemcpyDtoHAsync_v2")

def is_asked_for(dtype, op, factors):
    return dtype != "bool" or (op != rdp.Average and factors == (1.0, 1.0))

def inputs(shape, rank, size):
    count = int(np.prod(shape))
    for dtype in DTYPES:
        for op in OPS:
            x = small(dtype, count, rank) if op == rdp.Product else values(dtype, count, rank, 2 * size)
            if dtype[0] == "f" and op in (rdp.Min, rdp.Max) and count > 40:
                x[40 * rank :: 41] = [np.nan, -0.0, np.inf][rank % 3]
            for factors in FACTORS:
                if is_asked_for(dtype, op, factors):
                    yield x.reshape(shape), op, dict(prescale_factor=factors[0], postscale_factor=factors[1])

def same(got, wanted, *what):
    assert got.dtype == wanted.dtype and got.shape == wanted.shape, (got, wanted, what)
    assert got.tobytes() == wanted.tobytes(), (got, wanted, what)

GOES_THROUGH_HOST = False

# None of the ranks copies anything to its host from the first call to the last. Then each is compared with the CPU's.
def compare(function, shapes):
    rank, size = ringdp.rank(), ringdp.size()
    rdp.allreduce(cupy.array(np.ones(3, np.float32)))  # the way is found
    cases = [(x, cupy.array(x), op, factors) for shape in shapes for x, op, factors in inputs(shape, rank, size)]
    rdp.barrier()
    before = copies()
    rdp.barrier()
    got = [getattr(rdp, function)(there, op=op, **factors) for _, there, op, factors in cases]
    rdp.barrier()
    assert (copies() != before) == GOES_THROUGH_HOST
    rdp.barrier()
    for (x, there, op, factors), result in zip(cases, got):
        same(result.get(), getattr(ringdp, function)(x, op=op, **factors), op, factors)
        same(there.get(), x)
"""


@each_size
def test_allreduce(way: str, size: int) -> None:
    body = f"on_ranks(lambda: compare('allreduce', [(0,), (1,), (5,), (9001,)]), size={size})"
    works(BEGIN + body, limit=240, RINGDP_GPU_TRANSPORT=way)


@each_size
def test_reducescatter(way: str, size: int) -> None:
    """Rows that the ranks divide evenly, and others; fewer than there are ranks; rows without elements."""
    body = f"on_ranks(lambda: compare('reducescatter', [(1, 5), (2, 700), (6, 7), (7, 411), (4, 0)]), size={size})"
    works(BEGIN + body, limit=240, RINGDP_GPU_TRANSPORT=way)


@pytest.mark.parametrize("way", WAYS)
def test_in_place_and_in_other_process_sets(way: str) -> None:
    """Sets that overlap share a stream, and what lies between in it."""
    body = """
    def overlap():
        sets = [rdp.add_process_set([0, 1]), rdp.add_process_set([1, 2])]
        mine = [s for s in sets if s.included()]
        for k in range(6):
            count = 1 + 40_000 * k
            xs = [cupy.array(np.full(count, 3 * ringdp.rank() + k, np.int16)) for _ in mine]
            rows = [cupy.array(np.arange(3 * count, dtype=np.int32).reshape(3, count)) for _ in mine]
            order = list(zip(mine, xs, rows))[:: 1 if ringdp.rank() % 2 else -1]
            handles = [(rdp.allreduce_async_(x, name=f"x{k}", op=rdp.Average, process_set=s),
                        rdp.reducescatter_async(r, name=f"r{k}", op=rdp.Sum, prescale_factor=3.0, process_set=s), s, x)
                       for s, x, r in order]
            for in_place, scattered, s, x in handles:
                in_place.wait()
                first = 0 if ringdp.rank() == s.ranks[0] else 2
                wanted = 6 * np.arange(3 * count, dtype=np.int32).reshape(3, count)[first : first + 2]
                assert (scattered.wait().get() == wanted[: len(wanted)]).all()
                assert (x.get() == (3 * sum(s.ranks) + 2 * k) // 2).all()
    on_ranks(overlap, size=3)
    """
    works(BEGIN + textwrap.dedent(body), limit=120, RINGDP_GPU_TRANSPORT=way)


def test_one_gpu_that_takes_no_kernels_is_enough_for_all_to_go_through_host_memory() -> None:
    body = "GOES_THROUGH_HOST = True\non_ranks(lambda: compare('allreduce', [(1,), (1000,)]))"
    works(BEGIN + body, RINGDP_GPU_TRANSPORT="nccl", RINGDP_STANDIN_NO_MODULES="1")


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_the_way_through_host_memory_is_checked_as_well() -> None:
    body = """
    def raises():
        try:
            sums(10)
        except ringdp.GpuError as error:
            assert "the sum of known values came out wrong" in str(error), error
        else:
            raise AssertionError("no error")
    on_ranks(raises, size=3)
    """
    works(body, RINGDP_GPU_TRANSPORT="host", RINGDP_STANDIN_NO_KERNEL="ringdp_scale_float32")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kernel", ["scale_float32", "reduce_float32_max", "none"])
def test_a_kernel_that_is_wrong_by_one_element_raises_on_all_ranks(kernel: str, way: str) -> None:
    body = """
    raised = []
    def first():
        try:
            sums(10)
        except ringdp.GpuError as error:
            raised.append("of known values came out wrong" in str(error))
    on_ranks(first, size=3)
    print(len(raised), all(raised))
    """
    said = works(body, RINGDP_GPU_TRANSPORT=way, RINGDP_STANDIN_WRONG_KERNEL=f"ringdp_{kernel}")
    assert said.split() == ["0" if kernel == "none" else "3", "True"]


def test_no_memory_for_what_comes_in_between_fails_on_all_ranks() -> None:
    """And nothing else: what needs none goes on."""
    body = """
    def too_much():
        import pytest
        sums(100)
        x = cupy.array(np.ones(900_000, np.int16))
        with pytest.raises(ringdp.GpuError, match="has no memory for its output, or for what comes in between"):
            rdp.allreduce_(x, op=rdp.Sum)
        assert (x.get() == 1).all()
        sums(100)
    on_ranks(too_much)
    """
    works(body, RINGDP_GPU_TRANSPORT="nccl", RINGDP_STANDIN_MEMORY="2000000")


def test_elements_at_an_odd_address_are_refused() -> None:
    body = """
    def odd():
        x = cupy.array(np.ones(8, np.float32))
        x.data.ptr += 2
        rdp.allreduce(x[:4], name="x")
    on_ranks(odd)
    """
    done = run(body)
    assert done.returncode == 1 and "elements of 4 bytes need an address that 4 divides" in done.stderr, (
        done.stderr
    )


def test_more_factors_than_are_kept() -> None:
    """NCCL multiplies; the operations that this takes are made, used again, and given back."""
    body = """
    def many():
        x = cupy.array(np.arange(1000, dtype=np.float32))
        for factor in [*range(2, 200), *range(2, 200)]:
            got = rdp.allreduce(x, op=rdp.Sum, prescale_factor=float(factor)).get()
            assert (got == 2 * factor * np.arange(1000, dtype=np.float32)).all(), factor
    on_ranks(many)
    """
    works(body, RINGDP_GPU_TRANSPORT="nccl")
