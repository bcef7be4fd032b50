"""Sparse tensors and sparse gradients."""

import pytest
import torch
from frameworks.torch.helpers import average, loss, parameters, same_on_all_ranks

import ringdp.torch as hvd
from ringdp.torch import device


def mine(rank, dtype=torch.float32, sparse_dim=1):
    """Row r of rank r, row 5 of all of them twice (not coalesced)."""
    rows = [rank, 5, 5]
    if sparse_dim == 1:
        values = torch.tensor([[rank + 1, 2], [1, 1], [rank, 3]], dtype=dtype)
        return torch.sparse_coo_tensor([rows], values, (7, 2))
    return torch.sparse_coo_tensor([rows, [0, 1, 1]], torch.tensor([rank + 1, 2, 3], dtype=dtype), (7, 2))


@pytest.mark.shows("sparse_allreduce", "torch", "eager")
@pytest.mark.parametrize("sparse_dim", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64], ids=str)
def test_sums(dtype, sparse_dim):
    handle = hvd.sparse_allreduce_async(mine(hvd.rank(), dtype, sparse_dim), "sparse", hvd.Sum)
    got = hvd.synchronize(handle)
    want = sum(mine(rank, dtype, sparse_dim).to_dense() for rank in range(hvd.size()))
    assert got.layout is torch.sparse_coo and got.is_coalesced() and got.dtype == dtype
    assert torch.equal(got.to_dense(), want) and handle.wait() is got and hvd.poll(handle)
    assert same_on_all_ranks([got.values().contiguous(), got.indices().contiguous()])


def test_averages_entries_none_has_and_empty_ranks():
    tensor = mine(0) * hvd.size() if hvd.rank() == 0 else torch.sparse_coo_tensor(size=(7, 2))
    if hvd.rank():
        tensor = torch.sparse_coo_tensor(torch.empty((1, 0), dtype=torch.int64), torch.empty((0, 2)), (7, 2))
    got = hvd.sparse_allreduce_async(tensor, name="some", op=hvd.Average)()
    assert torch.equal(got.to_dense(), mine(0).to_dense()) and got._nnz() == 2


def test_unnamed_ones_meet_in_order_and_in_process_sets():
    some = hvd.add_process_set([0])
    first = hvd.sparse_allreduce_async(mine(hvd.rank()), op=hvd.Sum)
    if hvd.rank() == 0:
        alone = hvd.sparse_allreduce_async(mine(3), op=hvd.Average, process_set=some)
        assert torch.equal(alone.wait().to_dense(), mine(3).to_dense())
    second = hvd.sparse_allreduce_async(2 * mine(hvd.rank()), op=hvd.Sum)
    assert torch.equal(second.wait().to_dense(), 2 * first.wait().to_dense())
    hvd.remove_process_set(some)


def test_what_is_refused():
    with pytest.raises(TypeError, match="sparse COO"):
        hvd.sparse_allreduce_async(torch.zeros(3), "x", hvd.Sum)
    with pytest.raises(hvd.UsageError, match="must be Average or Sum, not Max"):
        hvd.sparse_allreduce_async(mine(0), "x", hvd.Max)
    differs = hvd.sparse_allreduce_async(mine(0, sparse_dim=1 + (hvd.rank() == 0)), "differs", hvd.Sum)
    with pytest.raises(hvd.MismatchError):
        differs.wait()


class Model(torch.nn.Module):
    def __init__(self, sparse):
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(8, 2, sparse=sparse)
        self.linear = torch.nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            self.table.weight.copy_(torch.arange(16.0).reshape(8, 2))
            self.linear.weight.copy_(torch.tensor([[1.0, 2.0]]))

    def forward(self, rows):
        return self.linear(self.table(rows)).sum()


@pytest.mark.shows("sparse gradients", "torch", "eager")
@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("op", ["Sum", "Average"])
def test_sparse_gradients_train_as_dense_ones(op, passes):
    models = [Model(True), Model(False)]
    optimizers = [
        hvd.DistributedOptimizer(
            torch.optim.SGD(model.parameters(), lr=2.0**-6),
            op=getattr(hvd, op),
            backward_passes_per_step=passes,
        )
        for model in models
    ]
    for step in range(4):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            for i in range(passes):
                model(torch.tensor([hvd.rank(), 5, 5, (step + i) % 8])).backward()
            optimizer.synchronize()
        grads = [model.table.weight.grad for model in models]
        assert grads[0].layout is torch.sparse_coo
        assert torch.equal(grads[0].to_dense(), grads[1])
        assert torch.equal(*(model.linear.weight.grad for model in models))
        for optimizer in optimizers:
            optimizer.step()
        assert all(torch.equal(p, q) for p, q in zip(*(m.parameters() for m in models), strict=True))
    assert same_on_all_ranks(models[0].parameters())
    assert [s.planned for s in optimizers[0]._exchange._slots] == [False, True]


def test_a_rank_without_sparse_gradient_and_accumulation_over_steps():
    model = Model(True)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=1.0), op=hvd.Sum)
    for _ in range(3):
        optimizer.zero_grad()
        rows = torch.tensor([1, 5]) if hvd.rank() == 0 else None
        for times in (1, 2):  # the second comes on top of what was exchanged
            (model(rows) if rows is not None else model.linear(torch.ones(2)).sum()).backward()
            optimizer.synchronize()
            want = torch.zeros(8, 2)
            want[[1, 5]] = times * model.linear.weight.detach()
            assert torch.equal(model.table.weight.grad.to_dense(), want)
    optimizer.zero_grad()


def test_sparse_adam_and_weights():
    model = torch.nn.Embedding(6, 2, sparse=True)
    alone = torch.nn.Embedding(6, 2, sparse=True)
    alone.load_state_dict(model.state_dict())
    hvd.broadcast_parameters(model.state_dict())
    hvd.broadcast_parameters(alone.state_dict())
    optimizer = hvd.DistributedOptimizer(torch.optim.SparseAdam(model.parameters(), lr=0.1))
    other = torch.optim.SparseAdam(alone.parameters(), lr=0.1)
    for step in range(3):
        rows = [[rank, 5, (rank + step) % 6][: 1 + (rank + step) % 3] for rank in range(hvd.size())]
        optimizer.zero_grad()
        other.zero_grad()
        optimizer.weigh(len(rows[hvd.rank()]))
        model(torch.tensor(rows[hvd.rank()])).square().sum(1).mean().backward()
        alone(torch.tensor(sum(rows, []))).square().sum(1).mean().backward()
        optimizer.step()
        other.step()
        assert torch.allclose(model.weight, alone.weight, atol=1e-5)
    assert same_on_all_ranks(model.parameters())


def test_dense_ones_beside():
    params = parameters()
    table = torch.nn.Embedding(6, 2, sparse=True)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([*params, table.weight], lr=0.5), sparse_as_dense=False
    )
    for _ in range(3):
        optimizer.zero_grad()
        (loss(params) + table(torch.tensor([hvd.rank()])).sum()).backward()
        optimizer.step()
        assert all(torch.equal(p.grad, average(p)) for p in params)
        assert table.weight.grad._nnz() == hvd.size()


@pytest.mark.parametrize("before", ["default", "warn", "error"])
def test_values_are_added_up_in_one_order(before, monkeypatch):
    """On a GPU, PyTorch must be told to; and what the user has told it stands afterwards."""
    modes, add = [], torch.Tensor.index_add_

    def noted(*arguments):
        modes.append(torch.get_deterministic_debug_mode())
        return add(*arguments)

    monkeypatch.setattr(torch.Tensor, "index_add_", noted)
    tensor = mine(hvd.rank())
    number = {"default": 0, "warn": 1, "error": 2}[before]
    torch.set_deterministic_debug_mode(before)
    try:
        hvd.synchronize(hvd.sparse_allreduce_async(tensor, op=hvd.Sum))
        assert torch.get_deterministic_debug_mode() == number
    finally:
        torch.set_deterministic_debug_mode("default")
    on_gpu = device.is_on_gpu(tensor)
    assert modes and set(modes) == {(number or 2) if on_gpu else number}
