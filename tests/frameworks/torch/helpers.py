"""Models and inputs whose reduced gradients are known exactly."""

import hashlib

import torch

import ringdp.torch as hvd

SIZES = (3, 5, 2)


def parameters(sizes=SIZES, dtype=torch.float32):
    """Parameters of integers, the same on all ranks."""
    return [torch.nn.Parameter(torch.arange(n, dtype=dtype) + i) for i, n in enumerate(sizes)]


def named(params):
    return [(f"p{i}", p) for i, p in enumerate(params)]


DEFAULTS = {}  # options that `wrap` adds: ranks_compression.py runs the other files' tests with a compression


def wrap(params, lr=0.5, optimizer=torch.optim.SGD, **options):
    options = DEFAULTS | options
    return hvd.DistributedOptimizer(optimizer(params, lr=lr), named_parameters=named(params), **options)


def gradient(param, rank=None, factor=1):
    """What `rank` contributes for `param`: exact integers, whose average over the ranks is one too."""
    rank = hvd.rank() if rank is None else rank
    value = factor * hvd.size() * (rank + 1) * (torch.arange(param.numel()) + 1)
    return value.reshape(param.shape).to(param.dtype)


def average(param, factor=1):
    """The average of all ranks' `gradient`."""
    total = sum(gradient(param, rank, factor).double() for rank in range(hvd.size()))
    return (total / hvd.size()).to(param.dtype)


def loss(params, factor=1):
    """A loss whose gradient for each parameter is `gradient(param)`."""
    return sum((p * gradient(p, factor=factor)).sum() for p in params)


def reduced(params, factor=1):
    """Every gradient is the average of all ranks'."""
    return all(p.grad is not None and torch.equal(p.grad, average(p, factor)) for p in params)


def slots(optimizer):
    return optimizer._exchange._slots


def in_views(optimizer):
    """Every gradient is a view of its bucket, with the parameter's strides; with compression, it is not."""
    compressed = "compression" in DEFAULTS
    return all(
        slot.param.grad is slot.view
        and slot.casts == compressed
        and (compressed or slot.view.stride() == slot.param.stride())
        and (slot.view.untyped_storage().data_ptr() != slot.bucket.flat.untyped_storage().data_ptr())
        == compressed
        for slot in slots(optimizer)
    )


def same_on_all_ranks(params):
    """Bit for bit."""
    digest = hashlib.sha256(
        b"".join(p.detach().reshape(-1).view(torch.uint8).cpu().numpy().tobytes() for p in params)
    )
    return len(set(hvd.allgather_object(digest.hexdigest()))) == 1


def network(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(144, 16),
        torch.nn.Tanh(),
        torch.nn.Linear(16, 3),
    )


def batches(steps, rows=6):
    """The joined batches of all ranks, and this rank's part: (all inputs, all targets, mine, mine) for each step."""
    generator = torch.Generator().manual_seed(7)
    for _ in range(steps):
        x = torch.randn(hvd.size() * rows, 1, 8, 8, generator=generator)
        y = torch.randint(0, 3, (hvd.size() * rows,), generator=generator)
        mine = slice(hvd.rank() * rows, (hvd.rank() + 1) * rows)
        yield x, y, x[mine], y[mine]
