"""Who comes last: the figure from made-up times, and from records of a recorder."""

import tempfile
from pathlib import Path

import numpy as np
import pytest

from ringdp import _core, flight
from ringdp.lateness import _RECORD, _rows, compare

MS = 1_000_000


def tables(late, operations=50, step=100 * MS, clock=()):
    """Of ranks that are late by late[rank](operation) ns in every operation, each on a clock that is ahead."""
    came = np.array([[i * step + by(i) for by in late] for i in range(operations)])
    done = came.max(axis=1) + MS // 10
    ahead = clock or [0] * len(late)
    return [
        np.column_stack([np.arange(operations) + 7, came[:, r] + ahead[r], done + ahead[r]])
        for r in range(len(late))
    ]


def even(operation):
    return 0


def late(operation):
    return 50 * MS


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("slow", [0, 1])
def test_a_slow_rank_is_named(size, slow):
    figure = compare(
        list(range(size)), [1] * size, tables([late if r == slow else even for r in range(size)])
    )
    assert figure.slowest == slow and figure.operations == 50
    assert figure.last[slow] == 50 and sum(figure.last) == 50
    assert figure.behind[slow] == pytest.approx(0.05) and figure.waited[slow] == pytest.approx(0.5, rel=0.03)
    assert f"rank {slow} came last to 100 % of them, by 50.0 ms; 5" in str(figure)


def test_ranks_that_take_turns_are_not_named():
    figure = compare([0, 1, 2], [1] * 3, tables([lambda i, r=r: 50 * MS * (i % 3 == r) for r in range(3)]))
    assert figure.slowest is None and max(figure.last) == 17
    assert "none stands out" in str(figure)


def test_one_that_is_always_last_by_next_to_nothing_is_not_named():
    figure = compare([0, 1], [1] * 2, tables([even, lambda i: MS // 2]))
    assert figure.last == [0, 50] and figure.slowest is None


def test_one_that_was_held_up_once_is_not_named():
    figure = compare([0, 1], [1] * 2, tables([even, lambda i: 2000 * MS if i == 9 else 1]))
    assert figure.waited[1] > 0.3 and figure.slowest is None


def test_two_that_are_slow_are_compared_with_the_others():
    figure = compare(list(range(5)), [1] * 5, tables([even, even, even, late, lambda i: 51 * MS]))
    assert figure.slowest == 4 and figure.behind[4] == pytest.approx(0.051)


def test_clocks_of_other_hosts():
    """Ranks 0 and 1 on one host, 2 and 3 on another, whose clock is an hour ahead."""
    hour = 3600 * 1000 * MS
    figure = compare([0, 1, 2, 3], [1, 1, 2, 2], tables([even, even, even, late], clock=[0, 0, hour, hour]))
    assert figure.slowest == 3 and figure.behind[3] == pytest.approx(0.05, abs=0.001)
    assert figure.seconds == pytest.approx(4.95, abs=0.01)
    figure = compare([0, 1, 2], [1, 2, 3], tables([late, even, even], clock=[hour, 0, 2 * hour]))
    assert figure.slowest == 0


def test_operations_that_only_some_have_or_that_failed():
    of_ranks = tables([even, late])
    of_ranks[0] = of_ranks[0][:-10]
    of_ranks[1] = of_ranks[1][5:]
    of_ranks[1][3, 2] = -1
    assert compare([0, 1], [1, 1], of_ranks).operations == 34


def test_nothing_to_compare():
    nothing = np.zeros((0, 3), np.int64)
    assert "nothing to compare" in str(compare([0, 1], [1, 1], [nothing, nothing]))
    alone = compare([0], [1], tables([even]))
    assert alone.slowest is None and "nothing to compare" in str(alone)


def test_records_are_known_by_their_name_from_the_newest_back():
    with tempfile.TemporaryDirectory() as folder:
        watch = _core.Watch(str(Path(folder) / "one.flight"), 0, 1, 0, 1, "")
        try:
            watch.seconds_per_record(10)
            raw = watch.records()
            watch.seconds_per_record(5000)
            many = watch.records()
        finally:
            watch.close()
    assert len(raw) == 10 * flight.RECORD_BYTES and len(many) == flight.RECORDS * flight.RECORD_BYTES
    newest = np.frombuffer(raw, _RECORD)[::-1]
    assert newest["number"].tolist() == list(range(10, 0, -1))
    assert set(newest["name"]) == {b"gradients of layer 17"}
    rows = _rows(raw, 0, 4)
    assert len(rows) == 4 and len(set(rows[:, 0])) == 4
    assert rows[:, 1].tolist() == newest["submitted"][:4].tolist()
    assert rows[:, 2].tolist() == newest["changed"][:4].tolist()
    assert (_rows(many, 0, 4)[:, 0] == rows[:, 0]).all()
    assert len(_rows(raw, 1, 4)) == 0 and len(_rows(b"", 0, 4)) == 0
