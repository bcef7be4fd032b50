"""Which all-reduce was taken, seen by the order in which it adds: float32 gives other bits in another order."""

import functools
import os
import re

import numpy as np
import pytest

import ringdp
from ringdp import _core, world
from ringdp.constants import Dtype

s = _core.schedules
LETTER, LARGE = 33, 6000  # elements: what ranks of one host put into a letter, and what they do not


def random_inputs(count):
    """A row for each rank; the same on all."""
    return np.random.default_rng(count).standard_normal((ringdp.size(), count), np.float32)


def ring_sum(rows, place):
    """In the order of the ring for what belongs to this place: those after it, and at last its own."""
    order = [(place + 1 + i) % len(rows) for i in range(len(rows))]
    return functools.reduce(np.add, [rows[i] for i in order])


def added_in_two_levels(inputs, hosts):
    """hosts: the ranks of each. Part l of the tensor is summed at place l of each host, chunk by chunk between them."""
    places = range(len(hosts[0]))
    parts = []
    for place, part in zip(places, np.array_split(inputs, len(places), axis=1), strict=True):
        in_hosts = np.array([ring_sum(part[ranks], place) for ranks in hosts])
        chunks = np.array_split(in_hosts, len(hosts), axis=1)
        parts += [ring_sum(chunk, host) for host, chunk in enumerate(chunks)]
    return np.concatenate(parts)


def added_by(name, inputs, hosts=()):
    """The sum of the rows, each element in the order of that algorithm's schedule. Shared memory has the ring's."""
    if name == "two_level":
        return added_in_two_levels(inputs, hosts)
    algorithm = getattr(s.Algorithm, "ring" if name == "shared_memory" else name)
    case = s.case(s.Collective.allreduce, len(inputs), [inputs.shape[1]], 64, algorithm=algorithm)
    sums, result = np.array(s.sums(case, 0, 0)), np.empty(inputs.shape[1], np.float32)
    for order in set(sums):  # such as ((0+1)+2)
        at = sums == order
        result[at] = eval(re.sub(r"\d+", r"x[\g<0>]", order), {"x": inputs[:, at]})
    return result


@pytest.mark.skipif(
    os.environ.get("RINGDP_GPU_TRANSPORT") in ("nccl", "two_level"), reason="NCCL has an order of its own"
)
@pytest.mark.parametrize("count", [LETTER, LARGE])
def test_the_order_of_addition_is_that_of_the_algorithm(count, hosts):
    taken = world.current().engine.algorithm(4 * count, Dtype.float32)
    wanted = os.environ.get("RINGDP_ALGORITHM", "auto")
    if wanted != "auto":
        assert taken == wanted
    inputs = random_inputs(count)
    result = ringdp.allreduce(inputs[ringdp.rank()], op=ringdp.Sum)
    if os.environ.get("RINGDP_GPU_TRANSPORT") == "mpi":  # kernels add in the order of the ranks
        sums = functools.reduce(np.add, inputs)
    else:
        sums = added_by(taken, inputs, hosts)
    assert result.dtype == np.float32 and (result == sums).all()


@pytest.mark.min_ranks(3)
def test_the_orders_differ():
    inputs = random_inputs(LETTER)
    results = {added_by(name, inputs).tobytes() for name in ("ring", "recursive_doubling", "double_tree")}
    assert len(results) == 3


def test_the_order_in_two_levels_is_another_one():
    inputs = np.random.default_rng(1).standard_normal((6, LARGE), np.float32)
    assert (added_in_two_levels(inputs, [[0, 1, 2], [3, 4, 5]]) != added_by("ring", inputs)).any()
