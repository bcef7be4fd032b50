"""State from one rank to all: every optimizer of torch, tensors that cannot be sent, objects of all kinds."""

import inspect

import numpy as np
import pytest
import torch
from frameworks.torch.helpers import parameters, same_on_all_ranks
from frameworks.torch.ranks_state import flat

import ringdp
import ringdp.torch as hvd

CLASSES = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
}
OPTIONS = {
    "Adam fused": (torch.optim.Adam, {"fused": True, "amsgrad": True}),
    "Adam tensor lr and betas": (
        torch.optim.Adam,
        {"lr": torch.tensor(0.1), "betas": (torch.tensor(0.8), torch.tensor(0.9)), "foreach": False},
    ),
    "Adam foreach": (torch.optim.Adam, {"foreach": True, "maximize": True}),
    "SGD nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "SGD without state": (torch.optim.SGD, {}),
    "RMSprop centered": (torch.optim.RMSprop, {"centered": True, "momentum": 0.9}),
    "LBFGS line search": (torch.optim.LBFGS, {"line_search_fn": "strong_wolfe", "history_size": 3}),
    "Rprop": (torch.optim.Rprop, {"etas": (0.4, 1.3)}),
}
KINDS = {name: (kind, {}) for name, kind in CLASSES.items()} | OPTIONS


def matrices():
    return [torch.nn.Parameter(torch.arange(n * 3.0).reshape(n, 3) / 7) for n in (4, 2)]


def step(optimizer, params, factor):
    sparse = isinstance(optimizer, torch.optim.SparseAdam)

    def closure():
        for p in params:
            grad = (p.detach() + 1) * factor
            p.grad = grad.to_sparse(1) if sparse else grad
        return sum(((p.detach() + 1) ** 2).sum() for p in params) * factor / 2

    optimizer.step(closure)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("root", [0, 1])
def test_every_optimizer(kind, root):
    make, options = KINDS[kind]
    params = matrices()
    optimizer = make(params, **({"lr": 0.01} | options))
    assert len(CLASSES) >= 14
    if hvd.rank() == root:
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"] * 2
    for factor in range(hvd.rank()):  # rank 0 is fresh
        step(optimizer, params, factor + 1)
    before = [p.detach().clone() for p in params]
    expected = hvd.broadcast_object(flat(optimizer.state_dict()), root)
    hvd.broadcast_optimizer_state(optimizer, root_rank=root)
    assert flat(optimizer.state_dict()) == expected
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    hvd.broadcast_parameters(params, root_rank=root)
    for factor in (1, 2):
        step(optimizer, params, factor)
    assert same_on_all_ranks(params)


def test_a_capturable_optimizer():
    """torch takes such steps on accelerators only: the state is made by hand."""
    params = matrices()
    optimizer = torch.optim.Adam(params, lr=torch.tensor(0.1), capturable=hvd.rank() == 1)
    if hvd.rank() == 1:
        for p in params:
            optimizer.state[p] = {"step": torch.tensor(3.0), "exp_avg": p.detach() + 1}
    hvd.broadcast_optimizer_state(optimizer, root_rank=1)
    assert optimizer.param_groups[0]["capturable"] is True
    assert all(torch.equal(optimizer.state[p]["exp_avg"], p + 1) for p in params)
    assert all(torch.equal(optimizer.state[p]["step"], torch.tensor(3.0)) for p in params)


def test_state_that_cannot_be_sent_fails_on_every_rank():
    params = parameters()
    optimizer = torch.optim.SGD(params, lr=0.1)
    optimizer.state[params[0]]["spectrum"] = torch.zeros(3, dtype=torch.complex64)
    error, text = (
        (TypeError, "complex64") if hvd.rank() == 1 else (hvd.PeerError, "rank 1 cannot send .*complex64")
    )
    with pytest.raises(error, match=text):
        hvd.broadcast_optimizer_state(optimizer, root_rank=1)


# --- parameters -----------------------------------------------------------------------------------

UNSUPPORTED = {
    "complex": (lambda: torch.zeros(2, dtype=torch.complex64), "dtype torch.complex64.*view_as_real"),
    "meta": (lambda: torch.zeros(2, device="meta"), "device meta.*a meta tensor has no values"),
    "sparse": (lambda: torch.eye(2).to_sparse(), r"sparse .*to_dense\(\)"),
    "quantised": (
        lambda: torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.qint8),
        r"dtype torch.qint8.*int_repr\(\)",
    ),
    "no tensor": (lambda: 3, "w is a builtins.int, not a torch.Tensor"),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_tensors_that_cannot_be_sent(kind):
    make, text = UNSUPPORTED[kind]
    a = torch.full((2,), float(hvd.rank()))
    with pytest.raises(TypeError, match=f"w .*{text}" if kind != "no tensor" else text):
        hvd.broadcast_parameters([("a", a), ("w", make())], root_rank=0)
    # On one rank alone: the others do not wait for it.
    w = make() if hvd.rank() == 1 else torch.zeros(2)
    with pytest.raises(hvd.MismatchError, match=r"rank 0: w: float32\[2\].*\n  rank 1: w: "):
        hvd.broadcast_parameters([("a", a), ("w", w)], root_rank=0)
    assert torch.equal(a, torch.full((2,), float(hvd.rank())))


# --- objects --------------------------------------------------------------------------------------


class Closed:
    """Cannot be pickled, by anything."""

    def __reduce__(self):
        raise TypeError("it stays here")


def broken():
    raise ImportError("not on this host")


class Opens:
    """Can be pickled, but not unpickled."""

    def __reduce__(self):
        return broken, ()


@pytest.mark.parametrize("module", [hvd, ringdp])
@pytest.mark.parametrize("root", [0, 1])
def test_an_object_that_cannot_be_pickled(module, root):
    obj = Closed() if hvd.rank() == root else "fine"
    mine, others = (
        rf"rank {root}: {{}} cannot pickle this .*Closed: it stays here",
        rf"{{}}: rank {root} cannot pickle its object, a .*Closed: TypeError: it stays here",
    )
    error, text = (hvd.UsageError, mine) if hvd.rank() == root else (hvd.PeerError, others)
    for name in (None, "named"):
        with pytest.raises(error, match=text.format("broadcast_object")):
            module.broadcast_object(obj, root, name)
        with pytest.raises(error, match=text.format("allgather_object")):
            module.allgather_object(obj, name)
    assert hvd.allgather_object(hvd.rank()) == list(range(hvd.size()))


def test_an_object_that_is_ignored_need_not_be_pickled():
    assert hvd.broadcast_object("root" if hvd.rank() == 0 else Closed()) == "root"


def test_an_object_that_cannot_be_unpickled():
    if hvd.rank() == 0:
        hvd.broadcast_object(Opens(), 0)
    else:
        text = (
            r"cannot unpickle the object of rank 0: ImportError: not on this host .*importable on every rank"
        )
        with pytest.raises(hvd.UsageError, match=text):
            hvd.broadcast_object(None, 0)
    assert hvd.allgather_object(hvd.rank()) == list(range(hvd.size()))


def test_a_lambda():
    pytest.importorskip("cloudpickle")
    r = hvd.rank()
    assert hvd.broadcast_object(lambda x: x + 10 * r, 1)(1) == 11
    assert [f() for f in hvd.allgather_object(lambda: r)] == list(range(hvd.size()))


def test_objects_of_every_kind():
    base = torch.arange(6.0, requires_grad=True)
    mine = {
        "none": None,
        "rank": hvd.rank(),
        "view": base[2:4],
        "leaf": torch.nn.Parameter(torch.full((2,), float(hvd.rank()))),
        "transposed": torch.arange(6).reshape(2, 3).t(),
        "bfloat16": torch.ones(2, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 3),
        "array": np.arange(3),
        "bytes": b"",
    }
    for root in range(hvd.size()):
        got = hvd.broadcast_object(mine, root)
        assert got["none"] is None and got["rank"] == root and got["bytes"] == b""
        assert torch.equal(got["view"], torch.tensor([2.0, 3.0]))
        assert torch.equal(got["leaf"], torch.full((2,), float(root))) and got["leaf"].is_leaf
        assert got["transposed"].tolist() == [[0, 3], [1, 4], [2, 5]] and got["empty"].shape == (0, 3)
        assert got["bfloat16"].dtype == torch.bfloat16 and (got["array"] == np.arange(3)).all()
        assert (got is mine) == (root == hvd.rank())
    assert hvd.broadcast_object(None, 1, name="none") is None
    assert hvd.allgather_object(None) == [None] * hvd.size()


def test_large_objects_of_other_sizes():
    n = 300_000 * (hvd.rank() + 1)
    assert np.array_equal(hvd.broadcast_object(np.arange(n), 1), np.arange(600_000))
    sizes = [300_000 * (rank + 1) for rank in range(hvd.size())]
    for theirs, size in zip(hvd.allgather_object(np.arange(n), name="large"), sizes, strict=True):
        assert np.array_equal(theirs, np.arange(size))


def test_objects_of_a_process_set():
    last = hvd.size() - 1
    chosen = hvd.add_process_set([last])
    if chosen.included():
        assert hvd.broadcast_object("mine", root_rank=last, process_set=chosen) == "mine"
        assert hvd.allgather_object("mine", process_set=chosen) == ["mine"]
        optimizer = torch.optim.SGD(parameters(), lr=0.1, momentum=0.9)
        hvd.broadcast_optimizer_state(optimizer, root_rank=last, process_set=chosen)
        hvd.broadcast_parameters(parameters(), root_rank=last, process_set=chosen)
    assert hvd.remove_process_set(chosen)
    both = hvd.add_process_set([0, last])
    if both.included():
        state = torch.full((2,), float(hvd.rank()))
        hvd.broadcast_parameters({"state": state}, root_rank=last, process_set=both)
        assert (state == last).all()
        params = parameters()
        optimizer = torch.optim.SGD(params, lr=0.1 * (hvd.rank() + 1))
        hvd.broadcast_optimizer_state(optimizer, root_rank=last, process_set=both)
        assert optimizer.param_groups[0]["lr"] == 0.1 * (last + 1)
        with pytest.raises(hvd.MismatchError, match=rf"rank {last}: a: float32\[{last}\]"):
            hvd.broadcast_parameters({"a": torch.zeros(hvd.rank())}, root_rank=0, process_set=both)
    assert hvd.remove_process_set(both)
