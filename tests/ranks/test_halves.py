"""A bucket reduced by halves: what the own chunk is after the first, and that both give the bits of the whole."""

import itertools

import numpy as np
import pytest

import ringdp
from ringdp import _core, world
from ringdp.constants import Dtype
from ringdp.ops import Handle

Half = _core.schedules.Half
COUNTS = (1, 2, 5, 64, 1000, 60_001)
_plans = itertools.count()


class Lane:
    """A plan of this world, and its buckets in order."""

    def __init__(self):
        self.engine = world.current().engine
        name = f"halves {next(_plans) if ringdp.rank() == 0 else 0}"
        opened = self.engine.open_plan(0, ringdp.broadcast_object(name, 0), "of buckets")
        self.number = Handle(opened, None, lambda core: int(core.lane()), world.current()).wait()
        self.buckets = 0

    def submit(self, data, op=ringdp.Sum, scale=(1.0, 1.0), half=Half.both):
        where = data.ctypes.data, data.size, int(Dtype[data.dtype.name])
        core = self.engine.submit_bucket(0, self.number, self.buckets, 7, *where, int(op), *scale, half)
        self.buckets += 1
        return Handle(core, data, lambda _: None, world.current())

    def own(self, data):
        return slice(*self.engine.own_chunk(0, data.size, int(Dtype[data.dtype.name])))


def contribution(count, dtype="float32", shared=False):
    data = ringdp.empty(count, dtype=dtype) if shared else np.empty(count, dtype)
    data[:] = np.random.default_rng([count, ringdp.rank()]).standard_normal(count) * 8
    return data


def whole(lane, data, op, scale):
    result = data.copy()
    lane.submit(result, op, scale).wait()
    return result


@pytest.mark.parametrize("shared", [False, True], ids=["anywhere", "in place"])
@pytest.mark.parametrize(
    ("dtype", "scale"), [("float32", (1.0, 1.0)), ("float16", (0.5, 3.0)), ("int64", (1.0, 1.0))]
)
@pytest.mark.parametrize("op", [ringdp.Sum, ringdp.Average])
def test_both_halves_give_the_bits_of_the_whole(op, dtype, scale, shared):
    lane = Lane()
    data = [contribution(count, dtype, shared) for count in COUNTS]
    wanted = [whole(lane, one, op, scale) for one in data]
    for handle in [lane.submit(one, op, scale, Half.reduce_scatter) for one in data]:
        handle.wait()
    for one, want in zip(data, wanted, strict=True):
        own = lane.own(one)
        assert (one[own] == want[own]).all()
        mine = np.full_like(one, 77)  # what a rank has of the others' chunks does not matter
        mine[own] = one[own]
        one[:] = mine
    for handle in [lane.submit(one, half=Half.all_gather) for one in data]:
        handle.wait()
    for one, want in zip(data, wanted, strict=True):
        assert (one == want).all()


def test_the_own_chunks_are_all_there_is():
    lane = Lane()
    for count in (0, *COUNTS):
        own = lane.own(np.empty(count, np.float32))
        rows = ringdp.allgather(np.arange(own.start, own.stop))
        assert sorted(rows.tolist()) == list(range(count))
        assert own.stop - own.start <= count / ringdp.size() + 2


@pytest.mark.min_ranks(2)
def test_the_first_half_leaves_the_others_chunks_unreduced():
    """Else it would be the whole, with twice the bytes."""
    lane = Lane()
    data = contribution(60_001)
    taken = lane.engine.algorithm(data.nbytes, int(Dtype.float32))
    want = whole(lane, data, ringdp.Sum, (1.0, 1.0))
    lane.submit(data, half=Half.reduce_scatter).wait()
    own = lane.own(data)
    others = np.delete(data == want, np.r_[own])
    power = ringdp.size() & (ringdp.size() - 1) == 0
    if taken in ("ring", "shared_memory", "two_level") or (taken == "halving_doubling" and power):
        assert others.mean() < 0.01
    else:  # these have no halves
        assert others.all()


def test_many_steps_in_flight():
    """Each step's all-gather begins while the next reduce-scatter is under way."""
    lane = Lane()
    steps = 20
    gradients = [contribution(3000 + step) for step in range(steps)]
    wanted = [whole(lane, one, ringdp.Average, (1.0, 1.0)) for one in gradients]
    parameters = [np.zeros_like(one) for one in gradients]
    before = None
    for step in range(steps):
        first = lane.submit(gradients[step], ringdp.Average, half=Half.reduce_scatter)
        if before is not None:
            before.wait()
        first.wait()
        own = lane.own(gradients[step])
        parameters[step][own] = gradients[step][own]
        before = lane.submit(parameters[step], half=Half.all_gather)
    before.wait()
    assert all((one == want).all() for one, want in zip(parameters, wanted, strict=True))


@pytest.mark.min_ranks(2)
def test_ranks_that_mean_different_halves_fail_both():
    lane = Lane()
    data = contribution(1000)
    last = ringdp.rank() == ringdp.size() - 1
    handle = lane.submit(data, half=Half.all_gather if last else Half.reduce_scatter)
    with pytest.raises((ringdp.MismatchError, ringdp.PeerError)):
        handle.wait()
    ringdp.barrier()
    assert (ringdp.allreduce(np.ones(1000), op=ringdp.Sum) == ringdp.size()).all()  # nothing is left behind


def test_only_a_bucket_has_halves():
    with pytest.raises(ringdp.UsageError, match="only the all-reduce of a bucket has halves"):
        data = np.ones(3, np.float32)
        where = data.ctypes.data, data.size, int(Dtype.float32)
        world.current().engine.submit_bucket(
            0, -1, 0, 7, *where, int(ringdp.Sum), 1.0, 1.0, Half.reduce_scatter
        )
