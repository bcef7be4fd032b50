"""NumPy, PyTorch, TensorFlow and JAX in one process: one world, whichever package is asked for something."""

import time

import numpy as np
import pytest
from frameworks.mixed.packages import PACKAGES, total, values

import ringdp

NAMES = list(PACKAGES)
ASYNCHRONOUS = ("numpy", "torch")  # those that have handles


def test_one_world():
    """What has nothing to do with tensors is the same in all of them."""
    for package in PACKAGES.values():
        for name in ("init", "shutdown", "rank", "size", "join", "ProcessSet", "MismatchError", "Sum"):
            assert getattr(package.module, name) is getattr(ringdp, name), (package.module, name)
        assert package.module.global_process_set is ringdp.global_process_set
        assert package.module.is_initialized() and package.module.size() == ringdp.size()


@pytest.mark.shows("barrier", "torch", "eager")
@pytest.mark.parametrize("shift", range(len(NAMES)))
def test_barriers_meet(shift):
    """Each rank calls that of another package, and none leaves before all have come."""
    barrier = PACKAGES[NAMES[(ringdp.rank() * shift + shift) % len(NAMES)]].module.barrier
    for last in range(ringdp.size()):
        time.sleep(0.05 * (ringdp.rank() == last))
        came = time.monotonic()
        barrier()
        times = ringdp.allgather_object((came, time.monotonic()))
        assert max(came for came, _ in times) <= min(left for _, left in times)


def test_interleaved():
    for turn in range(12):
        for number, package in enumerate(PACKAGES.values()):
            count, hvd = 5 + 1000 * turn, package.module
            x = package.tensor(values(count, number))
            assert package.exactly(hvd.allreduce(x, op=hvd.Sum), total(count, number))
            root = turn % ringdp.size()
            assert package.exactly(hvd.broadcast(x, root), values(count, number, root))
        ringdp.barrier()


def test_compiled_and_not_in_turn():
    size = ringdp.size()
    functions = {}
    for name, package in PACKAGES.items():
        hvd = package.module
        functions[name] = package.compiled(lambda x, hvd=hvd: hvd.allreduce(x, op=hvd.Sum) * 2 + 1)
    for turn in range(4):
        for number, (name, package) in enumerate(PACKAGES.items()):
            x = package.tensor(values(40, number + turn))
            assert package.exactly(functions[name](x), 2 * total(40, number + turn) + 1)
            mine = package.module.allgather(x[:1])
            assert package.exactly(mine, np.array([values(1, number + turn, r)[0] for r in range(size)]))


def test_handles_of_several_in_flight():
    """Each rank begins them in another order; the others' blocking calls come in between."""
    rank, size = ringdp.rank(), ringdp.size()
    order = [(name, number) for number in range(6) for name in ASYNCHRONOUS]
    order = order[rank * 3 :] + order[: rank * 3]
    handles = {}
    for name, number in order:
        package = PACKAGES[name]
        x = package.tensor(values(300, number))
        handles[name, number] = package.module.allreduce_async(x, op=ringdp.Sum, name=f"of {name}, {number}")
    for number, name in enumerate(name for name in NAMES if name not in ASYNCHRONOUS):
        package = PACKAGES[name]
        x = package.tensor(values(70, number))
        assert package.exactly(package.module.allreduce(x, op=ringdp.Sum), total(70, number))
    for (name, number), handle in sorted(handles.items()):
        package = PACKAGES[name]
        assert package.exactly(package.module.synchronize(handle), total(300, number))
    assert size == len(set(ringdp.allgather_object(rank)))


def test_one_process_set_for_all():
    ranks = [0, ringdp.size() - 1]
    some = ringdp.add_process_set(ranks)
    for number, package in enumerate(PACKAGES.values()):
        hvd = package.module
        if ringdp.rank() in ranks:
            x = package.tensor(values(33, number))
            wanted = sum(values(33, number, rank) for rank in ranks)
            assert package.exactly(hvd.allreduce(x, op=hvd.Sum, process_set=some), wanted)
    for number, package in enumerate(PACKAGES.values()):
        x = package.tensor(values(9, number))
        assert package.exactly(package.module.allreduce(x, op=ringdp.Sum), total(9, number))
    ringdp.barrier()
    assert ringdp.remove_process_set(some)


@pytest.mark.parametrize("shift", range(1, len(NAMES)))
def test_a_tensor_of_one_framework_meets_that_of_another(shift):
    """An operation is a name, a shape and a dtype: which package each rank called does not matter."""
    name = NAMES[(ringdp.rank() * shift) % len(NAMES)]
    package = PACKAGES[name]
    x = package.tensor(values(21, shift))
    assert package.exactly(package.module.allreduce(x, op=ringdp.Sum, name="of all"), total(21, shift))


@pytest.mark.parametrize("name", NAMES)
def test_a_mismatch_in_one_leaves_the_others_alone(name):
    package = PACKAGES[name]
    handle = ringdp.allreduce_async(values(50, 3), op=ringdp.Sum, name="under way")
    with pytest.raises(ringdp.MismatchError, match="rank 1"):
        package.module.allreduce(package.tensor(values(4 + ringdp.rank(), 1)), op=ringdp.Sum, name="differs")
    assert (handle.wait() == total(50, 3)).all()
    for number, other in enumerate(PACKAGES.values()):
        x = other.tensor(values(6, number))
        assert other.exactly(other.module.allreduce(x, op=ringdp.Sum), total(6, number))
