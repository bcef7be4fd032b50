"""Arrays in shared memory: `ringdp.empty`. Wherever the ranks' arrays lie, the result has the same bits."""

from __future__ import annotations

import numpy as np
import pytest

import ringdp

pytestmark = pytest.mark.mpi

COUNTS = [0, 7, 5000, 100_003, 3 << 20]


def contribution(rank: int, count: int, dtype: str) -> np.ndarray:
    """Numbers whose sum depends on the order of addition, where the dtype rounds."""
    random = np.random.default_rng([rank, count])
    if np.dtype(dtype).kind == "f":
        return (random.standard_normal(count) * 10.0 ** random.integers(-3, 4, count)).astype(dtype)
    return random.integers(-50, 50, count).astype(dtype)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("op", [ringdp.Sum, ringdp.Average])
def test_shared_mixed_and_ordinary_arrays_give_the_same_bits(
    count: int, dtype: str, op: ringdp.ReduceOp
) -> None:
    mine = contribution(ringdp.rank(), count, dtype)
    expected = ringdp.allreduce(mine, op=op)
    for shares in (lambda rank: True, lambda rank: rank == 0, lambda rank: rank != 0):
        array = ringdp.empty(count, dtype) if shares(ringdp.rank()) else np.empty(count, dtype)
        array[...] = mine
        ringdp.allreduce_(array, op=op)
        assert array.tobytes() == expected.tobytes()


@pytest.mark.parametrize("factors", [(0.5, 1.0), (1.0, 0.25), (2.0, 0.125)])
def test_factors(factors: tuple[float, float]) -> None:
    mine = contribution(ringdp.rank(), 50_000, "float32")
    scale = {"op": ringdp.Sum, "prescale_factor": factors[0], "postscale_factor": factors[1]}
    array = ringdp.empty(mine.shape, np.float32)
    array[...] = mine
    ringdp.allreduce_(array, **scale)
    assert array.tobytes() == ringdp.allreduce(mine, **scale).tobytes()


def test_a_part_of_an_array_is_reduced_and_nothing_beside_it() -> None:
    array = ringdp.empty((3, 40_000), np.float32)
    array[...] = ringdp.rank() + 1
    ringdp.allreduce_(array[1], op=ringdp.Sum)
    total = sum(range(1, ringdp.size() + 1))
    assert (array[1] == total).all()
    assert (array[::2] == ringdp.rank() + 1).all()


def test_many_at_a_time() -> None:
    arrays = [ringdp.empty(20_000 + i, np.float32) for i in range(30)]
    for i, array in enumerate(arrays):
        array[...] = ringdp.rank() + i
    handles = [ringdp.allreduce_async_(array, op=ringdp.Sum) for array in arrays]
    for i, handle in enumerate(handles):
        assert (handle.wait() == sum(rank + i for rank in range(ringdp.size()))).all()


def test_memory_that_is_no_longer_used_is_given_again() -> None:
    def resident() -> int:
        with open("/proc/self/smaps_rollup") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("Rss:")) << 10

    ringdp.empty(32 << 20, np.uint8).fill(1)
    before = resident()
    for _ in range(20):
        ringdp.empty(32 << 20, np.uint8).fill(1)
    assert resident() < before + (64 << 20)


def test_shapes_are_those_of_numpy() -> None:
    assert ringdp.empty(3).dtype == np.float64 and ringdp.empty(3).shape == (3,)
    assert ringdp.empty(()).shape == () and ringdp.empty((2, 0, 3), "int32").shape == (2, 0, 3)
    array = ringdp.empty((4, 5), np.int16)
    assert array.flags.writeable and array.flags.c_contiguous
    with pytest.raises(ValueError, match="negative dimensions"):
        ringdp.empty((2, -1))
    with pytest.raises(TypeError, match="plain elements"):
        ringdp.empty(2, object)
