"""`op=Adasum`: what ranks have in common counts once, what is orthogonal is added."""

import numpy as np
import pytest

import ringdp

FLOATS = ["float16", "float32", "float64"]


def is_power_of_two():
    return ringdp.size() & (ringdp.size() - 1) == 0


@pytest.fixture(autouse=True)
def _power_of_two(request):
    if request.node.originalname.endswith("power_of_two"):
        return
    ranks = request.config.getoption("--local-ranks") or ringdp.size()
    if ranks & (ranks - 1):
        pytest.skip("needs a power of two of ranks")


def adasum(a, b):
    """The equation, on float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    aa, bb, ab = a @ a, b @ b, a @ b
    return (1 - ab / (2 * aa) if aa else 1) * a + (1 - ab / (2 * bb) if bb else 1) * b


def reference(tensors, dtype):
    while len(tensors) > 1:
        tensors = [adasum(a, b).astype(dtype) for a, b in zip(tensors[::2], tensors[1::2], strict=True)]
    return tensors[0]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("count", [1, 7, 1024, 5000])
def test_the_equation(dtype, count):
    tensors = [
        np.random.default_rng(rank).standard_normal(count).astype(dtype) for rank in range(ringdp.size())
    ]
    got = ringdp.allreduce(tensors[ringdp.rank()], op=ringdp.Adasum)
    assert got.dtype == dtype
    eps = np.finfo(dtype).eps
    assert np.allclose(got, reference(tensors, dtype), rtol=8 * eps, atol=8 * eps)
    all_bits = ringdp.allgather(got.view(np.uint8).reshape(1, -1))
    assert (all_bits == all_bits[0]).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_equal_tensors_stay_and_orthogonal_ones_are_added(dtype):
    same = np.arange(2000).astype(dtype) % 64
    place = same.copy()
    assert ringdp.allreduce_(place, op=ringdp.Adasum, name="same") is place
    assert (place == same).all()
    own = np.zeros(8 * ringdp.size(), dtype)
    own[8 * ringdp.rank() :][:8] = np.arange(8) + ringdp.rank()
    assert (ringdp.allreduce(own, op=ringdp.Adasum) == ringdp.allreduce(own, op=ringdp.Sum)).all()


def test_zeros_nothing_and_factors():
    one = np.full(5, float(ringdp.rank() == ringdp.size() - 1))
    assert (ringdp.allreduce(one, op=ringdp.Adasum) == 1).all()
    assert (ringdp.allreduce(np.zeros(3), op=ringdp.Adasum) == 0).all()
    assert ringdp.allreduce(np.zeros(0), op=ringdp.Adasum).size == 0
    assert (
        ringdp.allreduce(np.ones(3), op=ringdp.Adasum, prescale_factor=3, postscale_factor=0.5) == 1.5
    ).all()


def test_a_rank_that_has_joined_adds_nothing():
    for turn in range(ringdp.rank() + 1):
        ranks = [rank for rank in range(ringdp.size()) if rank >= turn]
        own = np.zeros(ringdp.size())
        own[ringdp.rank()] = 2 + ringdp.rank()
        want = [2 + rank if rank in ranks else 0 for rank in range(ringdp.size())]
        assert ringdp.allreduce(own, op=ringdp.Adasum).tolist() == want
    ringdp.join()


def test_what_has_no_adasum():
    with pytest.raises(ringdp.UsageError, match="only tensors of floats have an Adasum, not those of int32"):
        ringdp.allreduce(np.ones(3, np.int32), op=ringdp.Adasum)
    with pytest.raises(ringdp.UsageError, match="only a whole tensor has an Adasum"):
        ringdp.reducescatter(np.ones(ringdp.size()), op=ringdp.Adasum)


def test_other_numbers_of_ranks_than_a_power_of_two():
    if is_power_of_two():
        pytest.skip("the number of ranks is one")
    with pytest.raises(ringdp.UsageError, match=f"Adasum needs a power of two of ranks, not {ringdp.size()}"):
        ringdp.allreduce(np.ones(3), op=ringdp.Adasum)
