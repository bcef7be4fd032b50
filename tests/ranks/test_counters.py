"""How many exchanges an operation takes, and who serves it: what no result shows."""

from __future__ import annotations

from collections import Counter

import counting
import numpy as np
import pytest

import ringdp
from ringdp import world
from ringdp.constants import Dtype


def counted(act, times: int = 20) -> Counter[str]:
    ringdp.barrier()
    return counting.counted(lambda: [act() for _ in range(times)])


def chosen(array: np.ndarray) -> str:
    return world.current().engine.algorithm(array.nbytes, int(Dtype[array.dtype.name]))


def test_an_operation_among_ranks_that_share_memory_meets_once() -> None:
    array = np.ones(1 << 17, np.float32)
    if chosen(array) != "shared_memory":
        pytest.skip("not all ranks share memory")
    ringdp.allreduce_(array, name="first")  # on GPUs the ranks find their way then
    done = counted(lambda: ringdp.allreduce_(array, op=ringdp.Min, name="large"))
    assert done["named"] == 20 and done["places"] == 0
    on_gpus = sum(done[way] for way in ("by_nccl", "by_chunks", "by_mpi"))
    assert done["in_host"] == 20 - on_gpus  # messages would give the same result


@pytest.mark.host_only
def test_a_small_blocking_call_is_mostly_served_by_its_caller() -> None:
    array = np.ones(100, np.float32)
    if ringdp.size() > 1 and chosen(array) not in ("shared_memory", "recursive_doubling"):
        pytest.skip("it does not go along with its name")
    done = counted(lambda: ringdp.allreduce_(array, op=ringdp.Min), 200)
    assert done["named"] == 200
    assert done["own"] >= 100  # the engine's thread may be taking a turn just then


def test_a_barrier_is_mostly_served_by_its_caller() -> None:
    done = counted(ringdp.barrier, 200)
    assert done["named"] == 200 and done["own"] >= 100
