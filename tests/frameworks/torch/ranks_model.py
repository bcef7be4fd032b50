"""`DistributedOptimizer(model=…)`: models are compared and made equal at once, buffers follow the first rank."""

import pytest
import torch
from counting import counted
from frameworks.torch.helpers import same_on_all_ranks

import ringdp.torch as hvd


def network(seed=0, width=4):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(3, width), torch.nn.BatchNorm1d(width), torch.nn.Linear(width, 2)
    )


def wrap(model, **options):
    return hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model=model, **options)


def inputs(step=0):
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(10 * step + hvd.rank()))


def named_done(act):
    return counted(act)["named"]


def equal(model):
    return same_on_all_ranks(model.parameters()), same_on_all_ranks([b.double() for b in model.buffers()])


def test_models_are_equal_at_once():
    model = network(seed=hvd.rank())
    model[1].running_mean.fill_(hvd.rank())
    mine = [p.detach().clone() for p in model.parameters()]
    wrap(model)
    assert equal(model) == (True, True)
    assert hvd.rank() or all(torch.equal(p, m) for p, m in zip(model.parameters(), mine, strict=True))
    assert (model[1].running_mean == 0).all()


def test_models_that_differ_are_told_at_construction():
    mine = hvd.rank() == hvd.size() - 1
    with pytest.raises(hvd.MismatchError, match=r"0.weight: float32\[[45], 3\]"):
        wrap(network(width=5 if mine else 4))
    model = network()
    model.register_buffer("scale", torch.zeros(2 if mine else 3))
    with pytest.raises(hvd.MismatchError, match=r"scale.*float32\[[23]\]"):
        wrap(model)
    wrap(network())


def test_buffers_are_the_first_ranks():
    model = network()
    optimizer = wrap(model)
    for step in range(3):
        optimizer.zero_grad()
        expected = hvd.broadcast(model[1].running_mean, 0)
        running = []
        handle = model[1].register_forward_pre_hook(lambda m, _, r=running: r.append(m.running_mean.clone()))
        model(inputs(step)).square().sum().backward()
        handle.remove()
        assert torch.equal(running[0], expected)
        assert hvd.size() == 1 or not equal(model)[1]  # each has seen its own batch since
        optimizer.step()
    assert equal(model)[0]


def test_when_buffers_are_broadcast():
    model = network()
    optimizer = wrap(model)
    dtypes = 2  # float32 and the int64 of num_batches_tracked
    optimizer.zero_grad()
    assert named_done(lambda: model(inputs())) == dtypes
    assert named_done(lambda: model(inputs())) == 0  # again within the step
    model(inputs()).sum().backward()
    optimizer.step()
    model.eval()
    assert named_done(lambda: model(inputs())) == 0
    model.train()
    with torch.no_grad():
        assert named_done(lambda: model(inputs())) == 0
    with optimizer.no_sync():
        assert named_done(lambda: model(inputs())) == 0
    assert named_done(lambda: model(inputs())) == dtypes
    optimizer.zero_grad()
    assert named_done(lambda: model(inputs())) == dtypes


def test_buffers_of_ones_own():
    model = network()
    optimizer = wrap(model, broadcast_buffers=False)
    assert not model._forward_pre_hooks and named_done(lambda: model(inputs())) == 0
    optimizer.zero_grad()


def test_an_optimizer_that_is_dropped_lets_go_of_the_model():
    model = network()
    optimizer = wrap(model)
    assert len(model._forward_pre_hooks) == 1
    del optimizer
    assert not model._forward_pre_hooks


def test_names_are_the_models():
    model = network(width=4)
    optimizer = wrap(model)
    assert [s.name for s in optimizer._exchange._slots] == [name for name, _ in model.named_parameters()]


def test_a_process_set():
    some = hvd.add_process_set([hvd.size() - 1])
    if hvd.size() > 2:
        others = hvd.add_process_set(range(1, hvd.size()))
        model = network(seed=hvd.rank())
        optimizer = wrap(model, process_set=others)
        model(inputs()).sum().backward()
        optimizer.step()
        weights = hvd.allgather_object(model[0].weight.tolist())
        assert all(w == weights[1] for w in weights[1:]) and weights[0] != weights[1]
        del optimizer
        hvd.remove_process_set(others)
    model = network(seed=hvd.rank())
    optimizer = wrap(model, process_set=some)
    assert optimizer._exchange is None and not model._forward_pre_hooks
    hvd.remove_process_set(some)


@pytest.mark.parametrize("inner", [True, False])
def test_a_compiled_model(inner):
    """Given as it is, or compiled; run compiled."""
    torch.compiler.reset()
    model = network()
    compiled = torch.compile(model, backend="eager")
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), model=model if inner else compiled
    )
    for step in range(3):
        optimizer.zero_grad()
        assert named_done(lambda step=step: compiled(inputs(step)).square().sum().backward()) >= 2
        optimizer.step()
    assert same_on_all_ranks(model.parameters())
    optimizer.zero_grad()
    compiled(inputs())
    assert hvd.size() == 1 or not equal(model)[1]
