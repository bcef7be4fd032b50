"""With one rank: a plain optimizer. And what is refused before any exchange."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from frameworks.torch.helpers import loss, named, parameters, wrap
from memory_flags import flags_at, needs_huge_pages

import ringdp
import ringdp.torch as hvd
from ringdp import _core, world
from ringdp import place as places
from ringdp.torch.adapter import DTYPES


@pytest.mark.parametrize("compression", [hvd.Compression.none, hvd.Compression.fp16, hvd.Compression.bf16()])
def test_no_bucket_view_copy_or_hook(compression):
    params = parameters()
    optimizer = wrap(params, compression=compression)
    loss(params).backward()
    gradients = [p.grad for p in params]
    assert optimizer._exchange is None
    assert not any(p._post_accumulate_grad_hooks or p._backward_hooks for p in params)
    storages = {g.untyped_storage().data_ptr() for g in gradients}
    assert len(storages) == len(params) and all(g.untyped_storage().nbytes() == g.nbytes for g in gradients)
    optimizer.synchronize()
    with optimizer.skip_synchronize():
        optimizer.step()
    assert all(p.grad is g for p, g in zip(params, gradients, strict=True))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.LBFGS])
def test_the_same_bits_as_without(kind):
    results = []
    for distributed in (False, True):
        params = parameters()
        optimizer = kind(params, lr=0.1)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        if distributed:
            optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=named(params))

        def closure(optimizer=optimizer, params=params):
            optimizer.zero_grad()
            value = sum(p.square().sum() for p in params)
            value.backward()
            return value

        losses = []
        for _ in range(3):
            losses.append(float(optimizer.step(closure)))
            scheduler.step()
        optimizer.add_param_group(
            {"params": [torch.nn.Parameter(torch.ones(1))]}
        ) if kind is not torch.optim.LBFGS else None
        results.append((losses, [p.tolist() for p in params], str(optimizer.state_dict())))
    assert results[0] == results[1]


def test_copies_are_plain():
    optimizer = wrap(parameters(), optimizer=torch.optim.Adam)
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert type(copied) is torch.optim.Adam
        assert str(copied.state_dict()) == str(optimizer.state_dict())


def test_scaler():
    params = parameters()
    optimizer = wrap(params)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = [p.detach().clone() for p in params]
    scaler.scale(loss(params) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0 and all(torch.equal(p, b) for p, b in zip(params, before, strict=True))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_groups": -1}, "must not be negative, as -1 is"),
        ({"groups": [[1]]}, "group 0 of groups holds what is no parameter of this optimizer, a int"),
        ({"groups": "all"}, "a number or a list of lists of parameters, not 'all'"),
        ({"groups": 2, "num_groups": 3}, "num_groups or groups, not both"),
        ({"compression": object()}, "compression must have the methods compress and decompress"),
        ({"op": 7}, "op must be Average, Sum, Min, Max, Product or Adasum, not 7"),
        ({"op": hvd.Max, "gradient_predivide_factor": 2.0}, "needs op=Average"),
        ({"backward_passes_per_step": 0}, "backward_passes_per_step must be a positive integer, not 0"),
        ({"op": hvd.Sum, "gradient_predivide_factor": 2.0}, "needs op=Average"),
        ({"gradient_predivide_factor": 0.0}, "must be positive"),
        ({"bucket_bytes": 0}, "bucket_bytes must be positive"),
        ({"process_set": hvd.ProcessSet([3])}, "cannot be used: give it to init"),
    ],
)
def test_arguments_that_are_refused(options, text):
    with pytest.raises(hvd.RingdpError, match=text):
        wrap(parameters(), **options)


@pytest.mark.parametrize("value", ["many", "0", "-1", "inf", "nan"])
def test_bucket_bytes_of_the_environment_that_are_refused(value, monkeypatch):
    monkeypatch.setenv("RINGDP_BUCKET_BYTES", value)
    with pytest.raises(hvd.UsageError, match=f"RINGDP_BUCKET_BYTES={value} is not a number of bytes from 1"):
        wrap(parameters())


def test_groups_that_are_refused():
    a, b = parameters((2, 3))
    frozen = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
    for groups, text in [
        ([[a], [b, a]], "groups names p0 twice: in groups 0 and 1"),
        ([[frozen]], "groups names p2, which does not require a gradient"),
        ([[torch.zeros(1)]], "group 0 of groups holds what is no parameter of this optimizer"),
    ]:
        with pytest.raises(hvd.UsageError, match=text):
            wrap([a, b, frozen], groups=groups)


@pytest.mark.parametrize("n", [-1, 1.5, "many", None, 1 << 60, float("nan"), torch.ones(2)])
def test_weights_that_are_refused(n):
    with pytest.raises(hvd.UsageError, match="a whole number from 0 to"):
        wrap(parameters()).weigh(n)


def test_what_one_rank_need_not_do():
    model = torch.nn.BatchNorm1d(3)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=1.0), model=model, num_groups=2
    )
    optimizer.register_comm_hook(None, lambda state, bucket: None)
    with pytest.raises(hvd.UsageError, match="a communication hook is a function"):
        optimizer.register_comm_hook(None, "hook")
    with optimizer.no_sync():
        optimizer.weigh(3)
        model(torch.ones(2, 3)).sum().backward()
    assert torch.equal(model.bias.grad, torch.full((3,), 2.0)) and not model._forward_pre_hooks


def test_names_that_are_refused():
    params = parameters()
    optimizer = torch.optim.SGD(params, lr=0.1)
    for names, text in [
        (params, "pairs of name and parameter"),
        ([("a", params[0]), ("a", params[1])], "the name 'a' to two parameters"),
        ([("a", params[0])], r"does not name 2 of the optimizer's parameters \(parameter.0.1 is the first\)"),
    ]:
        with pytest.raises(hvd.UsageError, match=text):
            hvd.DistributedOptimizer(optimizer, named_parameters=names)
    assert type(optimizer) is torch.optim.SGD


def test_what_is_no_optimizer_over_tensors_with_memory():
    with pytest.raises(TypeError, match="needs a torch.optim.Optimizer, not a int"):
        hvd.DistributedOptimizer(3)
    p = torch.nn.Parameter(torch.zeros(2, device="meta"))
    with pytest.raises(
        TypeError, match="parameter w is on device meta; ringdp exchanges tensors of CPUs and NVIDIA's GPUs"
    ):
        hvd.DistributedOptimizer(torch.optim.SGD([p], lr=0.1), named_parameters=[("w", p)])
    with pytest.raises(TypeError, match="parameter parameter.0.0 has dtype torch.complex64"):
        hvd.DistributedOptimizer(
            torch.optim.SGD([torch.nn.Parameter(torch.zeros(1, dtype=torch.complex64))], lr=0.1)
        )


def test_a_step_that_something_has_replaced():
    optimizer = torch.optim.SGD(parameters(), lr=0.1)
    optimizer.step = lambda: None
    with pytest.raises(hvd.UsageError, match="call DistributedOptimizer before"):
        hvd.DistributedOptimizer(optimizer)


def test_before_init():
    with world.use(None), pytest.raises(hvd.NotInitializedError, match=r"call ringdp.init\(\) first"):
        wrap(parameters())


def test_operations_on_one_rank():
    x = torch.arange(4.0)
    for got in (
        hvd.allreduce(x),
        hvd.broadcast(x, 0),
        hvd.allgather(x),
        hvd.alltoall(x),
        hvd.reducescatter(x),
    ):
        assert torch.equal(got, x)
    hvd.broadcast_parameters({"x": x})
    hvd.broadcast_optimizer_state(torch.optim.SGD([torch.nn.Parameter(x)], lr=0.1))
    assert hvd.allgather_object("me") == ["me"]


@needs_huge_pages
def test_large_results_are_in_huge_pages():
    for result in hvd.allreduce(torch.zeros(1 << 21)), hvd.allgather(torch.zeros(2, 1 << 20)):
        assert "hg" in flags_at(result.data_ptr() + (2 << 20))


def test_importing_touches_no_mpi():
    code = (
        "import sys, ringdp.torch as hvd; assert 'torch' in sys.modules; assert 'mpi4py.MPI' not in sys.modules; "
        "print(hvd.is_initialized(), open('/proc/self/maps').read().count('libmpi'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["False", "0"], done.stderr


def test_importing_ringdp_alone_imports_no_torch():
    code = "import sys, ringdp; ringdp.allreduce; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_size_and_rank_inside_a_full_graph_compile(monkeypatch):
    monkeypatch.setenv(places.PARENT_VARIABLE, "")  # so that it is gone afterwards
    places.tell_children(world.current().place)  # as init() does
    every = hvd.global_process_set
    first = hvd.parallel.ColumnLinear(3, 5, process_set=every, gather_output=True)
    second = hvd.parallel.RowLinear(5, 3, process_set=every, input_is_split=False)

    def act(x):
        return second(first(x)) * (
            every.size() + 2 * every.rank() + every.included() + hvd.size() + hvd.rank()
        )

    x = torch.arange(6.0).view(2, 3)
    assert torch.equal(torch.compile(act, fullgraph=True, backend="eager")(x), act(x))


TRACED_FIRST = """
import sys, torch, ringdp.torch as hvd
from ringdp import _core, world
from ringdp import place as places
late = {"torch._dynamo", "ringdp.torch.compiled", "ringdp.torch.operators"}
assert not late & set(sys.modules)
(engine,) = _core.local_engines(1, 0)
with world.use(world.World(engine, world.Place(0, 1))):
    compiled = torch.compile(lambda x: hvd.allreduce(x) * hvd.size(), fullgraph=True, backend="eager")
    assert compiled(torch.ones(3)).tolist() == [1, 1, 1] and late <= set(sys.modules)
engine.shutdown(10)
"""


def test_nothing_of_it_is_imported_before_a_graph_is_traced():
    done = subprocess.run([sys.executable, "-c", TRACED_FIRST], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_what_it_was_built_with():
    assert hvd.mpi_built() and hvd.mpi_enabled() and hvd.mpi_threads_supported()
    assert not any((hvd.gloo_built(), hvd.rocm_built(), hvd.ccl_built()))
    assert hvd.nccl_built() == _core.gpu.nccl()["version"]
    assert hvd.cuda_built() == _core.gpu.driver()["usable"]


def test_everything_that_is_exported_exists():
    assert all(hasattr(hvd, name) for name in hvd.__all__)
    assert hvd.Average is ringdp.Average and hvd.size() == 1 and hvd.rank() == 0


@pytest.mark.host_only
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_core_looks_at_tensors_of_every_dtype_by_itself(dtype):
    """Those that it does not know take a longer way, which would give the same results."""
    here, given = world.current(), torch.arange(5).to(dtype)
    output = torch.empty_like(given)
    assert here.engine.allreduce(None, 0, given, output, hvd.Sum, 1.0, 1.0, here)
    assert torch.equal(output.view(torch.uint8), given.view(torch.uint8))
