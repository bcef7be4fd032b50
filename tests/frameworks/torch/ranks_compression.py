"""16 bits on the wire. Exact inputs, and random ones where every rank must end with the same bits."""

import pytest
import torch
from frameworks.torch import helpers, ranks_membership, ranks_random, ranks_windows
from frameworks.torch.helpers import (
    average,
    batches,
    loss,
    network,
    parameters,
    reduced,
    same_on_all_ranks,
    slots,
    wrap,
)

import ringdp.torch as hvd
from ringdp import world
from ringdp.constants import Dtype
from ringdp.torch.compression import SMALL, wire_for

KINDS = {"fp16": torch.float16, "bf16": torch.bfloat16}
WIDE = [torch.float32, torch.float64]

# What the exchange does with windows, late gradients, accumulation onto reduced ones, missing ones, and new plans
# must not depend on compression: all of these tests again, with float16.
plans = ranks_membership.plans
INEXACT = {  # in float16
    "test_several_small_buckets_leave_in_order",
    "test_closures_that_step_many_times",
    "test_a_model_that_changes_before_its_first_exchange",
}
for module in (ranks_windows, ranks_membership, ranks_random):
    globals().update(
        {name: f for name, f in vars(module).items() if name.startswith("test_") and name not in INEXACT}
    )


@pytest.fixture(autouse=True)
def _compressed(request, monkeypatch):
    """The tests of other files wrap their optimizers with float16."""
    if request.function.__module__ != __name__:
        monkeypatch.setitem(helpers.DEFAULTS, "compression", hvd.Compression.fp16)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def compression(kind):
    return getattr(hvd.Compression, kind)


def noise(*shape):
    """Other numbers on each rank."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(hvd.rank()))


# --- operations -----------------------------------------------------------------------------------


@pytest.mark.shows("compression", "torch", "eager")
@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_operations_come_back_in_their_own_dtype(kind, dtype):
    size, total = hvd.size(), sum(range(1, hvd.size() + 1))
    x = (hvd.rank() + 1) * torch.arange(6, dtype=dtype).reshape(3, 2)
    expected = total * torch.arange(6, dtype=dtype).reshape(3, 2)
    how = {"op": hvd.Sum, "compression": compression(kind)}
    mine = [rows.shape[0] for rows in expected.tensor_split(size)][: hvd.rank() + 1]
    part = expected[sum(mine[:-1]) : sum(mine)]
    for got, right in [
        (hvd.allreduce(x, **how), expected),
        (hvd.reducescatter(x, **how), part),
        *zip(hvd.grouped_allreduce([x, -x], **how), [expected, -expected], strict=True),
        *zip(hvd.grouped_reducescatter([x, -x], **how), [part, -part], strict=True),
    ]:
        assert got.dtype == dtype and torch.equal(got, right)


def test_values_travel_rounded(kind):
    x = noise(1000)
    got = hvd.allreduce(x, op=hvd.Max, compression=compression(kind))
    narrow = x.to(KINDS[kind])
    assert torch.equal(got, hvd.allreduce(narrow, op=hvd.Max).float()) and not torch.equal(narrow.float(), x)
    got = hvd.allreduce(x, compression=compression(kind))
    assert torch.equal(got, hvd.allreduce(narrow).float()) and same_on_all_ranks([got])


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.float16, torch.bfloat16], ids=str)
def test_other_dtypes_travel_as_they_are(kind, dtype):
    x = torch.tensor([1 + hvd.rank(), 125], dtype=dtype)
    if dtype.is_floating_point:  # what the other 16-bit dtype does not have
        x[1] = torch.finfo(dtype).eps + 1 if dtype == torch.float16 else torch.finfo(dtype).tiny
    got = hvd.allreduce(x, op=hvd.Max, compression=compression(kind))
    assert got.dtype == dtype and got[0] == hvd.size() and got[1] == x[1]


def test_gradients_flow_through_and_are_compressed_too(kind):
    x = torch.ones(2, requires_grad=True)
    for op in (hvd.allreduce, hvd.reducescatter):
        x.grad = None
        given = x if op is hvd.allreduce else x.repeat(hvd.size())
        (op(given, op=hvd.Sum, compression=compression(kind)) * (hvd.rank() + 1)).sum().backward()
        assert x.grad.dtype == torch.float32
        assert torch.equal(x.grad, torch.full((2,), float(sum(range(1, hvd.size() + 1)))))


# --- operations whose casts the core does under way -----------------------------------------------

LARGE = SMALL // 2 + 1  # elements: beyond what is cast before it is handed in


@pytest.fixture
def _by_messages(monkeypatch):
    """ringdp begins anew, with messages also between ranks that share memory."""
    hvd.shutdown()
    monkeypatch.setenv("RINGDP_ALGORITHM", "ring")
    hvd.init()
    yield
    hvd.shutdown()
    monkeypatch.undo()
    hvd.init()


def by_hand(x, dtype, **how):
    return hvd.allreduce(x.to(dtype), **how).to(x.dtype)


@pytest.mark.host_only
@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_large_tensors_get_the_same_bits_under_way(kind, dtype, _by_messages):
    x = (noise(3, LARGE) * 300).to(dtype)
    before, wire = x.clone(), wire_for(x, compression(kind), hvd.global_process_set)
    assert wire.dtype == KINDS[kind] and wire.shape == x.shape
    for how in (
        {},
        {"op": hvd.Sum, "prescale_factor": 0.3, "postscale_factor": 1.7},
        {"op": hvd.Min, "name": "x"},
    ):
        want = by_hand(x, KINDS[kind], **how)
        got = hvd.allreduce(x, compression=compression(kind), **how)
        assert got.dtype == dtype and torch.equal(got, want) and same_on_all_ranks([got])
        group = [x[0], x[:, :5], x]  # one that is small and not dense among large ones
        for part, got in zip(
            group, hvd.grouped_allreduce(group, compression=compression(kind), **how), strict=True
        ):
            assert got.dtype == dtype and torch.equal(got, by_hand(part, KINDS[kind], **how))
    assert torch.equal(x, before)


@pytest.mark.host_only
def test_what_is_cast_before_it_is_handed_in(kind, _by_messages):
    chosen, x = compression(kind), noise(LARGE)
    assert wire_for(x, chosen, hvd.global_process_set) is not None
    for tensor, other in [
        (x[:-1], chosen),  # small
        (noise(2, LARGE).t(), chosen),  # not dense
        (x.to(KINDS[kind]), chosen),
        (x.int(), chosen),
        (x, hvd.Compression.none),
        (x, object()),
        (noise(LARGE).requires_grad_(), chosen),
    ]:
        assert wire_for(tensor, other, hvd.global_process_set) is None
    assert torch.equal(
        hvd.allreduce(noise(2, LARGE).t(), compression=chosen), by_hand(noise(2, LARGE).t(), KINDS[kind])
    )
    x.requires_grad_()
    hvd.allreduce(x, op=hvd.Sum, compression=chosen).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, hvd.size()))


def test_what_goes_through_shared_memory_is_cast_before(kind):
    if world.current().engine.algorithm(2 * LARGE, Dtype.float16) != "shared_memory":
        pytest.skip("the ranks share no memory")
    assert wire_for(noise(LARGE), compression(kind), hvd.global_process_set) is None


@pytest.mark.host_only
def test_ranks_that_compress_large_tensors_differently_are_told(_by_messages):
    mine = hvd.Compression.fp16 if hvd.rank() == 0 else hvd.Compression.bf16
    with pytest.raises(hvd.MismatchError, match=rf"rank 0: allreduce of float32\[{LARGE}\] sent as float16"):
        hvd.allreduce(torch.ones(LARGE), name="narrow", compression=mine)


# --- operations again -----------------------------------------------------------------------------


def test_a_compression_of_the_users_own():
    class Halves:
        @staticmethod
        def compress(tensor):
            return tensor / 2, 2

        @staticmethod
        def decompress(tensor, factor):
            return tensor * factor

    assert hvd.allreduce(torch.tensor([3.0]), op=hvd.Sum, compression=Halves).item() == 3 * hvd.size()


def test_ranks_that_compress_differently_are_told():
    mine = hvd.Compression.fp16 if hvd.rank() == 0 else hvd.Compression.bf16
    with pytest.raises(hvd.MismatchError, match="float16"):
        hvd.allreduce(torch.ones(3), name="narrow", compression=mine)


# --- optimizers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("bytes_", [16, 1 << 20])
def test_gradients_stay_autograds_and_buckets_have_16_bits(kind, dtype, bytes_):
    params = parameters(dtype=dtype)
    optimizer = wrap(params, compression=compression(kind), bucket_bytes=bytes_)
    handed = []
    for p in params:
        p.register_post_accumulate_grad_hook(lambda p: handed.append(p.grad))
    for _ in range(3):
        optimizer.zero_grad()
        handed.clear()
        loss(params).backward()
        assert reduced(params)
        assert {id(g) for g in handed} == {id(p.grad) for p in params}
        for bucket in optimizer._exchange._plans.buckets:
            assert bucket.flat.dtype == KINDS[kind]
        optimizer.step()


def test_dtypes_that_are_not_cast_keep_their_views(kind):
    other = torch.bfloat16 if kind == "fp16" else torch.float16
    params = parameters((3, 4)) + parameters((5, 2), KINDS[kind]) + parameters((4,), other)
    optimizer = wrap(params, compression=compression(kind))
    for _ in range(2):
        optimizer.zero_grad()
        sum(loss([p]).float() for p in params).backward()
        assert reduced(params)
        optimizer.step()
    assert [slot.casts for slot in slots(optimizer)] == [True, True, False, False, False]
    assert {b.flat.dtype for b in optimizer._exchange._plans.buckets} == set(KINDS.values())


def test_a_window_is_summed_in_float32_and_rounded_once(kind):
    large = 2.0 / torch.finfo(KINDS[kind]).eps  # large + 1 is large in 16 bits; large + 1 + 1 is not
    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = wrap([p], op=hvd.Sum, backward_passes_per_step=3, compression=compression(kind))
    for _ in range(2):
        optimizer.zero_grad()
        for value in (large, 1.0, 1.0):
            (p * value * (hvd.rank() == 0)).sum().backward()
        assert torch.equal(p.grad, torch.full((3,), large + 2))
        optimizer.step()


def test_sparse_gradients_as_dense_and_compressed(kind):
    table = torch.nn.Embedding(6, 2, sparse=True)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(table.parameters(), lr=1.0),
        op=hvd.Sum,
        sparse_as_dense=True,
        compression=compression(kind),
    )
    for _ in range(2):
        optimizer.zero_grad()
        table(torch.tensor([hvd.rank(), 5, 5])).sum().backward()
        expected = torch.zeros(6, 2)
        expected[: hvd.size()] += 1
        expected[5] += 2 * hvd.size()
        assert torch.equal(table.weight.grad, expected)
        optimizer.step()


def test_a_gradient_set_by_hand_stays_the_users(kind):
    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = wrap([p], op=hvd.Sum, compression=compression(kind))
    for mine in (torch.ones(3), torch.ones(1).expand(3)):
        p.grad = mine
        optimizer.step()
        assert torch.equal(p.grad, torch.full((3,), float(hvd.size()))) and torch.equal(mine, torch.ones(3))


def test_what_changes_a_gradient_before_its_bucket_leaves_is_exchanged(kind):
    params = parameters()
    optimizer = wrap(params, compression=compression(kind))
    for _ in range(2):
        optimizer.zero_grad()
        loss(params[1:]).backward()  # the first parameter's bucket waits for step()
        for p in params[1:]:
            p.grad.mul_(2)
        optimizer.synchronize()
        assert reduced(params[1:], 2)
        optimizer.step()


@pytest.mark.parametrize("complete", [True, False])
def test_an_overflow_on_one_rank_makes_all_ranks_skip(complete):
    params = parameters()
    optimizer = wrap(params, compression=hvd.Compression.fp16)
    scale = torch.amp.GradScaler("cpu", init_scale=8.0)
    for bad in (False, True, False):
        before = [p.detach().clone() for p in params]
        optimizer.zero_grad()
        mine = params if complete or hvd.rank() == 0 else params[1:]
        # Finite in float32, beyond float16.
        value = loss(mine, 1 << 16 if bad and hvd.rank() == hvd.size() - 1 else 1)
        scale.scale(value).backward()
        scale.step(optimizer)
        scale.update()
        if bad:
            assert all(p.grad.isinf().all() for p in params[1:])
        assert [not torch.equal(p, b) for p, b in zip(params, before, strict=True)] == [not bad] * len(params)
    assert scale.get_scale() == 4.0 and same_on_all_ranks(params)


def test_an_overflow_of_the_sum_is_infinite_on_all_ranks():
    p = torch.nn.Parameter(torch.zeros(5))
    optimizer = wrap([p], op=hvd.Sum, compression=hvd.Compression.fp16)
    (p * 40000.0).sum().backward()
    assert p.grad.isinf().all()
    optimizer.zero_grad()
    (p * 40000.0 * (hvd.rank() == 0)).sum().backward()
    assert torch.equal(p.grad, torch.full((5,), 40000.0))
    optimizer.step()


@pytest.mark.parametrize("bytes_", [512, 25 << 20])
def test_training_gives_every_rank_the_same_bits(kind, bytes_):
    results = []
    for _ in range(2):
        model = network().to(memory_format=torch.channels_last)
        optimizer = hvd.DistributedOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
            compression=compression(kind),
            bucket_bytes=bytes_,
        )
        for _, _, x, y in batches(10):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            grads = [p.grad for p in model.parameters()]
            assert all(torch.equal(g, g.to(KINDS[kind]).float()) for g in grads)  # as it was on the wire
            assert same_on_all_ranks(grads)
            optimizer.step()
        assert same_on_all_ranks(model.parameters())
        results.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_training_is_near_that_without_compression(kind):
    trained = []
    for chosen in ("none", kind):
        model = network()
        optimizer = hvd.DistributedOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1), compression=compression(chosen)
        )
        for _, _, x, y in batches(10):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        trained.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert not torch.equal(*trained)
    assert torch.allclose(*trained, atol=0.02)


def test_a_gradient_is_what_the_operations_make_of_it(kind):
    p = torch.nn.Parameter(torch.zeros(1000))
    optimizer = wrap([p], compression=compression(kind))
    x = noise(1000)
    (p * x).sum().backward()
    assert torch.equal(p.grad, hvd.allreduce(x, compression=compression(kind)))
    assert not torch.equal(p.grad, average(p))
    optimizer.step()
