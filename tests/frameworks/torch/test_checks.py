"""What the checks decide from what the ranks have told, and `check_finite` with one rank."""

import math

import pytest
import torch

import ringdp.torch as hvd
from ringdp.torch.checks.missing import in_words
from ringdp.torch.checks.replicas import difference, together
from ringdp.torch.checks.verify import Outcome, diagnosis
from ringdp.words import ranks_in_words, some


def test_names():
    assert ranks_in_words([3]) == "rank 3" and ranks_in_words([0, 2]) == "ranks 0, 2"
    assert some([str(i) for i in range(11)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 3 others"
    assert in_words({0: ["a"], 1: ["a", "b"], 4: ["a"]}) == (
        "ranks 0, 4 have no gradient for a; rank 1 has no gradient for a, b, which other ranks have"
    )


@pytest.mark.parametrize(
    ("rows", "ranks", "groups", "is_tie", "first", "count"),
    [
        ("AB AB AC AB", "0123", [[0, 1, 3], [2]], False, 1, 1),
        ("AB CB", "01", [[0], [1]], True, 0, 1),
        ("AB CD AB CD EB", "01234", [[0, 2], [1, 3], [4]], True, 0, 2),
        ("AB XX AC AC", "023", [[2, 3], [0]], False, 1, 1),
    ],
)
def test_who_differs(rows, ranks, groups, is_tie, first, count):
    found = difference(rows.split(), [int(rank) for rank in ranks])
    assert (found.groups, found.is_tie, found.first, found.count) == (groups, is_tie, first, count)
    assert found.minority == ([] if is_tie else sorted(sum(groups[1:], [])))


def test_nobody_differs():
    assert difference(["AB", "XX", "AB"], [0, 2]) is None and difference(["AB"], [0]) is None
    assert together([1, 2]) != together([2, 1]) and together([0]) != together([0, 0])


def outcomes(*texts):
    """`ABC`: first, second, whole; `-`: none."""
    return [Outcome(*(None if letter == "-" else ord(letter) for letter in text)) for text in texts]


@pytest.mark.parametrize(
    ("told", "is_sharded", "text", "wrong"),
    [
        ("AAA AAA AAA", False, "", []),
        ("AAA BAA AAA", False, "the reduced bits on rank 12 are not", [12]),
        ("AAA ABB AAA", False, "the reduced bits on rank 12 are not", [12]),
        ("AAA BAA", False, "the reduced bits on rank 12 are not", [12]),
        ("ABB ABB", False, "alike on all ranks", []),
        ("--A AAA --A", False, "", []),
        ("--A BAA --A", False, "the reduced bits on rank 12 are not", [12]),
        ("A-- B--", False, "differ between the ranks", []),
        ("A-- B-- A--", False, "the reduced bits on rank 12 are not", [12]),
        ("AAX BBX CCX", True, "", []),
        ("AAX BCX CCX", True, "the part of rank 12 came out otherwise", [12]),
        ("AAX BBY CCX", True, "the reduced bits on rank 12 are not", [12]),
    ],
)
def test_a_second_exchange(told, is_sharded, text, wrong):
    told = outcomes(*told.split())
    said, of = diagnosis(told, range(11, 11 + len(told)), is_sharded)
    assert (text in said if text else said == "") and of == wrong


# --- one rank ---


def backward(params, bad=None):
    for p in params:
        p.grad = None
    value = sum((p * 2).sum() for p in params)
    if bad is not None:
        value = value + params[1][0, 1] * bad
    value.backward()


def make(policy):
    params = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2, 2).t())]
    optimizer = torch.optim.SGD(params, lr=0.5)
    return params, hvd.DistributedOptimizer(
        optimizer, [("a", params[0]), ("b", params[1])], check_finite=policy
    )


def test_raise_alone():
    params, optimizer = make("raise")
    backward(params, math.nan)
    with pytest.raises(
        hvd.NonFiniteError, match="rank 0 has nan in the gradient of b, at flat index 1"
    ) as error:
        optimizer.step()
    assert error.value.found[0][:3] == (0, "b", 1) and not params[0].any()
    backward(params)
    optimizer.step()
    assert (params[0] == -1).all() and (params[1] == -1).all()


def test_skip_alone(capsys):
    params, optimizer = make("skip")
    for bad in (None, math.inf, None):
        backward(params, bad)
        optimizer.step()
    assert (params[1] == -2).all() and optimizer.skipped_steps == 1
    assert "inf in the gradient of b, at flat index 1: no rank takes this step" in capsys.readouterr().err
    backward(params)
    assert optimizer.step(lambda: backward(params, math.inf)) is None and optimizer.skipped_steps == 2


def test_zero_alone(capsys):
    params, optimizer = make("zero")
    for bad in (None, math.inf):
        backward(params, bad)
        optimizer.step()
    assert params[1].tolist() == [[-2, -1], [-2, -2]] and (params[0] == -2).all()
    assert "zeros were" in capsys.readouterr().err and optimizer.skipped_steps == 0


def test_a_scaler_alone():
    for policy in ("raise", "skip", "zero"):
        params, optimizer = make(policy)
        scale = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1000)
        for bad in (0.0, math.inf, 0.0):
            optimizer.zero_grad()
            scale.scale(sum((p * 2).sum() for p in params) + params[1][0, 1] * bad).backward()
            scale.step(optimizer)
            scale.update()
        assert scale.get_scale() == 4.0 and (params[0] == -2).all() and optimizer.skipped_steps == 0


def test_adasum_exchanges_no_gradients():
    params = [torch.nn.Parameter(torch.zeros(3))]
    for options in ({"check_finite": "skip"}, {"missing_gradients": "raise"}):
        with pytest.raises(hvd.UsageError, match="op=Adasum exchanges no gradients"):
            hvd.DistributedOptimizer(torch.optim.SGD(params, lr=0.5), op=hvd.Adasum, **options)
