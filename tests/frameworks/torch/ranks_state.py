"""State from one rank to all."""

import pytest
import torch
from frameworks.torch.helpers import loss, network, parameters, same_on_all_ranks, wrap

import ringdp.torch as hvd


def on_root(model, root):
    return [torch.equal(p, q) for p, q in zip(model.parameters(), network(root).parameters(), strict=True)]


@pytest.mark.shows("broadcast of the initial state", "torch", "eager")
@pytest.mark.parametrize(
    "collection",
    [
        lambda m: m.state_dict(),
        lambda m: m.named_parameters(),
        lambda m: m.parameters(),
        lambda m: list(m.parameters()),
        lambda m: list(m.named_parameters()),
    ],
    ids=["state_dict", "named_generator", "generator", "list", "named_list"],
)
@pytest.mark.parametrize("root", [0, 1])
def test_broadcast_parameters(collection, root):
    model = network(hvd.rank())
    hvd.broadcast_parameters(collection(model), root_rank=root)
    assert all(on_root(model, root))
    assert all(p.is_leaf and p.requires_grad for p in model.parameters())


def test_buffers_and_entries_that_are_no_tensors():
    norm = torch.nn.BatchNorm1d(3)
    norm(torch.randn(4, 3) + hvd.rank())
    norm.num_batches_tracked += hvd.rank()
    state = norm.state_dict() | {"note": f"rank {hvd.rank()}", "nothing": None}
    hvd.broadcast_parameters(state, root_rank=0)
    assert state["note"] == f"rank {hvd.rank()}"
    assert norm.num_batches_tracked.item() == 1
    assert same_on_all_ranks([norm.running_mean, norm.running_var])


def test_parameters_of_every_layout():
    params = [
        torch.nn.Parameter(torch.full((2, 3), float(hvd.rank())).t()),
        torch.nn.Parameter(torch.tensor(float(hvd.rank()))),
        torch.nn.Parameter(torch.zeros(0, 3)),
        torch.nn.Parameter(torch.full((2, 3, 4, 5), float(hvd.rank())).to(memory_format=torch.channels_last)),
        torch.nn.Parameter(torch.full((8,), hvd.rank(), dtype=torch.bfloat16)[::2]),
    ]
    hvd.broadcast_parameters(params, root_rank=1)
    assert all((p == 1).all() for p in params)


@pytest.mark.parametrize(
    ("mine", "text"),
    [
        (lambda r: {"a": torch.zeros(3 + r)}, r"rank 0: a: float32\[3\].*\n  rank 1: a: float32\[4\]"),
        (
            lambda r: {"a": torch.zeros(3, dtype=torch.float64 if r else torch.float32)},
            r"rank 1: a: float64",
        ),
        (lambda r: {"a": torch.zeros(3)} | ({"b": torch.zeros(1)} if r else {}), r"rank 0: \(nothing more\)"),
    ],
    ids=["shape", "dtype", "name"],
)
def test_ranks_that_differ(mine, text):
    state = mine(hvd.rank())
    with pytest.raises(hvd.MismatchError, match=text):
        hvd.broadcast_parameters(state, root_rank=0)
    assert all((t == 0).all() for t in state.values())
    hvd.broadcast_parameters({"a": torch.ones(3)}, root_rank=0)


def test_what_is_no_collection():
    with pytest.raises(hvd.UsageError, match="dict, a list or a generator"):
        hvd.broadcast_parameters(torch.zeros(3), root_rank=0)
    with pytest.raises(TypeError, match="not a torch.Tensor"):
        hvd.broadcast_parameters([1, 2], root_rank=0)


# --- optimizers -----------------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "tensor_lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.1), foreach=False),
}


def step(params, optimizer, factor):
    def closure():
        optimizer.zero_grad()
        value = (torch.cat(list(params)).square() * factor).sum()
        value.backward()
        return value

    optimizer.step(closure)


def flat(value):
    """The state as comparable things."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.tolist())
    if isinstance(value, dict):
        return {str(k): flat(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [flat(v) for v in value]
    return value


@pytest.mark.shows("broadcast of the initial state", "torch", "eager")
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("root", [0, 1])
@pytest.mark.parametrize("others", ["fresh", "with_state"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_broadcast_optimizer_state(kind, root, others, wrapped):
    params = parameters()
    optimizer = OPTIMIZERS[kind](params)
    if hvd.rank() == root:
        optimizer.param_groups[0]["lr"] *= 2
    if hvd.rank() == root or others == "with_state":
        for factor in range(hvd.rank() + 1):
            step(params, optimizer, factor + 1)
    if wrapped:
        optimizer = hvd.DistributedOptimizer(optimizer)
    before = [p.detach().clone() for p in params]
    mine = flat(optimizer.state_dict())
    hvd.broadcast_optimizer_state(optimizer, root_rank=root)
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))  # no weight changes
    after = flat(optimizer.state_dict())
    assert after == hvd.broadcast_object(mine, root_rank=root)
    hvd.broadcast_parameters(params, root_rank=root)
    for _ in range(2):
        step(params, optimizer, 3)
    assert same_on_all_ranks(params)


def test_a_root_without_state_clears_the_others():
    params = parameters()
    optimizer = wrap(params, optimizer=torch.optim.Adam)
    if hvd.rank() != 0:
        for p in params:
            optimizer.state[p]["step"] = torch.tensor(3.0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    assert len(optimizer.state) == 0
    loss(params).backward()
    optimizer.step()
    assert same_on_all_ranks(params)


def test_state_keeps_its_dtype_beside_a_16_bit_model():
    params = parameters(dtype=torch.bfloat16)
    optimizer = torch.optim.SGD(params, lr=0.1)
    if hvd.rank() == 0:
        for p in params:
            optimizer.state[p]["master"] = p.detach().float() + 0.001
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    for p in params:
        assert torch.equal(optimizer.state[p]["master"], p.detach().float() + 0.001)


def test_optimizers_over_other_parameters():
    params = parameters((3, 4 + hvd.rank()))
    with pytest.raises(hvd.MismatchError, match=r"group 0, parameter 1: float32\[5\]"):
        hvd.broadcast_optimizer_state(torch.optim.SGD(params, lr=0.1), root_rank=0)


# --- objects --------------------------------------------------------------------------------------


@pytest.mark.shows(["broadcast_object", "allgather_object"], "torch", "eager")
def test_objects():
    mine = {"rank": hvd.rank(), "weights": torch.full((3,), float(hvd.rank()))}
    for root in range(hvd.size()):
        got = hvd.broadcast_object(mine, root_rank=root)
        assert got["rank"] == root and torch.equal(got["weights"], torch.full((3,), float(root)))
    everything = hvd.allgather_object(mine)
    assert [o["rank"] for o in everything] == list(range(hvd.size()))
