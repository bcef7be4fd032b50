"""`weigh(n)`: uneven batches are worth the joined batch. Powers of two are exact."""

import pytest
import torch
from counting import counted
from frameworks.torch.helpers import network, parameters, same_on_all_ranks, wrap

import ringdp.torch as hvd
from ringdp.torch.ops import operations


def mean_gradient(param, rank, i=0):
    """The gradient of one rank's mean loss in pass i: integers."""
    return (torch.arange(param.numel(), dtype=torch.float64) + 1 + 3 * rank + 7 * i).reshape(param.shape)


def joined(param, counts, passes=1):
    """Σ n g / Σ n over ranks and passes; counts[pass][rank]."""
    total = sum(sum(row) for row in counts)
    value = sum(
        counts[i][rank] * mean_gradient(param, rank, i) for i in range(passes) for rank in range(hvd.size())
    )
    return (value / max(total, 1)).to(param.dtype)


def backward(params, i=0):
    sum((p * mean_gradient(p, hvd.rank(), i).to(p.dtype)).sum() for p in params).backward()


def counts_for(step, passes=1):
    """counts[pass][rank]: uneven, zeros among them, and of a sum that is a power of two."""
    counts = [[(step + i + rank) % 3 for rank in range(hvd.size())] for i in range(passes)]
    total = sum(map(sum, counts))
    counts[-1][0] += (1 << total.bit_length()) - total
    return counts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bytes_", [16, 1 << 20])
def test_uneven_batches_are_the_joined_batch(dtype, bytes_):
    params = parameters(dtype=dtype)
    optimizer = wrap(params, bucket_bytes=bytes_)
    for step in range(4):
        counts = counts_for(step)
        optimizer.zero_grad()
        optimizer.weigh(counts[0][hvd.rank()])
        backward(params)
        assert optimizer._exchange.finished
        for p in params:
            if dtype is torch.bfloat16:
                assert torch.allclose(p.grad, joined(p, counts), rtol=2e-2)
            else:
                assert torch.equal(p.grad, joined(p, counts))
        optimizer.step()
    assert same_on_all_ranks(params)


@pytest.mark.parametrize("how", ["passes", "no_sync"])
def test_each_pass_weighs_its_own(how):
    params = parameters()
    optimizer = wrap(params, backward_passes_per_step=3 if how == "passes" else 1)
    for step in range(3):
        counts = counts_for(step, 3)
        optimizer.zero_grad()
        for i in range(3):
            optimizer.weigh(counts[i][hvd.rank()])
            if how == "no_sync" and i < 2:
                with optimizer.no_sync():
                    backward(params, i)
            else:
                backward(params, i)
        assert optimizer._exchange.finished
        assert all(torch.equal(p.grad, joined(p, counts, 3)) for p in params)
        optimizer.step()
    assert same_on_all_ranks(params)


def test_no_samples_count_nothing_be_the_loss_nan():
    params = parameters()
    optimizer = wrap(params)
    for _ in range(2):
        optimizer.zero_grad()
        optimizer.weigh(4 if hvd.rank() == 0 else 0)
        empty = float("nan") if hvd.rank() else 1.0
        sum((p * mean_gradient(p, 0).float() * empty).sum() for p in params).backward()
        assert all(torch.equal(p.grad, mean_gradient(p, 0).float()) for p in params)
        optimizer.step()
        optimizer.zero_grad()
        optimizer.weigh(0)
        backward(params)
        assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in params)
        optimizer.step()


def test_a_rank_without_backward_counts_what_it_has_said():
    params = parameters()
    optimizer = wrap(params)
    for samples in (0, 2):
        optimizer.zero_grad()
        optimizer.weigh(2 if hvd.rank() == 0 else samples)
        if hvd.rank() == 0:
            backward(params)
        optimizer.step()
        total = 2 + samples * (hvd.size() - 1)
        for p in params:
            assert torch.allclose(p.grad, 2 * mean_gradient(p, 0).float() / total)


def test_large_numbers_are_exact():
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        optimizer = wrap([p, torch.nn.Parameter(torch.zeros(1, dtype=dtype))])
        n = (1 << 39) + 12345 + hvd.rank()
        optimizer.weigh(n)
        wire = optimizer._exchange._plans.wire
        code = wire.weight_code(dtype)
        tail = torch.tensor(code.encode(n, hvd.rank()), dtype=dtype)
        total = operations.allreduce(tail, op=hvd.Sum, name="tail")
        assert int(code.decode(total)) == sum((1 << 39) + 12345 + r for r in range(hvd.size()))


def test_uneven_batches_of_a_network():
    model, alone = network(), network()
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), bucket_bytes=512)
    other = torch.optim.SGD(alone.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(3)
    for step in range(5):
        rows = [(5 * (rank + step)) % 7 for rank in range(hvd.size())]
        rows[step % hvd.size()] += 1
        x = torch.randn(sum(rows), 1, 8, 8, generator=generator)
        y = torch.randint(0, 3, (sum(rows),), generator=generator)
        mine = slice(sum(rows[: hvd.rank()]), sum(rows[: hvd.rank() + 1]))
        optimizer.zero_grad()
        other.zero_grad()
        optimizer.weigh(rows[hvd.rank()])
        torch.nn.functional.cross_entropy(model(x[mine]), y[mine]).backward()  # NaN where there is no row
        torch.nn.functional.cross_entropy(alone(x), y).backward()
        optimizer.step()
        other.step()
    for p, q in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-4, atol=1e-6)
    assert same_on_all_ranks(model.parameters())


def test_no_message_more_in_a_steady_step():
    params = parameters()
    optimizer = wrap(params)

    def step():
        optimizer.zero_grad()
        optimizer.weigh(hvd.rank() + 1)
        backward(params)
        optimizer.step()

    for _ in range(3):
        step()
    done = counted(lambda: [step() for _ in range(5)])
    assert done["votes"] == 5 and done["named"] == 0 and done["buckets"] == 5


def test_with_a_hook_and_with_a_compression_of_the_users_own():
    class Plain:
        compress = staticmethod(lambda tensor: (tensor, None))
        decompress = staticmethod(lambda tensor, context: tensor)

    def hook(_, bucket):
        return operations.allreduce_async(bucket.buffer(), name=bucket.name())

    for own in (False, True):
        params = parameters()
        optimizer = wrap(params, **({"compression": Plain} if own else {}))
        if not own:
            optimizer.register_comm_hook(None, hook)
        for step in range(2):
            counts = counts_for(step)
            optimizer.zero_grad()
            optimizer.weigh(counts[0][hvd.rank()])
            backward(params)
            assert all(torch.allclose(p.grad, joined(p, counts), rtol=1e-6) for p in params)
            optimizer.step()


def test_a_gradient_beside_the_plan_and_one_that_is_late():
    params = parameters()
    optimizer = wrap(params, bucket_bytes=16)
    late = torch.nn.Parameter(torch.zeros(4))
    optimizer.zero_grad()
    optimizer.weigh(1)
    backward(params)
    optimizer.step()
    optimizer.zero_grad()
    optimizer.add_param_group({"params": [late]})
    counts = counts_for(0)
    optimizer.weigh(counts[0][hvd.rank()])
    backward([*params, late])
    optimizer.synchronize()
    assert all(torch.equal(p.grad, joined(p, counts)) for p in [*params, late])
    optimizer.step()


def test_a_closures_loss_is_weighed_too():
    p = torch.nn.Parameter(torch.zeros(1))
    optimizer = wrap([p])
    counts = counts_for(1)[0]

    def closure():
        optimizer.zero_grad()
        optimizer.weigh(counts[hvd.rank()])
        value = (p * 2).sum() + (float(hvd.rank()) if counts[hvd.rank()] else float("nan"))
        value.backward()
        return value

    got = optimizer.step(closure)
    assert got.item() == pytest.approx(sum(n * r for r, n in enumerate(counts)) / sum(counts))
    assert p.grad.item() == 2


def test_weighing_that_is_refused():
    params = parameters()
    optimizer = wrap(params)
    optimizer.weigh(1)
    backward(params)
    optimizer.step()
    optimizer.zero_grad()
    with pytest.raises(hvd.UsageError, match="was not called before this backward"):
        backward(params)
    optimizer.zero_grad()
    for options in ({"op": hvd.Sum}, {"gradient_predivide_factor": 2.0}):
        with pytest.raises(hvd.UsageError, match="weigh.. needs op=Average"):
            wrap(params, **options).weigh(1)
    optimizer = wrap(params)
    with optimizer.no_sync():
        backward(params)
    with pytest.raises(hvd.UsageError, match="before the first backward"):
        optimizer.weigh(1)
    optimizer.step()
