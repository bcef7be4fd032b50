"""Model and data parallel together: training on a mesh is that of one process on the joined batch."""

import copy

import pytest
import torch
from frameworks.torch.helpers import same_on_all_ranks
from frameworks.torch.meshes import grid, integers, mesh_of
from torch import nn

import ringdp.torch as hvd
from ringdp import world
from ringdp.errors import MismatchError
from ringdp.torch import parallel


class Net(nn.Module):
    """A normed block whose features are split, between parameters that all ranks of the model axis have alike."""

    def __init__(self, model=None, width=12, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.into = nn.Linear(5, 8)
        self.norm = nn.LayerNorm(8)
        if model is None:
            self.up, self.down = nn.Linear(8, width), nn.Linear(width, 8)
        else:
            self.up = parallel.ColumnLinear(8, width, process_set=model)
            self.down = parallel.RowLinear(width, 8, process_set=model)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        x = self.into(x)
        return self.out(x + self.down(torch.tanh(self.up(self.norm(x)))))


def batches(mesh, steps, rows=4):
    """(inputs and targets of all, those of this rank's place on the data axis) for each step."""
    generator = torch.Generator().manual_seed(5)
    count = mesh.size("data") * rows
    mine = slice(mesh.rank("data") * rows, (mesh.rank("data") + 1) * rows)
    for _ in range(steps):
        x = torch.randn(count, 5, generator=generator)
        y = torch.randint(0, 3, (count,), generator=generator)
        yield (x, y), (x[mine], y[mine])


def step(model, optimizer, x, y, clip=None, passes=1):
    optimizer.zero_grad()
    for part in range(passes):
        rows = slice(part * len(x) // passes, (part + 1) * len(x) // passes)
        (nn.functional.cross_entropy(model(x[rows]), y[rows]) / passes).backward()
    norm = clip() if clip else None
    optimizer.step()
    return norm


def wrap(model, mesh, kind=torch.optim.AdamW, **options):
    return hvd.DistributedOptimizer(
        kind(model.parameters(), lr=0.02),
        named_parameters=model.named_parameters(),
        process_set=mesh.data,
        **options,
    )


def check(model, one, mesh):
    """It is the model of one process to rounding; its replicas are alike bit for bit, along both axes."""
    whole, expected = parallel.full_state_dict(model), one.state_dict()
    assert all(torch.allclose(whole[name], expected[name], atol=2e-5) for name in expected)
    assert not torch.allclose(whole["up.weight"], Net().up.weight, atol=1e-3)  # it has learned something
    parallel.check_replicated(model, mesh.model)
    mine = b"".join(p.detach().cpu().numpy().tobytes() for p in model.parameters())
    assert len(set(hvd.allgather_object(mine, process_set=mesh.data))) == 1
    assert same_on_all_ranks(parallel.replicated(model).values())


MESHES = {"grid": grid, "model alone": lambda: mesh_of(1, -1), "data alone": lambda: mesh_of(-1, 1)}


@pytest.mark.parametrize("shard", [False, True, "parameters"], ids=["whole state", "ZeRO-1", "by parameters"])
@pytest.mark.parametrize("kind", MESHES)
def test_training_is_that_of_one_process_on_the_joined_batch(kind, shard):
    mesh = MESHES[kind]()
    model, one = Net(mesh.model), Net()
    optimizer, plain = wrap(model, mesh, shard=shard), torch.optim.AdamW(one.parameters(), lr=0.02)
    for joined, mine in batches(mesh, 6):
        step(model, optimizer, *mine)
        step(one, plain, *joined)
    check(model, one, mesh)


@pytest.mark.parametrize("norm_type", [2.0, float("inf")], ids=str)
@pytest.mark.parametrize("shard", [False, True, "parameters"], ids=["whole state", "ZeRO-1", "by parameters"])
def test_clipping_by_the_norm_of_the_whole_model(shard, norm_type):
    mesh = grid()
    model, one = Net(mesh.model, width=13), Net(width=13)
    optimizer = wrap(model, mesh, torch.optim.SGD, shard=shard)
    plain = torch.optim.SGD(one.parameters(), lr=0.02)
    for joined, mine in batches(mesh, 3):
        norm = step(
            model, optimizer, *mine,
            clip=lambda: parallel.clip_grad_norm_(model, optimizer, 0.1, mesh.model, norm_type),
        )  # fmt: skip
        expected = step(
            one, plain, *joined, clip=lambda: nn.utils.clip_grad_norm_(one.parameters(), 0.1, norm_type)
        )
        assert expected > 0.1
        assert norm.item() == pytest.approx(expected.item(), rel=1e-4)
        assert len(set(hvd.allgather_object(norm.item()))) == 1
    whole = parallel.full_state_dict(model)
    assert all(torch.allclose(whole[name], p, atol=1e-5) for name, p in one.state_dict().items())
    parallel.check_replicated(model, mesh.model)


def test_clipping_without_a_distributed_optimizer():
    mesh = mesh_of(1, -1)
    layer = parallel.RowLinear(2 * mesh.size("model"), 1, process_set=mesh.model)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    layer.weight.grad, layer.bias.grad = torch.full((1, 2), 2.0), torch.ones(1)
    norm = parallel.clip_grad_norm_(layer, optimizer, 1.0, mesh.model)
    assert norm.item() == pytest.approx((8 * mesh.size("model") + 1) ** 0.5)
    assert torch.allclose(layer.weight.grad, torch.full((1, 2), 2.0 / norm.item()))
    with pytest.raises(hvd.UsageError, match="norm_type must be above 0"):
        parallel.clip_grad_norm_(layer, optimizer, 1.0, mesh.model, 0.0)


def test_gradients_are_exact_on_integers():
    """Of the average over the data axis, each rank has its part."""
    mesh = grid()
    n, place = mesh.size("data"), mesh.rank("data")
    model = nn.Sequential(
        parallel.ColumnLinear(4, 6, process_set=mesh.model), parallel.RowLinear(6, 2, process_set=mesh.model)
    )
    one = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    with torch.no_grad():
        for i, p in enumerate(one.parameters()):
            p.copy_(integers(*p.shape, start=i))
    parallel.load_full_state_dict(model, one.state_dict())
    optimizer = wrap(model, mesh, torch.optim.SGD)
    inputs = [n * integers(3, 4, start=d) for d in range(n)]
    model(inputs[place]).sum().backward()
    optimizer.synchronize()
    sum(one(x).sum() for x in inputs).backward()
    for split, whole in zip(model, one, strict=True):
        for name, p in split.named_parameters():
            expected = split.part(name, getattr(whole, name).grad / n)
            assert torch.equal(p.grad, expected)


def test_accumulation_and_no_exchange_on_the_model_axis_beyond_the_layers():
    """A step sends along the data axis what it sends for one rank of the model axis, and two sums along the other."""
    mesh = grid()
    model, one = Net(mesh.model), Net()
    optimizer = wrap(model, mesh, torch.optim.SGD, backward_passes_per_step=2)
    plain = torch.optim.SGD(one.parameters(), lr=0.02)
    counters = world.current().engine.counters
    for number, (joined, mine) in enumerate(batches(mesh, 4)):
        before = counters()["named"]
        step(model, optimizer, *mine, passes=2)
        step(one, plain, *joined)
        if number == 3:
            assert counters()["named"] - before == (2 * 2 if mesh.size("model") > 1 else 0)
    check(model, one, mesh)


def test_ranks_that_begin_otherwise():
    mesh = grid()
    model, one = Net(mesh.model, seed=7 + hvd.rank()), Net()
    parallel.broadcast_parameters(model, mesh)
    one.load_state_dict(parallel.full_state_dict(model))
    parallel.load_full_state_dict(model, hvd.broadcast_object(one.state_dict()))
    one.load_state_dict(parallel.full_state_dict(model))
    optimizer, plain = wrap(model, mesh), torch.optim.AdamW(one.parameters(), lr=0.02)
    for joined, mine in batches(mesh, 3):
        step(model, optimizer, *mine)
        step(one, plain, *joined)
    check(model, one, mesh)


def test_a_checkpoint_moves_to_another_mesh():
    """Saved by one, loaded on another, and trained on as if nothing had been."""
    first, second = grid(), mesh_of(-1, 1)
    model = Net(first.model)
    optimizer = wrap(model, first, torch.optim.SGD)
    for _, mine in batches(first, 2):
        step(model, optimizer, *mine)
    saved = copy.deepcopy(parallel.full_state_dict(model))
    other, one = Net(second.model, seed=3), Net(seed=4)
    parallel.load_full_state_dict(other, saved)
    one.load_state_dict(saved)
    optimizer, plain = wrap(other, second, torch.optim.SGD), torch.optim.SGD(one.parameters(), lr=0.02)
    for joined, mine in batches(second, 2):
        step(other, optimizer, *mine)
        step(one, plain, *joined)
    check(other, one, second)


def test_models_that_differ_along_the_data_axis_are_refused():
    mesh = mesh_of(-1, 1)
    model = Net(mesh.model, width=12 + mesh.rank("data"))
    with pytest.raises(MismatchError, match="up.weight"):
        parallel.broadcast_parameters(model, mesh)
    assert hvd.allreduce(torch.ones(1), op=hvd.Sum).item() == hvd.size()


def test_a_whole_step_after_shutdown_and_init():
    mesh = grid()
    model, one = Net(mesh.model), Net()
    optimizer, plain = wrap(model, mesh, torch.optim.SGD), torch.optim.SGD(one.parameters(), lr=0.02)
    for number, (joined, mine) in enumerate(batches(mesh, 4)):
        if number == 2:
            hvd.shutdown()
            hvd.init()
            with pytest.raises(hvd.NotInitializedError, match=r"add\(\)"):
                model(mine[0])
            mesh.add()
        step(model, optimizer, *mine)
        step(one, plain, *joined)
    check(model, one, mesh)
