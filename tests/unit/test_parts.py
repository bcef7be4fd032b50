"""Where data are cut, and the tree by which results are combined."""

from collections import namedtuple

import numpy as np
import pytest

import ringdp
from ringdp import parts


@pytest.mark.parametrize("number", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 6, 7, 100])
def test_parts_are_all_and_even(count, number):
    bounds = parts.bounds(count, number)
    assert len(bounds) == number
    assert [i for begin, end in bounds for i in range(begin, end)] == list(range(count))
    sizes = [end - begin for begin, end in bounds]
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)


def test_by_weight():
    assert parts.bounds(5, 2, [1, 1, 1, 1, 4]) == [(0, 4), (4, 5)]
    assert parts.bounds(4, 3, [9, 0, 0, 0]) == [(0, 0), (0, 1), (1, 4)]
    assert parts.bounds(3, 2, [0, 0, 0]) == parts.bounds(3, 2)
    assert parts.bounds(0, 2, []) == [(0, 0), (0, 0)]
    costs = np.random.default_rng(1).exponential(size=1000)
    of_parts = [costs[b:e].sum() for b, e in parts.bounds(1000, 7, costs)]
    assert max(of_parts) - min(of_parts) <= 2 * costs.max()
    for wrong in ([1, 2], [1, 2, -1], [1, 2, np.nan], [1, 2, np.inf]):
        with pytest.raises(ringdp.UsageError, match="weights"):
            parts.bounds(3, 2, wrong)


def test_what_can_be_cut():
    pair = namedtuple("Pair", "x y")
    x, y = np.arange(10).reshape(5, 2), np.arange(5)
    for data, wanted in (
        ([1, 2, 3], [2, 3]),
        (range(9), range(1, 3)),
        ("abcd", "bc"),
        ((1, 2, 3), (2, 3)),
        (np.arange(4), np.arange(1, 3)),
    ):
        assert list(parts.cut(data, 1, 3)) == list(wanted)
    assert np.shares_memory(parts.cut(x, 1, 3), x)
    a, b = parts.cut((x, y), 1, 3)
    assert parts.length((x, y)) == 5 and (a == x[1:3]).all() and b.tolist() == [1, 2]
    assert parts.cut({"x": x, "y": y}, 4, 5)["y"].tolist() == [4]
    assert isinstance(parts.cut(pair(x, y), 1, 3), pair)
    for data, text in (
        ((x, y[:4]), "different numbers of rows: 0: 5, 1: 4"),
        ({"x": x, "y": y[:4]}, "x: 5, y: 4"),
        ({"x": 3}, "builtins.dict cannot be cut"),
        (np.float64(3), "cannot be cut"),
        (iter([1]), "cannot be cut"),
    ):
        with pytest.raises(ringdp.UsageError, match=text):
            parts.length(data)


@pytest.mark.parametrize("blocks", [1, 2, 3, 8, 13])
def test_every_tree_is_covered_by_its_ranks(blocks):
    def leaves(node):
        return [node] if node[1] - node[0] == 1 else [x for half in parts.halves(node) for x in leaves(half)]

    def nodes(node):
        return (
            [node]
            if node[1] - node[0] == 1
            else [node, *(x for half in parts.halves(node) for x in nodes(half))]
        )

    top = (0, blocks)
    assert leaves(top) == [(i, i + 1) for i in range(blocks)]
    for ranks in (1, 2, 3, 5, 20):
        covered = [node for own in parts.bounds(blocks, ranks) for node in parts.cover(top, own)]
        assert [i for node in covered for i in range(*node)] == list(range(blocks))
        assert set(covered) <= set(nodes(top))
    assert parts.cover(top, top) == [top]
