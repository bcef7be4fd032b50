"""Every collective of torch.distributed over ringdp, with exact values."""

import time

import pytest
import torch
import torch.distributed as dist

import ringdp.torch as hvd

pytestmark = pytest.mark.usefixtures("c10d")

DTYPES = [
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
MOVED = [*DTYPES, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint16]


def values(rank, count=6, dtype=torch.float32):
    """Different for each rank and element, small and exact in every dtype."""
    return ((torch.arange(count) * 3 + rank) % 7).to(dtype)


def of_all(function):
    return [function(rank) for rank in range(dist.get_world_size())]


def total(tensors):
    return sum(t.double() for t in tensors).to(tensors[0].dtype)


def equal(a, b):
    if a.dtype.itemsize == 1 and a.is_floating_point():
        a, b = a.view(torch.uint8), b.view(torch.uint8)
    return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())


def is_completed(work):
    """When it has been waited for: on a GPU, soon."""
    until = time.monotonic() + 20
    while not work.is_completed() and time.monotonic() < until:
        time.sleep(0.001)
    return work.is_completed()


# --- reductions ---


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_reduce_of_every_dtype(dtype):
    tensor = values(dist.get_rank(), dtype=dtype)
    assert dist.all_reduce(tensor) is None
    assert equal(tensor, total(of_all(lambda r: values(r, dtype=dtype))))


@pytest.mark.parametrize("name", ["SUM", "AVG", "MIN", "MAX", "PRODUCT"])
def test_all_reduce_by_every_op(name):
    tensor = values(dist.get_rank()) * dist.get_world_size()
    dist.all_reduce(tensor, getattr(dist.ReduceOp, name))
    stack = torch.stack(of_all(lambda r: values(r) * dist.get_world_size()))
    wanted = {
        "SUM": stack.sum(0),
        "AVG": stack.sum(0) / len(stack),
        "MIN": stack.amin(0),
        "MAX": stack.amax(0),
        "PRODUCT": stack.prod(0),
    }
    assert equal(tensor, wanted[name])


def test_all_reduce_with_a_factor_before():
    tensor = values(dist.get_rank()) * 4
    dist.all_reduce(tensor, dist._make_nccl_premul_sum(0.25))
    assert equal(tensor, total(of_all(values)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool], ids=str)
@pytest.mark.parametrize("name", ["BAND", "BOR", "BXOR"])
def test_all_reduce_of_bits(name, dtype):
    tensor = values(dist.get_rank(), dtype=dtype)
    dist.all_reduce(tensor, getattr(dist.ReduceOp, name))
    by = {"BAND": torch.bitwise_and, "BOR": torch.bitwise_or, "BXOR": torch.bitwise_xor}[name]
    first, *others = of_all(lambda r: values(r, dtype=dtype))
    for other in others:
        first = by(first, other)
    assert equal(tensor, first)


@pytest.mark.parametrize("name", ["SUM", "AVG"])
def test_complex_numbers_are_reduced_as_pairs(name):
    def mine(rank):
        return torch.complex(values(rank), values(rank + 1)) * dist.get_world_size()

    tensor = mine(dist.get_rank())
    dist.all_reduce(tensor, getattr(dist.ReduceOp, name))
    summed = sum(of_all(mine))
    assert equal(tensor, summed / dist.get_world_size() if name == "AVG" else summed)


@pytest.mark.parametrize(
    "shaped",
    [
        lambda t: t.view(2, 3).t(),
        lambda t: t.repeat_interleave(2)[::2],
        lambda t: t[0],
        lambda t: t[:0],
        lambda t: torch.complex(t, t).conj().imag,
    ],
    ids=["transposed", "strided", "one number", "empty", "negated view"],
)
def test_tensors_of_any_layout_are_reduced_in_place(shaped):
    tensor = shaped(values(dist.get_rank()))
    before, strides = tensor, tensor.stride()
    dist.all_reduce(tensor)
    assert tensor is before and tensor.stride() == strides
    assert equal(tensor, total([shaped(t) for t in of_all(values)]))


def test_all_reduce_of_several_at_a_time():
    tensors = [values(dist.get_rank(), n) for n in (1, 0, 7)]
    with dist.distributed_c10d._coalescing_manager():
        for tensor in tensors:
            dist.all_reduce(tensor)
    for n, tensor in zip((1, 0, 7), tensors, strict=True):
        assert equal(tensor, total(of_all(lambda r, n=n: values(r, n))))


@pytest.mark.parametrize("op", [dist.ReduceOp.SUM, dist.ReduceOp.BXOR], ids=["SUM", "BXOR"])
def test_reduce_to_every_root(op):
    for root in range(dist.get_world_size()):
        tensor = values(dist.get_rank(), dtype=torch.int32)
        dist.reduce(tensor, root, op)
        wanted = values(dist.get_rank(), dtype=torch.int32)
        if root == dist.get_rank():
            stack = of_all(lambda r: values(r, dtype=torch.int32))
            wanted = total(stack)
            if op == dist.ReduceOp.BXOR:
                wanted = stack[0]
                for other in stack[1:]:
                    wanted = wanted ^ other
        assert equal(tensor, wanted)


@pytest.mark.parametrize("op", ["SUM", "AVG", "MAX", "BAND"])
def test_reduce_scatter(op):
    n, rank = dist.get_world_size(), dist.get_rank()
    given = [values(rank + i, dtype=torch.int64) * n for i in range(n)]
    output = torch.empty(6, dtype=torch.int64)
    dist.reduce_scatter(output, given, getattr(dist.ReduceOp, op))
    parts = torch.stack([values(r + rank, dtype=torch.int64) * n for r in range(n)])
    wanted = {"SUM": parts.sum(0), "AVG": parts.sum(0) // n, "MAX": parts.amax(0), "BAND": parts[0]}
    for part in parts[1:]:
        wanted["BAND"] = wanted["BAND"] & part
    assert equal(output, wanted[op])
    single = torch.empty(2, 3, dtype=torch.int64)
    dist.reduce_scatter_tensor(single, torch.cat(given), getattr(dist.ReduceOp, op))
    assert equal(single, wanted[op].view(2, 3))


def test_reduce_scatter_of_parts_of_different_sizes():
    n, rank = dist.get_world_size(), dist.get_rank()
    output = torch.empty(rank + 1).expand(1, -1)
    dist.reduce_scatter(output, [values(rank, i + 1).view(1, -1) for i in range(n)])
    assert equal(output, total(of_all(lambda r: values(r, rank + 1))).view(1, -1))


def test_reduce_scatter_into_memory_with_gaps():
    n, rank = dist.get_world_size(), dist.get_rank()
    output = torch.full((3, 2), -1.0)
    dist.reduce_scatter_tensor(output[:, 0], torch.cat([values(rank, 3) + i for i in range(n)]))
    assert equal(output[:, 0], total(of_all(lambda r: values(r, 3) + rank)))
    assert equal(output[:, 1], torch.full((3,), -1.0))


def test_several_reduce_scatters_and_all_gathers_at_a_time():
    n, rank = dist.get_world_size(), dist.get_rank()
    parts = [torch.empty(2), torch.empty(3)]
    wholes = [torch.empty(2 * n), torch.empty(3 * n)]
    with dist.distributed_c10d._coalescing_manager():
        for part in parts:
            dist.reduce_scatter_tensor(part, values(rank, n * part.numel()))
    with dist.distributed_c10d._coalescing_manager(async_ops=True) as all_gathers:
        for whole, part in zip(wholes, parts, strict=True):
            dist.all_gather_into_tensor(whole, part, async_op=True)
    all_gathers.wait()
    for whole in wholes:
        assert equal(whole, total(of_all(lambda r, whole=whole: values(r, whole.numel()))))


def test_sparse_all_reduce():
    rank, n = dist.get_rank(), dist.get_world_size()
    tensor = torch.sparse_coo_tensor([[rank, n]], [[1.0, 2.0], [3.0, 4.0]], (n + 1, 2), check_invariants=True)
    dist.all_reduce(tensor)
    wanted = torch.tensor([[1.0, 2.0]] * n + [[3.0 * n, 4.0 * n]])
    assert equal(tensor.to_dense(), wanted)


# --- movements ---


@pytest.mark.parametrize("dtype", MOVED, ids=str)
def test_every_dtype_is_moved(dtype):
    n, rank = dist.get_world_size(), dist.get_rank()

    def mine(rank):
        return values(rank, 4).to(dtype)

    for root in range(n):
        tensor = mine(rank)
        dist.broadcast(tensor, root)
        assert equal(tensor, mine(root))
    gathered = [torch.empty(4, dtype=dtype) for _ in range(n)]
    dist.all_gather(gathered, mine(rank))
    assert all(equal(a, b) for a, b in zip(gathered, of_all(mine), strict=True))
    whole = torch.empty(n, 2, 2, dtype=dtype)
    dist.all_gather_into_tensor(whole, mine(rank).view(1, 2, 2))
    assert equal(whole, torch.stack(of_all(mine)).view(n, 2, 2))
    output = torch.empty(n * 4, dtype=dtype)
    dist.all_to_all_single(output, torch.cat([mine(rank + i) for i in range(n)]))
    assert equal(output, torch.cat(of_all(lambda r: mine(r + rank))))


def test_all_gather_of_different_sizes():
    gathered = [torch.empty(r, 2) for r in range(dist.get_world_size())]
    dist.all_gather(gathered, values(dist.get_rank(), 2 * dist.get_rank()).view(-1, 2))
    for r, tensor in enumerate(gathered):
        assert equal(tensor, values(r, 2 * r).view(-1, 2))


def test_all_gather_into_memory_with_gaps():
    n = dist.get_world_size()
    whole = torch.full((n * 6, 2), -1.0)
    dist.all_gather_into_tensor(whole[:, 1], values(dist.get_rank()))
    assert equal(whole[:, 1], torch.cat(of_all(values)))
    assert equal(whole[:, 0], torch.full((n * 6,), -1.0))


@pytest.mark.parametrize("place", ["own", "of the next rank", "in between"])
def test_all_gather_of_a_part_of_the_output(place):
    """What others send must not be written over what this rank has not sent yet."""
    n, rank = dist.get_world_size(), dist.get_rank()
    count = 50_000
    whole = torch.full((n * count,), -1.0)
    start = {"own": rank, "of the next rank": (rank + 1) % n, "in between": 0.5}[place] * count
    mine = whole[int(start) : int(start) + count]
    mine.copy_(values(rank, count))
    dist.all_gather_into_tensor(whole, mine)
    assert equal(whole, torch.cat(of_all(lambda r: values(r, count))))


def test_all_to_all_into_its_own_input():
    n, rank = dist.get_world_size(), dist.get_rank()
    tensor = torch.cat([values(rank + i, 50_000) for i in range(n)])
    dist.all_to_all_single(tensor, tensor)
    assert equal(tensor, torch.cat(of_all(lambda r: values(r + rank, 50_000))))


def test_gather_and_scatter_by_every_root():
    n, rank = dist.get_world_size(), dist.get_rank()
    for root in range(n):
        gathered = [torch.empty(2, 3) for _ in range(n)] if rank == root else None
        dist.gather(values(rank).view(3, 2).t(), gathered, dst=root)
        if gathered is not None:
            wanted = of_all(lambda r: values(r).view(3, 2).t())
            assert all(equal(a, b) for a, b in zip(gathered, wanted, strict=True))
        part = torch.empty(6, dtype=torch.complex64)
        parts = of_all(lambda r, root=root: values(r + root).to(torch.complex64))
        dist.scatter(part, parts if rank == root else None, src=root)
        assert equal(part, values(rank + root).to(torch.complex64))


def test_all_to_all_with_splits_and_of_lists():
    n, rank = dist.get_world_size(), dist.get_rank()
    # Rank r sends i rows to rank i, all of them its own number.
    given = torch.full((sum(range(n)), 2), float(rank))
    output = torch.empty(n * rank, 2)
    dist.all_to_all_single(output, given, [rank] * n, list(range(n)))
    assert equal(output, torch.arange(float(n)).repeat_interleave(rank)[:, None].expand(-1, 2))
    outputs = [torch.empty(r + rank) for r in range(n)]
    dist.all_to_all(outputs, [values(rank, rank + r) for r in range(n)])
    assert all(equal(output, values(r, r + rank)) for r, output in enumerate(outputs))


def test_barrier():
    rounds = torch.zeros(1)
    for _ in range(3):
        rounds += 1
        dist.barrier()
    assert equal(rounds, torch.tensor([3.0]))


@pytest.mark.host_only  # the stand-in cannot tell that torch makes tensors of objects in host memory
def test_objects():
    n, rank = dist.get_world_size(), dist.get_rank()
    found = [None] * n
    dist.all_gather_object(found, {"rank": rank, "text": "x" * rank})
    assert found == [{"rank": r, "text": "x" * r} for r in range(n)]
    things = [rank, "of rank", {rank}]
    dist.broadcast_object_list(things, src=n - 1)
    assert things == [n - 1, "of rank", {n - 1}]
    found = [None] * n if rank == 0 else None
    dist.gather_object((rank, None), found, dst=0)
    assert found == ([(r, None) for r in range(n)] if rank == 0 else None)
    mine = [None]
    dist.scatter_object_list(mine, [f"for {r}" for r in range(n)] if rank == 0 else None, src=0)
    assert mine == [f"for {rank}"]


# --- messages ---


def test_messages_around_a_ring():
    n, rank = dist.get_world_size(), dist.get_rank()
    for count in (0, 5, 300_000):
        received = torch.empty(count, 1)
        sending = dist.isend(values(rank, count).view(-1, 1), (rank + 1) % n, tag=3)
        receiving = dist.irecv(received, (rank - 1) % n, tag=3)
        dist.barrier()  # which waits for no message
        receiving.wait()
        sending.wait()
        assert is_completed(receiving) and equal(received, values((rank - 1) % n, count).view(-1, 1))


def test_messages_of_any_layout_dtype_and_source():
    n, rank = dist.get_world_size(), dist.get_rank()
    if rank:
        dist.send(torch.complex(values(rank), values(rank)).view(2, 3).t(), 0, tag=7)
        return
    sources = set()
    for _ in range(1, n):
        received = torch.empty(2, 3, dtype=torch.complex64).t()
        source = dist.recv(received, tag=7)
        assert equal(received, torch.complex(values(source), values(source)).view(2, 3).t())
        sources.add(source)
    assert sources == set(range(1, n))


def test_batches_of_messages_and_lists_of_objects():
    n, rank = dist.get_world_size(), dist.get_rank()
    received = torch.empty(6)
    batch = [
        dist.P2POp(dist.irecv, received, (rank - 1) % n),
        dist.P2POp(dist.isend, values(rank), (rank + 1) % n),
    ]
    for work in dist.batch_isend_irecv(batch):
        work.wait()
    assert equal(received, values((rank - 1) % n))
    if rank == 0:
        dist.send_object_list(["a", {"b": 1}], dst=n - 1)
    elif rank == n - 1:
        things = [None, None]
        dist.recv_object_list(things, src=0)
        assert things == ["a", {"b": 1}]


def test_a_message_of_another_size_is_an_error():
    n, rank = dist.get_world_size(), dist.get_rank()
    sending = dist.isend(values(rank, 3), (rank + 1) % n)
    with pytest.raises(hvd.TransportError, match=rf"recv: rank {(rank - 1) % n} of the group sent 12 bytes"):
        dist.recv(torch.empty(4), (rank - 1) % n)
    sending.wait()


# --- works and futures ---


def test_many_at_a_time_end_in_any_order():
    rank = dist.get_rank()
    tensors = [values(rank, n) + n for n in range(100)]
    works = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
    futures = [work.get_future() for work in works]
    for n in reversed(range(100)):
        (result,) = futures[n].wait()
        assert result is tensors[n] and equal(result, total(of_all(lambda r, n=n: values(r, n) + n)))
        assert works[n].wait() and is_completed(works[n]) and works[n].is_success()
        assert works[n].result()[0] is tensors[n] and works[n].exception() is None


def test_a_future_calls_back_and_may_exchange_there():
    tensor = values(dist.get_rank())

    def again(done):
        return dist.all_reduce(done.value()[0], async_op=True).get_future().wait()[0] + 1

    result = dist.all_reduce(tensor, async_op=True).get_future().then(again).wait()
    assert equal(result, total(of_all(values)) * dist.get_world_size() + 1)


def test_callbacks_of_ranks_that_are_in_different_groups():
    """What a callback calls in a group that some ranks are not in does not count for the others."""
    n, rank = dist.get_world_size(), dist.get_rank()
    alone = dist.new_group([0])

    def again(done):
        if rank == 0:
            dist.barrier(alone)
        (summed,) = dist.all_reduce(done.value()[0], async_op=True).get_future().wait()
        return dist.all_reduce(summed, async_op=True).get_future().then(lambda last: last.value()[0] + 1)

    futures = [
        dist.all_reduce(values(rank, 3) + i, async_op=True).get_future().then(again).then(lambda f: f.value())
        for i in range(20)
    ]
    for i, future in enumerate(futures):
        assert equal(future.wait().wait(), total(of_all(lambda r, i=i: values(r, 3) + i)) * n * n + 1)


def test_autograd_sees_what_was_written():
    weight = torch.ones(6, requires_grad=True)
    tensor = values(dist.get_rank())
    product = (weight * tensor).sum()
    dist.all_reduce(tensor)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_inside_inference_mode():
    with torch.inference_mode():
        tensor = values(dist.get_rank()).clone()
        whole = torch.empty(6 * dist.get_world_size())
        dist.all_reduce(tensor)
        dist.all_gather_into_tensor(whole, values(dist.get_rank()))
    assert equal(tensor, total(of_all(values))) and equal(whole, torch.cat(of_all(values)))


def test_dtypes_that_are_mixed_are_refused_before_anything_is_written(c10d):
    size = c10d.get_world_size()
    memory = torch.zeros(4096, dtype=torch.int8)
    for call in (
        lambda: c10d.reduce_scatter_tensor(memory[:8], torch.ones(8 * size, dtype=torch.float64)),
        lambda: c10d.reduce_scatter_tensor(torch.zeros(2), torch.ones(2 * size, dtype=torch.float64)),
        lambda: c10d.all_gather_into_tensor(
            torch.zeros(size, dtype=torch.float8_e4m3fn), torch.ones(1, dtype=torch.uint8)
        ),
    ):
        with pytest.raises(Exception, match="give inputs and outputs one dtype"):
            call()
    assert not memory.any()
