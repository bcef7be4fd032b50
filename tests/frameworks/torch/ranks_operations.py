"""The collective operations on torch tensors: dtypes, layouts, in place, gradients, refusals. Exact inputs."""

import pytest
import torch

import ringdp
import ringdp.torch as hvd

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
]
NUMBERS = DTYPES[1:]


def values(shape, dtype, rank=None):
    """Small integers that encode rank and index; sums over three ranks fit in every dtype."""
    rank = hvd.rank() if rank is None else rank
    index = torch.arange(torch.Size(shape).numel()).reshape(shape)
    return ((index % 5) + 7 * rank).to(dtype)


def total(shape, dtype):
    return sum(values(shape, torch.int64, rank) for rank in range(hvd.size())).to(dtype)


@pytest.mark.shows(["allreduce", "in place", "handles", "bfloat16", "no elements"], "torch", "eager")
@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7, 3), (2, 0, 3)], ids=str)
def test_sums(dtype, shape):
    x = values(shape, dtype)
    before = x.clone()
    got = hvd.allreduce(x, op=hvd.Sum)
    assert got.dtype == dtype and torch.equal(got, total(shape, dtype)) and torch.equal(x, before)
    handle = hvd.allreduce_async(x, op=hvd.Sum)
    assert torch.equal(hvd.synchronize(handle), got) and hvd.poll(handle)
    assert hvd.allreduce_(x, op=hvd.Sum) is x and torch.equal(x, got)
    assert torch.equal(hvd.synchronize(hvd.allreduce_async_(before, op=hvd.Sum)), got)
    assert torch.equal(before, got)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_floats_of_8_bits(dtype):
    """PyTorch compares, adds and joins none: zeros and ones, and their bits."""

    def bits(values):
        return torch.tensor([float(x) for x in values]).to(dtype).view(torch.uint8).tolist()

    def of(rank):
        return [(i + rank) % 2 for i in range(6)]

    size, rank = hvd.size(), hvd.rank()
    x = torch.tensor([float(i) for i in of(rank)]).to(dtype)
    sums = [sum(of(r)[i] for r in range(size)) for i in range(6)]

    def gives(got, wanted):
        assert got.dtype == dtype and got.view(torch.uint8).tolist() == bits(wanted)

    gives(hvd.allreduce(x, op=hvd.Sum), sums)
    gives(hvd.allreduce(x, op=hvd.Max), [1] * 6)
    gives(hvd.allreduce(x, op=hvd.Product), [0] * 6)
    gives(hvd.allreduce(torch.full((3,), 2.0).to(dtype), op=hvd.Sum, prescale_factor=1 / 8), [size / 4] * 3)
    gives(hvd.broadcast(x, root_rank=1), of(1))
    gives(hvd.allgather(x[: rank + 1]), [i for r in range(size) for i in of(r)[: r + 1]])
    gives(hvd.alltoall(x[:size]), [of(r)[rank] for r in range(size)])
    gives(hvd.reducescatter(torch.stack([x.float()] * size).to(dtype), op=hvd.Sum)[0], sums)
    assert hvd.allreduce_(x, op=hvd.Sum) is x
    gives(x, sums)
    if rank == 0:  # a rank that has joined changes nothing
        y = torch.tensor([-3.0, 0.0, 3.0]).to(dtype)
        for op in (hvd.Sum, hvd.Max, hvd.Min, hvd.Product):
            gives(hvd.allreduce(y, op=op, name=f"alone {op}"), [-3, 0, 3])
    hvd.join()


def test_other_operations():
    size = hvd.size()
    x = values((4,), torch.float32)
    assert torch.equal(hvd.allreduce(x * size), total((4,), torch.float32))  # Average by default
    assert torch.equal(hvd.allreduce(x, average=False), total((4,), torch.float32))
    assert torch.equal(hvd.allreduce(x, op=hvd.Max), values((4,), torch.float32, size - 1))
    assert torch.equal(hvd.allreduce(x, op=hvd.Min), values((4,), torch.float32, 0))
    two = torch.full((3,), 2, dtype=torch.int16)
    assert torch.equal(hvd.allreduce(two, op=hvd.Product), torch.full((3,), 2**size, dtype=torch.int16))
    assert torch.equal(
        hvd.allreduce(x, op=hvd.Sum, prescale_factor=2.0, postscale_factor=0.5), total((4,), torch.float32)
    )
    flags = torch.tensor([hvd.rank() == 0, True, False])
    assert hvd.allreduce(flags, op=hvd.Max).tolist() == [True, True, False]
    assert hvd.allreduce(flags, op=hvd.Min).tolist() == [False, True, False]


LAYOUTS = {
    "transposed": lambda x: x.t().contiguous().t(),
    "strided": lambda x: torch.stack([x, -x], dim=-1)[..., 0],
    "channels_last": lambda x: (
        x.reshape(1, 1, *x.shape).expand(1, 2, *x.shape).contiguous(memory_format=torch.channels_last)
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layouts(layout, dtype):
    make = LAYOUTS[layout]
    x, expected = make(values((4, 6), dtype)), make(total((4, 6), dtype))
    assert not x.is_contiguous()
    strides = x.stride()
    assert torch.equal(hvd.allreduce(x, op=hvd.Sum), expected)
    assert torch.equal(hvd.broadcast(x, 1), make(values((4, 6), dtype, 1)))
    hvd.allreduce_(x, op=hvd.Sum)
    assert torch.equal(x, expected) and x.stride() == strides


def test_an_input_may_be_expanded_a_target_not():
    x = torch.tensor([1.0]).expand(5)
    assert torch.equal(hvd.allreduce(x, op=hvd.Sum), torch.full((5,), float(hvd.size())))
    with pytest.raises(TypeError, match="expanded"):
        hvd.allreduce_(x)


@pytest.mark.parametrize("contiguous", [True, False])
def test_in_place_on_a_leaf_that_requires_grad(contiguous):
    start = values((3, 4), torch.float32)
    leaf = torch.nn.Parameter(start if contiguous else start.t().contiguous().t())
    square = leaf.square().sum()
    version = leaf._version
    assert hvd.allreduce_(leaf, op=hvd.Sum) is leaf
    assert torch.equal(leaf.detach(), total((3, 4), torch.float32))
    assert leaf._version > version and leaf.is_leaf and leaf.requires_grad
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.backward()


@pytest.mark.shows(["broadcast", "every dtype"], "torch", "eager")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_broadcast(dtype):
    for root in range(hvd.size()):
        x = values((5,), dtype)
        assert torch.equal(hvd.broadcast(x, root), values((5,), dtype, root))
        assert torch.equal(hvd.synchronize(hvd.broadcast_async(x, root)), values((5,), dtype, root))
        assert hvd.broadcast_(x, root_rank=root) is x
        assert torch.equal(x, values((5,), dtype, root))
    scalar = torch.tensor(hvd.rank() + 2)
    assert hvd.broadcast(scalar, 1).item() == 3


@pytest.mark.shows("allgather", "torch", "eager")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_allgather(dtype):
    x = values((hvd.rank() + 1, 2), dtype)
    got = hvd.allgather(x)
    assert got.dtype == dtype
    assert torch.equal(got, torch.cat([values((r + 1, 2), dtype, r) for r in range(hvd.size())]))
    assert hvd.allgather(torch.zeros(0, 3)).shape == (0, 3)


@pytest.mark.shows("alltoall", "torch", "eager")
def test_alltoall():
    size, rank = hvd.size(), hvd.rank()
    x = torch.arange(size) + 10 * rank
    assert hvd.alltoall(x).tolist() == [10 * r + rank for r in range(size)]
    splits = torch.tensor([r + 1 for r in range(size)])
    rows = torch.cat([torch.full((r + 1, 2), 100 * rank + r, dtype=torch.int16) for r in range(size)])
    got, received = hvd.alltoall(rows, splits=splits)
    assert received.tolist() == [rank + 1] * size and received.dtype == torch.int32
    expected = [torch.full((rank + 1, 2), 100 * r + rank, dtype=torch.int16) for r in range(size)]
    assert torch.equal(got, torch.cat(expected))


@pytest.mark.shows("reducescatter", "torch", "eager")
def test_reducescatter():
    rows = 2 * hvd.size() + 1
    got = hvd.reducescatter(values((rows, 3), torch.float32), op=hvd.Sum)
    first = 2 * hvd.rank() + min(hvd.rank(), 1)
    assert torch.equal(got, total((rows, 3), torch.float32)[first : first + 2 + (hvd.rank() == 0)])
    mean = hvd.reducescatter(hvd.size() * values((hvd.size(),), torch.float32))
    assert torch.equal(mean, total((hvd.size(),), torch.float32)[hvd.rank()].reshape(1))


@pytest.mark.shows(["grouped_allreduce", "grouped_allgather", "grouped_reducescatter"], "torch", "eager")
def test_groups():
    tensors = [values((n,), torch.float32) for n in (1, 5, 0)]
    expected = [total((n,), torch.float32) for n in (1, 5, 0)]
    for got in (
        hvd.grouped_allreduce(tensors, op=hvd.Sum, name="group"),
        hvd.synchronize(hvd.grouped_allreduce_async(tensors, op=hvd.Sum)),
        hvd.grouped_allreduce_([t.clone() for t in tensors], op=hvd.Sum),
    ):
        assert all(torch.equal(g, e) for g, e in zip(got, expected, strict=True))
    gathered = hvd.grouped_allgather(tensors)
    assert [g.shape[0] for g in gathered] == [hvd.size() * n for n in (1, 5, 0)]
    parts = hvd.grouped_reducescatter([values((hvd.size(),), torch.float32)], op=hvd.Sum)
    assert torch.equal(parts[0], total((hvd.size(),), torch.float32)[hvd.rank()].reshape(1))


# --- gradients ------------------------------------------------------------------------------------


def weights(n, rank=None):
    """The derivative of this rank's loss for its output."""
    return values((n,), torch.float32, rank) + 1


def all_weights(n):
    return sum(weights(n, rank) for rank in range(hvd.size()))


@pytest.mark.shows("gradient of allreduce", "torch", "eager")
@pytest.mark.parametrize("op", [hvd.Sum, hvd.Average], ids=["sum", "average"])
def test_gradients_through_allreduce(op):
    x = torch.ones(4, requires_grad=True)
    y = hvd.allreduce(x, op=op)
    assert torch.equal(y.detach(), torch.full((4,), float(hvd.size() if op == hvd.Sum else 1)))
    (y * weights(4) * hvd.size()).sum().backward()
    assert torch.equal(x.grad, all_weights(4) * (hvd.size() if op == hvd.Sum else 1))


@pytest.mark.shows("gradient of allgather", "torch", "eager")
def test_gradients_through_allgather():
    n = hvd.rank() + 1
    x = torch.ones(n, requires_grad=True)
    y = hvd.allgather(x)
    (y * weights(len(y)) * hvd.size()).sum().backward()
    before = sum(r + 1 for r in range(hvd.rank()))
    assert torch.equal(x.grad, all_weights(len(y))[before : before + n])


@pytest.mark.shows("gradient of broadcast", "torch", "eager")
def test_gradients_through_broadcast():
    x = torch.ones(3, requires_grad=True)
    (hvd.broadcast(x, 1) * weights(3) * hvd.size()).sum().backward()
    assert torch.equal(x.grad, all_weights(3) if hvd.rank() == 1 else torch.zeros(3))


@pytest.mark.shows("gradient of alltoall", "torch", "eager")
def test_gradients_through_alltoall():
    x = torch.ones(hvd.size(), requires_grad=True)
    (hvd.alltoall(x) * weights(hvd.size())).sum().backward()
    assert torch.equal(x.grad, torch.stack([weights(hvd.size(), r)[hvd.rank()] for r in range(hvd.size())]))


@pytest.mark.shows("gradient of reducescatter", "torch", "eager")
@pytest.mark.parametrize("op", [hvd.Sum, hvd.Average], ids=["sum", "average"])
def test_gradients_through_reducescatter(op):
    x = torch.ones(hvd.size(), requires_grad=True)
    (hvd.reducescatter(x, op=op) * (hvd.rank() + 1) * hvd.size()).sum().backward()
    expected = torch.arange(hvd.size()) + 1.0
    assert torch.equal(x.grad, expected * (hvd.size() if op == hvd.Sum else 1))


def test_no_gradient_flows_through_max():
    with pytest.raises(hvd.UsageError, match="no gradient flows through Max"):
        hvd.allreduce(torch.ones(2, requires_grad=True), op=hvd.Max)
    with torch.no_grad():
        assert not hvd.allreduce(torch.ones(2, requires_grad=True), op=hvd.Max).requires_grad


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (torch.zeros(2, dtype=torch.complex64), "dtype torch.complex64"),
        (torch.zeros(2).to_sparse(), r"sparse.*\.to_dense\(\)"),
        (torch.zeros(2, device="meta"), "device meta.*a meta tensor has no values"),
        ([1.0], "builtins.list, not a torch.Tensor"),
    ],
    ids=["complex", "sparse", "meta", "list"],
)
def test_what_cannot_be_exchanged(bad, text):
    for call in (hvd.allreduce, hvd.allreduce_, hvd.allgather, lambda x: hvd.broadcast(x, 0)):
        with pytest.raises(TypeError, match=text):
            call(bad)


def test_numpy_side_refuses_torch_tensors():
    with pytest.raises(TypeError, match="ringdp.torch"):
        ringdp.allreduce(torch.zeros(2))


@pytest.mark.shows("mismatch: an error on every rank", "torch", "eager")
@pytest.mark.parametrize("in_place", [True, False])
def test_shapes_that_differ(in_place):
    x = torch.full((3 + hvd.rank(),), 7.0)
    with pytest.raises(hvd.MismatchError, match=rf"rank {hvd.rank()}: 'shape' differs(.|\n)*rank 1: .*\[4\]"):
        (hvd.allreduce_ if in_place else hvd.allreduce)(x, name="shape")
    assert torch.equal(x, torch.full((3 + hvd.rank(),), 7.0))
    assert hvd.allreduce(torch.ones(1), op=hvd.Sum).item() == hvd.size()


def test_compression_that_is_none():
    with pytest.raises(hvd.UsageError, match="must have the methods compress and decompress"):
        hvd.allreduce(torch.ones(1), compression=object())
    assert hvd.allreduce(torch.ones(1), compression=hvd.Compression.none).item() == 1
