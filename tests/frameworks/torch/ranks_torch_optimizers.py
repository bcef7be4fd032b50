"""Every optimizer of torch, as users use it: schedulers, saved states, copies, clipping, a compiled model, closures.

Each rank trains on its part; the result is that of one process on the joined batch.
"""

import copy
import io
import pickle
import warnings

import pytest
import torch
from frameworks.torch.helpers import same_on_all_ranks

import ringdp.torch as hvd

OPTIONS = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    "LBFGS": {"lr": 0.5, "max_iter": 3},
    "Muon": {"lr": 0.02},
    "Adadelta": {"lr": 1.0},
    "Rprop": {"lr": 0.01},
}
NAMES = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type)
    and issubclass(kind, torch.optim.Optimizer)
    and kind is not torch.optim.Optimizer
)
SPARSE = ("SparseAdam",)


class Net(torch.nn.Module):
    """Two matrices and nothing else: Muon takes no other parameters."""

    def __init__(self, sparse=False):
        super().__init__()
        torch.manual_seed(1)
        self.first = torch.nn.Embedding(9, 6, sparse=sparse)
        self.second = torch.nn.Linear(6, 3, bias=False)

    def forward(self, rows):
        return self.second(self.first(rows).tanh())


def batches(steps):
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        rows = torch.randint(0, 9, (4 * hvd.size(),), generator=generator)
        targets = torch.randint(0, 3, (4 * hvd.size(),), generator=generator)
        mine = slice(4 * hvd.rank(), 4 * (hvd.rank() + 1))
        yield rows, targets, rows[mine], targets[mine]


def make(name, model):
    kind = getattr(torch.optim, name)
    params = model.first.parameters() if name in SPARSE else model.parameters()
    return kind(params, **OPTIONS.get(name, {"lr": 0.01}))


def step(optimizer, model, rows, targets, clip=0.0):
    def closure():
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(model(rows), targets)
        value.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        return value

    if isinstance(optimizer, torch.optim.LBFGS):
        optimizer.step(closure)
    else:
        closure()
        optimizer.step()


def train(name, model, steps=4, distributed=True, clip=0.0, run=None):
    """With a scheduler; warnings are errors."""
    optimizer = make(name, model)
    if distributed:
        optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
        for rows, targets, x, y in batches(steps):
            step(
                optimizer,
                model if run is None else run,
                *((x, y) if distributed else (rows, targets)),
                clip=clip,
            )
            scheduler.step()
    return optimizer


def near(model, other, atol=2e-5):
    return all(
        torch.allclose(p, q, rtol=1e-4, atol=atol)
        for p, q in zip(model.parameters(), other.parameters(), strict=True)
    )


@pytest.mark.parametrize("clip", [0.0, 0.05], ids=["", "clipped"])
@pytest.mark.parametrize("name", NAMES)
def test_equal_to_one_process(name, clip):
    if name in SPARSE and clip:
        pytest.skip("clip_grad_norm_ takes no sparse gradients")
    model, alone = Net(name in SPARSE), Net(name in SPARSE)
    if name == "LBFGS" and clip:
        pytest.skip("gradients clipped to one norm differ at right angles to the step: roundings decide")
    train(name, model, clip=clip)
    train(name, alone, distributed=False, clip=clip)
    # Adadelta and Rprop go by the sign or the size of tiny gradients: roundings show.
    assert near(model, alone, atol=1e-3 if name in ("Rprop", "Adadelta", "Muon") else 5e-5)
    assert same_on_all_ranks(model.parameters())
    assert not near(model, Net())


@pytest.mark.parametrize("name", NAMES)
def test_saved_states_and_copies(name):
    """Training goes on from a saved state, from a pickled and from a copied optimizer, with the same bits."""
    model = Net(name in SPARSE)
    optimizer = train(name, model, 2)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file)
    again = Net(name in SPARSE)
    again.load_state_dict(saved["model"])
    restored = hvd.DistributedOptimizer(make(name, again))
    restored.load_state_dict(saved["optimizer"])
    together, copied = copy.deepcopy((model, optimizer))
    other, pickled = pickle.loads(pickle.dumps((model, optimizer)))
    assert other.second.weight is pickled.param_groups[-1]["params"][-1] or name in SPARSE
    pairs = [(model, optimizer), (again, restored)]
    for net, plain in ((together, copied), (other, pickled)):
        assert type(plain) is getattr(torch.optim, name)
        pairs.append((net, hvd.DistributedOptimizer(plain)))
    for _, _, x, y in batches(2):
        for net, one in pairs:
            step(one, net, x, y)
    for net, _ in pairs:
        assert all(torch.equal(p, q) for p, q in zip(net.parameters(), model.parameters(), strict=True))
    assert same_on_all_ranks(model.parameters())


def test_muon_takes_matrices_alone_and_another_the_rest():
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 3)
    with pytest.raises(ValueError, match="2D"):
        torch.optim.Muon(model.parameters(), lr=0.1)
    matrix = hvd.DistributedOptimizer(torch.optim.Muon([model.weight], lr=0.1))
    rest = hvd.DistributedOptimizer(torch.optim.AdamW([model.bias], lr=0.1))
    for _ in range(3):
        for optimizer in (matrix, rest):
            optimizer.zero_grad()
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(hvd.rank()))
        model(x).square().mean().backward()
        for optimizer in (matrix, rest):
            optimizer.step()
    assert same_on_all_ranks(model.parameters())


@pytest.mark.shows(["DistributedOptimizer", "equals one process on the joined batch"], "torch", "compiled")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model(backend):
    model, alone = Net(), Net()
    train("AdamW", model, run=torch.compile(model, backend=backend))
    train("AdamW", alone, distributed=False)
    assert near(model, alone) and same_on_all_ranks(model.parameters())
