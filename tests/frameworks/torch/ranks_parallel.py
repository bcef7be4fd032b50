"""Layers split over the model axis: forward, gradients and state are those of the layers of one process."""

import copy
import io

import pytest
import torch
from frameworks.torch.meshes import filled, grid, integers, mesh_of, part
from torch import nn

import ringdp.torch as hvd
from ringdp.errors import MismatchError, ReplicaError, UsageError
from ringdp.torch import parallel

SIZES = [(6, 12, 5), (5, 7, 3)]  # features in, between, out; the second divide evenly by nothing


def whole_pair(features, dtype=torch.float32, bias=True):
    a, b, c = features
    return filled(nn.Sequential(nn.Linear(a, b, bias), nn.ReLU(), nn.Linear(b, c, bias)).to(dtype))


def split_pair(whole, process_set):
    return nn.Sequential(
        parallel.ColumnLinear.from_linear(whole[0], process_set),
        nn.ReLU(),
        parallel.RowLinear.from_linear(whole[2], process_set),
    )


def backward(model, x):
    """(output, gradient of the input), of a loss with integer gradients."""
    x = x.detach().clone().requires_grad_()
    y = model(x)
    (y * integers(*y.shape, start=2, dtype=y.dtype)).sum().backward()
    return y.detach(), x.grad


def check_gradients(split, whole, process_set):
    """The gradients of the parts are parts of the whole gradients, exactly."""
    dims = [0, 0, 1, None] if whole[0].bias is not None else [0, 1]
    for mine, theirs, dim in zip(split.parameters(), whole.parameters(), dims, strict=True):
        expected = theirs.grad if dim is None else part(theirs.grad, dim, process_set)
        assert torch.equal(mine.grad, expected)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("features", SIZES, ids=str)
def test_a_pair_equals_that_of_one_process(features, dtype, bias):
    model = grid().model
    whole = whole_pair(features, dtype, bias)
    split = split_pair(whole, model)
    x = integers(2, features[0], dtype=dtype)
    y, grad = backward(split, x)
    expected_y, expected_grad = backward(whole, x)
    assert y.dtype == dtype and torch.equal(y, expected_y) and torch.equal(grad, expected_grad)
    check_gradients(split, whole, model)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (0,), (2, 0, 3), (2, 1, 3)], ids=str)
def test_inputs_of_any_dimensions(shape):
    model = grid().model
    whole = whole_pair((5, 7, 3))
    split = split_pair(whole, model)
    x = integers(*shape, 5)
    y, grad = backward(split, x)
    expected_y, expected_grad = backward(whole, x)
    assert y.shape == (*shape, 3) and torch.equal(y, expected_y) and torch.equal(grad, expected_grad)
    check_gradients(split, whole, model)


def test_layers_by_themselves():
    """Column, put together again; row, of an input that all have."""
    model = grid().model
    whole = filled(nn.Linear(5, 7)), filled(nn.Linear(7, 5))
    column = parallel.ColumnLinear.from_linear(whole[0], model, gather_output=True)
    row = parallel.RowLinear.from_linear(whole[1], model, input_is_split=False)
    for split, one, dim in [(column, whole[0], 0), (row, whole[1], 1)]:
        x = integers(3, one.in_features, start=3)
        got, expected = backward(split, x), backward(one, x)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        assert torch.equal(split.weight.grad, part(one.weight.grad, dim, model))
    assert torch.equal(column.bias.grad, part(whole[0].bias.grad, 0, model))
    assert torch.equal(row.bias.grad, whole[1].bias.grad)


def test_the_same_seed_gives_parts_of_the_layer_of_one_process():
    model = grid().model

    def build(linear, second):
        torch.manual_seed(4)
        return nn.Sequential(linear, second) if isinstance(linear, nn.Module) else linear()

    torch.manual_seed(4)
    column = parallel.ColumnLinear(5, 7, process_set=model)
    row = parallel.RowLinear(7, 3, process_set=model)
    table = parallel.SplitEmbedding(9, 4, process_set=model)
    after = torch.rand(1)
    torch.manual_seed(4)
    whole = nn.Linear(5, 7), nn.Linear(7, 3), nn.Embedding(9, 4)
    assert torch.equal(after, torch.rand(1))  # as many random numbers were drawn
    assert torch.equal(column.weight, part(whole[0].weight, 0, model))
    assert torch.equal(column.bias, part(whole[0].bias, 0, model))
    assert torch.equal(row.weight, part(whole[1].weight, 1, model))
    assert torch.equal(row.bias, whole[1].bias)
    assert torch.equal(table.weight, part(whole[2].weight, 0, model))
    # Of their own memory: the whole one is not kept.
    assert column.weight.untyped_storage().nbytes() == 4 * column.weight.numel()
    assert row.weight.is_contiguous() and row.weight.untyped_storage().nbytes() == 4 * row.weight.numel()


def test_options_of_the_layer_are_kept():
    model = grid().model
    layer = nn.Linear(6, 8, bias=False, dtype=torch.float64).eval()
    layer.weight.requires_grad_(False)
    column = parallel.ColumnLinear.from_linear(layer, model)
    assert column.bias is None and column.weight.dtype == torch.float64
    assert not column.weight.requires_grad and not column.training
    assert f"in_features=6, out_features=8, bias=False, ranks={model.ranks}" in repr(column)
    copied = copy.deepcopy(column)
    assert copied.process_set is model and torch.equal(copied.weight, column.weight)
    assert copied.weight.data_ptr() != column.weight.data_ptr()
    half = parallel.RowLinear(6, 4, process_set=model, dtype=torch.float16)
    assert half.weight.dtype == half.bias.dtype == torch.float16


def test_what_cannot_be_split():
    model = grid().model
    n = model.size()
    with pytest.raises(UsageError, match=f"a dimension of {n - 1} cannot be split over the {n} ranks"):
        parallel.ColumnLinear(4, n - 1, process_set=model)
    with pytest.raises(UsageError, match=f"a dimension of {n - 1} cannot be split"):
        parallel.RowLinear(n - 1, 4, process_set=model)
    row = parallel.RowLinear(6 * n, 4, process_set=model)
    with pytest.raises(UsageError, match=f"an input of {6 * n} features, and this rank takes 6 of {6 * n}"):
        row(torch.ones(2, 6 * n))
    alone = hvd.add_process_set([0])
    if hvd.rank() != 0:
        with pytest.raises(UsageError, match="this rank is not in"):
            parallel.ColumnLinear(4, 4, process_set=alone)
    hvd.remove_process_set(alone)
    with pytest.raises(UsageError, match="padding_idx"):
        parallel.SplitEmbedding.from_embedding(nn.Embedding(9, 2, padding_idx=0), model)
    with pytest.raises(UsageError, match="say `whole=`"):
        parallel.gather_from(torch.ones(2, 3), model, whole=3 * n + n)


def test_inputs_of_other_shapes_are_a_mismatch_on_all_ranks():
    model = grid().model
    row = parallel.RowLinear(2 * model.size(), 3, process_set=model)
    with pytest.raises(MismatchError, match="differs between ranks"):
        row(torch.ones(2 + model.rank(), 2))
    assert torch.equal(parallel.reduce_from(torch.ones(2), model), torch.full((2,), float(model.size())))


# --- the four ways ---


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("length", [6, 7])
def test_scatter_and_gather_are_each_other_s_gradients(dim, length):
    model = grid().model
    shape = [4, 3, 2]
    shape[dim] = length
    whole = integers(*shape)
    x = whole.clone().requires_grad_()
    mine = parallel.scatter_to(x, model, dim)
    assert torch.equal(mine, part(whole, dim, model)) and mine.is_contiguous()
    again = parallel.gather_from(mine, model, dim, length)
    assert torch.equal(again, whole)
    (again * integers(*shape, start=4)).sum().backward()
    assert torch.equal(x.grad, integers(*shape, start=4))


def test_copy_and_reduce():
    model = grid().model
    n, place = model.size(), model.rank()
    x = integers(3, 2).requires_grad_()
    parts = parallel.copy_to(x, model) * (place + 1)
    total = parallel.reduce_from(parts, model)
    factor = n * (n + 1) // 2
    assert torch.equal(total, integers(3, 2) * factor)
    (total * integers(3, 2, start=1)).sum().backward()
    assert torch.equal(x.grad, integers(3, 2, start=1) * factor)
    assert parallel.part_sizes(7, model) == [len(p) for p in torch.arange(7).tensor_split(n)]


def test_a_set_of_one_rank_exchanges_nothing():
    alone = mesh_of(-1, 1).model
    x = integers(3, 4).requires_grad_()
    for way in (parallel.copy_to, parallel.reduce_from, parallel.scatter_to, parallel.gather_from):
        assert way(x, alone) is x
    whole = whole_pair((5, 7, 3))
    split = split_pair(whole, alone)
    assert torch.equal(split(integers(2, 5)), whole(integers(2, 5)))


# --- embeddings ---


@pytest.mark.parametrize("rows", [8, 7])
def test_a_split_table(rows):
    model = grid().model
    whole = filled(nn.Embedding(rows, 3))
    split = parallel.SplitEmbedding.from_embedding(whole, model)
    indices = (torch.arange(12) * 5 % rows).view(3, 4)
    outputs = [table(indices) for table in (split, whole)]
    assert torch.equal(*outputs)
    for y in outputs:
        (y * integers(*y.shape)).sum().backward()
    assert torch.equal(split.weight.grad, part(whole.weight.grad, 0, model))


# --- state ---


class Model(nn.Module):
    def __init__(self, split=None, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.norm = nn.LayerNorm(5)
        self.register_buffer("count", torch.zeros(2))
        if split is None:
            self.up, self.down = nn.Linear(5, 7), nn.Linear(7, 5)
            self.table = nn.Embedding(9, 5)
        else:
            self.up = parallel.ColumnLinear(5, 7, process_set=split)
            self.down = parallel.RowLinear(7, 5, process_set=split)
            self.table = parallel.SplitEmbedding(9, 5, process_set=split)

    def forward(self, x):
        hidden = self.norm(self.table(x))
        return hidden + self.down(torch.relu(self.up(hidden)))


def test_whole_state_dicts():
    model = grid().model
    split, one = Model(model), Model()
    whole = parallel.full_state_dict(split)
    expected = one.state_dict()
    assert list(whole) == list(expected)
    assert all(torch.equal(whole[name], expected[name]) for name in expected)
    assert set(parallel.split_parameters(split)) == {"up.weight", "up.bias", "down.weight", "table.weight"}
    assert set(parallel.replicated(split)) == {"norm.weight", "norm.bias", "count", "down.bias"}
    file = io.BytesIO()
    torch.save(Model(seed=1).state_dict(), file)
    file.seek(0)
    parallel.load_full_state_dict(split, torch.load(file))
    other = Model(model, seed=1)
    assert all(torch.equal(p, q) for p, q in zip(split.parameters(), other.parameters(), strict=True))
    with pytest.raises(
        UsageError, match=r"up.weight has the shape \(2, 2\), and the whole parameter \(7, 5\)"
    ):
        parallel.load_full_state_dict(split, expected | {"up.weight": torch.ones(2, 2)})
    with pytest.raises(RuntimeError, match="Missing key"):
        parallel.load_full_state_dict(split, {})


def test_ranks_that_began_otherwise_are_made_alike():
    mesh = grid()
    split = Model(mesh.model, seed=hvd.rank())
    split.count += hvd.rank()
    with pytest.raises(ReplicaError, match="norm|down.bias|count"):
        parallel.check_replicated(split, mesh.model)
    before = {name: p.detach().clone() for name, p in split.named_parameters()}
    parallel.broadcast_parameters(split, mesh)
    parallel.check_replicated(split, mesh.model)
    first = Model(mesh.model)  # rank 0's bias and norm; the parts of the first rank along the data axis
    assert torch.equal(split.down.bias, Model(mesh.model, seed=0).down.bias)
    assert torch.equal(split.norm.weight, first.norm.weight) and not split.count.any()
    if mesh.rank("data") == 0:
        assert torch.equal(split.up.weight, before["up.weight"])
    seed = mesh.data.ranks[0]
    assert torch.equal(split.up.weight, Model(mesh.model, seed=seed).up.weight)


def test_a_replica_that_has_drifted_is_named():
    mesh = grid()
    split = Model(mesh.model)
    parallel.check_replicated(split, mesh.model)
    if mesh.rank("model") == 1:
        with torch.no_grad():
            split.norm.bias[2] = -0.0
    with pytest.raises(
        ReplicaError, match=rf"norm.bias is replicated .* ranks \[{mesh.model.ranks[1]}\] have other"
    ):
        parallel.check_replicated(split, mesh.model)


# --- inside a compiled graph ---


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_as_a_whole(backend):
    model = grid().model
    torch.compiler.reset()
    split, whole = Model(model), Model()
    for layer in (split.up, split.down, whole.up, whole.down):
        filled(layer)
    for name in ("up", "down"):
        kind = {"up": parallel.ColumnLinear, "down": parallel.RowLinear}[name]
        setattr(split, name, kind.from_linear(getattr(whole, name), model))
    indices = torch.arange(6).view(2, 3)
    split(indices).sum().backward()
    expected = [p.grad.clone() for p in split.parameters()]
    outputs = split(indices)
    split.zero_grad()
    compiled = torch.compile(split, fullgraph=True, backend=backend)
    for _ in range(2):
        split.zero_grad()
        y = compiled(indices)
        y.sum().backward()
        assert torch.equal(y, outputs)
        assert all(torch.equal(p.grad, e) for p, e in zip(split.parameters(), expected, strict=True))
    assert torch.allclose(y, whole(indices), atol=1e-5)
    gathered = parallel.ColumnLinear.from_linear(whole.up, model, gather_output=True)
    x = integers(2, 5)
    y = torch.compile(gathered, fullgraph=True, backend=backend)(x)
    assert torch.equal(y, whole.up(x))
    torch.compiler.reset()
