"""Models with parameters on a GPU, and on the CPU too: `--gpu=host`, `--gpu=nccl` (tests/standin/torch_on_gpu.py)."""

import pytest
import torch
from frameworks.torch.helpers import average, gradient, loss, named, parameters, reduced, wrap

import ringdp.torch as hvd
from ringdp import _core
from ringdp.torch import device, packing
from ringdp.torch.finite import is_finite

pytestmark = pytest.mark.mixed


def to_gpu(params):
    from standin import torch_on_gpu

    for p in params:
        p.data = torch_on_gpu.on_gpu(p.data)
    return params


def gradient_there(param, rank=None):
    from standin import torch_on_gpu

    given = gradient(param, rank)
    return torch_on_gpu.on_gpu(given) if device.is_on_gpu(param) else given


def backward(params):
    """One pass, in which no tensor meets one of the other kind."""
    kinds = [[p for p in params if device.is_on_gpu(p) == on_gpu] for on_gpu in (True, False)]
    torch.autograd.backward([sum((p * gradient_there(p)).sum() for p in kind) for kind in kinds if kind])


def is_reduced(params):
    return all(p.grad is not None and p.grad.tolist() == average(p).tolist() for p in params)


@pytest.fixture
def host_waits(monkeypatch):
    """Where ringdp makes the host wait for a GPU."""
    from standin import torch_on_gpu

    waits = []
    monkeypatch.setattr(torch_on_gpu, "host_waits", waits)
    return waits


@pytest.fixture
def launches(monkeypatch):
    """What is packed, and what is unpacked: numbers of tensors by launch; those that PyTorch copies as None."""
    made = []

    def counted(launch):
        def call(gpu, stream, tensors, bucket, table, *rest):
            made.append(table[1])
            launch(gpu, stream, tensors, bucket, table, *rest)

        return call

    for way in ("pack", "unpack"):
        monkeypatch.setattr(_core.gpu.kernels, way, counted(getattr(_core.gpu.kernels, way)))
    original = packing._by_torch

    def by_torch(copies):
        made.extend([None] * len(copies))
        original(copies)

    monkeypatch.setattr(packing, "_by_torch", by_torch)
    return made


@pytest.mark.parametrize("order", ["first", "last", "alternate"])
def test_models_partly_on_the_cpu(order):
    params = parameters((3, 5, 2, 700, 4))
    chosen = {"first": params[:2], "last": params[2:], "alternate": params[::2]}[order]
    to_gpu(chosen)
    optimizer = wrap(params)
    for _ in range(4):
        optimizer.zero_grad()
        backward(params)
        optimizer.step()
        assert is_reduced(params)
        assert all(device.is_on_gpu(p.grad) == device.is_on_gpu(p) for p in params)
    buckets = optimizer._exchange._plans.buckets
    assert len(buckets) == 2
    for bucket in buckets:
        assert all(device.is_on_gpu(slot.param) == device.is_on_gpu(bucket.flat) for slot in bucket.slots)


def test_one_launch_for_the_copies_of_a_bucket(launches):
    params = to_gpu(parameters((3, 5, 2)))
    optimizer = wrap(params)
    for _ in range(3):
        launches.clear()
        optimizer.zero_grad()
        backward(params)
        optimizer.step()
        assert launches == ([3] if _core.gpu.kernels.built() else [None] * 3)


@pytest.mark.parametrize("layouts", [[], [1], [1, 2]], ids=str)
def test_gradients_in_other_layouts_than_the_buckets_are_left_to_torch(layouts, launches):
    params = to_gpu([torch.nn.Parameter(torch.zeros(shape)) for shape in [(5,), (4, 6), (3, 2)]])
    optimizer = wrap(params)

    def turned(p):  # the user's own, after ringdp's; the last one to come leaves before that
        p.grad = p.grad.t().contiguous().t()

    for i in layouts:
        params[i].register_post_accumulate_grad_hook(turned)
    for _ in range(2):
        launches.clear()
        optimizer.zero_grad()
        backward(params)
        optimizer.step()
        assert is_reduced(params)
        ours = [3 - len(layouts)] if _core.gpu.kernels.built() else [None] * (3 - len(layouts))
        assert launches == [None] * len(layouts) + ours


def test_casts_of_a_bucket(launches):
    params = to_gpu(
        [
            torch.nn.Parameter(torch.zeros(n, dtype=d))
            for n, d in [(4, torch.float32), (5, torch.float64), (3, torch.float32)]
        ]
    )
    optimizer = wrap(params, compression=hvd.Compression.bf16)
    for _ in range(3):
        launches.clear()
        optimizer.zero_grad()
        backward(params)
        optimizer.step()
        assert is_reduced(params)
        assert sorted(launches) == [1, 1, 2, 2] if _core.gpu.kernels.built() else launches == [None] * 6


def test_what_is_in_the_bucket_already_is_not_copied(launches):
    params = to_gpu(parameters((3, 5, 2)))
    optimizer = wrap(params)
    backward(params)
    optimizer.step()
    launches.clear()
    optimizer.zero_grad(set_to_none=False)
    backward(params)
    optimizer.step()
    assert is_reduced(params)
    assert launches == []


@pytest.mark.parametrize("compression", ["none", "bf16"])
def test_accumulation(compression):
    params = to_gpu(parameters((3, 5, 2)))
    optimizer = wrap(params, backward_passes_per_step=3, compression=getattr(hvd.Compression, compression))
    for _ in range(2):
        optimizer.zero_grad()
        for _ in range(3):
            backward(params)
        optimizer.step()
        assert all(p.grad.tolist() == average(p, 3).tolist() for p in params)


@pytest.mark.parametrize(
    "options", [{}, {"compression": "bf16"}, {"op": hvd.Sum}, {"shard": "elements"}], ids=str
)
def test_the_host_does_not_wait_for_the_gpu(options, host_waits):
    options = {k: hvd.Compression.bf16 if v == "bf16" else v for k, v in options.items()}
    params = to_gpu(parameters((3, 5, 2)))
    optimizer = wrap(params, **options)
    for n in range(4):
        host_waits.clear()
        optimizer.zero_grad()
        backward(params)
        optimizer.step()
        if n > 1:
            assert host_waits == []


def test_that_it_waits_would_be_seen(host_waits):
    (param,) = to_gpu(parameters((3,)))
    assert is_finite(param)
    assert host_waits


@pytest.mark.parametrize("op", [hvd.Min, hvd.Max])
@pytest.mark.parametrize("where", ["first", "last"])
def test_overflows_that_a_minimum_hides_are_found_on_the_gpu(op, where, host_waits):
    params = to_gpu(parameters((3, 700, 5)))
    optimizer = wrap(params, op=op, bucket_bytes=1024)
    for overflow in (False, True, False):
        host_waits.clear()
        optimizer.zero_grad()
        grads = [gradient_there(p) for p in params]
        if overflow and hvd.rank() == 1:
            grads[0 if where == "first" else 2][1] = float("inf") if op is hvd.Min else -float("inf")
        sum((p * grad).sum() for p, grad in zip(params, grads, strict=True)).backward()
        optimizer.synchronize()
        assert host_waits == []
        assert any(not p.grad.isfinite().all() for p in params) == overflow


def test_weights_and_batch_norm_do_not_wait_either(host_waits):
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), hvd.SyncBatchNorm(4))
    to_gpu(list(net.parameters()))
    for buffer in net.buffers():
        buffer.data = to_gpu([buffer])[0].data
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(net.parameters(), lr=0.5), model=net)
    (x,) = to_gpu([torch.arange(12.0).view(3, 4)])
    for n in range(4):
        host_waits.clear()
        optimizer.zero_grad()
        optimizer.weigh(3)
        net(x).square().sum().backward()
        optimizer.step()
        if n > 1:
            assert host_waits == []


def test_a_parameter_that_moves():
    params = parameters((3, 5))
    optimizer = wrap(params)
    backward(params)
    optimizer.step()
    to_gpu(params[:1])
    for _ in range(3):
        optimizer.zero_grad()
        backward(params)
        optimizer.step()
        assert is_reduced(params)
    assert [device.is_on_gpu(p.grad) for p in params] == [True, False]


def test_a_rank_whose_model_is_on_the_cpu():
    params = parameters((3, 5))
    if hvd.rank() == 0:
        to_gpu(params)
    optimizer = wrap(params)
    with pytest.raises(hvd.MismatchError, match="p0: float32.*on a GPU"):
        backward(params)
        optimizer.step()


def test_gradients_of_other_streams_are_waited_for():
    from standin import torch_on_gpu

    params = to_gpu(parameters((3, 5)))
    optimizer = wrap(params)
    for _ in range(3):
        optimizer.zero_grad()
        with torch_on_gpu.stream("another one"):
            (params[0] * gradient_there(params[0])).sum().backward()
            params[0].grad.zero_()
            torch_on_gpu.write_late(params[0].grad, gradient(params[0]))
        (params[1] * gradient_there(params[1])).sum().backward()
        optimizer.step()
        assert is_reduced(params)


@pytest.mark.skipif(
    not _core.gpu.kernels.built(), reason="PyTorch would copy, and the stand-in does not order that"
)
def test_gradients_of_other_streams_are_given_up_behind_their_copy():
    """Their memory goes back to the stream that they were made in, which has nothing to do: it is overwritten there."""
    from standin import torch_on_gpu

    params = to_gpu(parameters((300, 500)))
    optimizer = wrap(params)
    for _ in range(3):
        optimizer.zero_grad()
        with torch_on_gpu.stream("another one"):
            (params[0] * gradient_there(params[0])).sum().backward()
        (params[1] * gradient_there(params[1])).sum().backward()
        torch_on_gpu.keep_busy()
        optimizer.step()
        assert is_reduced(params)


def test_each_optimizer_of_a_rank_that_has_joined_works_in_its_stream(monkeypatch):
    """One of them has the caller's thread, the other a thread of its own, where other streams are current."""
    from standin import torch_on_gpu

    used, place_of = set(), device.place_of
    monkeypatch.setattr(
        device, "place_of", lambda tensor: used.add(device.current_stream(0)) or place_of(tensor)
    )
    all_params = [to_gpu(parameters(sizes)) for sizes in [(3, 5), (4,)]]
    optimizers = [
        wrap(params, op=hvd.Max) for params in all_params
    ]  # for which overflows are looked for, too
    for _ in range(1 + 2 * hvd.rank()):
        for params, optimizer in zip(all_params, optimizers, strict=True):
            optimizer.zero_grad()
            backward(params)
            optimizer.step()
            assert all(p.grad.tolist() == gradient(p, hvd.size() - 1).tolist() for p in params)
    hvd.join()
    assert used == {torch_on_gpu.stream().ptr}


def test_several_gpus_in_one_model(monkeypatch):
    params = to_gpu(parameters((3, 5)))
    monkeypatch.setattr(device, "gpu_of", lambda tensor: tensor.numel() % 2 + (tensor.numel() == 3))
    with pytest.raises(hvd.UsageError, match="GPUs 1 and 2"):
        wrap(params)


@pytest.mark.parametrize("gpus", [0, 1, 3])
def test_the_gpu_of_a_rank(gpus, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    got = hvd.use_local_device()
    want = torch.device("cuda", hvd.local_rank() % gpus) if gpus else torch.device("cpu")
    assert got == want
    assert chosen == ([want] if gpus else [])


@pytest.mark.parametrize("shard", ["elements", "parameters"])
def test_shards_and_their_state(shard):
    def trained(shard):
        params = to_gpu(parameters((3, 700, 2)))
        optimizer = wrap(params, optimizer=torch.optim.AdamW, shard=shard)
        for _ in range(3):
            optimizer.zero_grad()
            backward(params)
            optimizer.step()
        return params, optimizer

    plain, reference = trained(False)
    params, optimizer = trained(shard)
    assert [p.tolist() for p in params] == [p.tolist() for p in plain]
    optimizer.consolidate_state_dict(to=-1)
    ours, theirs = optimizer.state_dict()["state"], reference.state_dict()["state"]
    assert ours.keys() == theirs.keys()
    for number, state in theirs.items():
        for key, value in state.items():
            assert ours[number][key].tolist() == value.tolist()
            assert device.is_on_gpu(ours[number][key]) == device.is_on_gpu(value)


def test_state_of_an_optimizer():
    params = to_gpu(parameters((3, 5)))
    optimizer = torch.optim.Adam(named(params), lr=0.5 + hvd.rank())
    if hvd.rank() == 0:
        for p in params:
            p.grad = gradient_there(p)
        optimizer.step()
    hvd.broadcast_parameters(dict(named(params)), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    for p in params:
        assert device.is_on_gpu(optimizer.state[p]["exp_avg"])
        assert not device.is_on_gpu(optimizer.state[p]["step"])
    mine = [optimizer.state[p]["exp_avg"].tolist() for p in params]
    assert all(theirs == mine for theirs in hvd.allgather_object(mine))
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_scaler_and_overflow_of_one_rank(host_waits):
    params = to_gpu(parameters((3, 5)))
    optimizer = wrap(params)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = [p.tolist() for p in params]
    for overflow in (True, False):
        optimizer.zero_grad()
        factor = float("inf") if overflow and hvd.rank() == 0 else 1.0
        scaler.scale(sum((p * gradient_there(p)).sum() for p in params) * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        assert ([p.tolist() for p in params] == before) == overflow
    assert host_waits == []


def test_reduced_helpers_agree():  # of the tests above, with those of the CPU
    params = parameters()
    optimizer = wrap(params)
    loss(params).backward()
    optimizer.step()
    assert reduced(params) and is_reduced(params)
