"""Steps that are captured in CUDA graphs: `--gpu=nccl`, over the stand-in.

PyTorch computes at once there, whatever is captured; what ringdp does is captured, and done by replays. So tests put
the gradients of a replay where autograd has put those of the capture.
"""

import gc
import os

import numpy as np
import pytest
import torch
from frameworks.torch.helpers import average, gradient, parameters, wrap

import ringdp
import ringdp.torch as hvd
from ringdp import _core, world
from ringdp.torch import device

cupy = pytest.importorskip("cupy", reason="the stand-in for CuPy comes with --gpu")

pytestmark = [
    pytest.mark.mixed,
    pytest.mark.skipif(
        os.environ.get("RINGDP_GPU_TRANSPORT") != "nccl", reason="only NCCL's calls are captured"
    ),
    pytest.mark.skipif(not _core.gpu.kernels.built(), reason="there was no nvcc when ringdp was built"),
]


def to_gpu(tensor):
    from standin import torch_on_gpu

    return torch_on_gpu.on_gpu(tensor)


class Step:
    """Parameters on the GPU, and where autograd leaves their gradients."""

    def __init__(self, sizes=(3, 5, 700), **options):
        self.params = parameters(sizes)
        self.left = {}  # by number: a hook that refers to its parameter would keep all of this alive
        for i, p in enumerate(self.params):
            p.data = to_gpu(p.data)
            p.register_post_accumulate_grad_hook(lambda p, i=i, left=self.left: left.update({i: p.grad}))
        self.optimizer = wrap(self.params, **options)

    def backward(self, factor=1, params=None):
        given = self.params if params is None else params
        torch.autograd.backward(sum((p * to_gpu(gradient(p, factor=factor))).sum() for p in given))

    def settle(self):
        """Some steps, as a user takes them before the capture."""
        for _ in range(3):
            self.optimizer.zero_grad()
            self.backward()
            self.optimizer.step()
        self.optimizer.zero_grad()

    def put(self, factor):
        """What autograd would compute in a replay."""
        for i, grad in self.left.items():
            write(grad.data_ptr(), gradient(self.params[i], factor=factor).numpy())

    def is_reduced(self, factor):
        return all(p.grad is not None and p.grad.tolist() == average(p, factor).tolist() for p in self.params)


def write(address, values):
    """Float32 into memory on the GPU, in the current stream."""
    source = cupy.array(np.asarray(values, np.float32))
    stream = cupy.cuda.get_current_stream().ptr
    cupy.cuda.runtime.memcpyAsync(address, source.data.ptr, source.nbytes, 3, stream)


@pytest.fixture(autouse=True)
def _gone():
    """Optimizers take part in later joins as long as they are there."""
    yield
    gc.collect()


@pytest.fixture
def stream():
    with cupy.cuda.Stream(non_blocking=True) as stream:
        yield stream


def captured(stream, body):
    """As torch.cuda.graph does it: no thread may do what disturbs it, ringdp's own ones included."""
    stream.begin_capture(cupy.cuda.runtime.streamCaptureModeGlobal)
    try:
        body()
    finally:
        graph = stream.end_capture()
    return graph


def test_a_whole_step(stream):
    step = Step()
    step.settle()

    def whole():
        step.backward()
        step.optimizer.step()

    graph = captured(stream, whole)
    for factor in (2, 3, 5):
        step.put(factor)
        graph.launch()
        assert step.is_reduced(factor)


@pytest.mark.parametrize(
    "options", [{}, {"compression": hvd.Compression.fp16}, {"op": hvd.Sum}, {"bucket_bytes": 20}]
)
def test_a_backward_pass_and_steps_outside(stream, options):
    step = Step(sizes=(3, 5, 9), **options)
    step.settle()
    graph = captured(stream, step.backward)
    buckets = world.current().engine.counters()["buckets"]
    for factor in (2, 3):
        step.put(factor)
        graph.launch()
        before = [p.tolist() for p in step.params]
        step.optimizer.step()
        times = hvd.size() if options.get("op") == hvd.Sum else 1
        for p, was in zip(step.params, before, strict=True):
            if "compression" in options:
                continue  # what comes back is written where autograd left it
            assert p.grad.tolist() == (times * average(p, factor)).tolist()
            assert p.tolist() == (torch.tensor(was) - 0.5 * times * average(p, factor)).tolist()
        if "compression" in options:
            assert all(
                step.left[i].tolist() == average(p, factor).tolist() for i, p in enumerate(step.params)
            )
    assert world.current().engine.counters()["buckets"] == buckets  # nobody asked the core


def own_elements(step):
    """Of each bucket: its gradients, its parameters, and which elements are this rank's."""
    shards = step.optimizer._shards.shards
    return [
        (b.flat, s.flat, s.own) for b, s in zip(step.optimizer._exchange._plans.buckets, shards, strict=True)
    ]


def test_a_whole_step_by_shards_of_elements(stream):
    step = Step(shard="elements")
    step.settle()

    def whole():
        step.backward()
        step.optimizer.step()

    graph = captured(stream, whole)
    places = {p: slot.place for p, slot in zip(step.params, step.optimizer._exchange._slots, strict=True)}
    for factor in (2, 3, 5):
        step.put(factor)
        for _, flat, (begin, end) in own_elements(step):  # what the optimizer would have made of its part
            write(flat.data_ptr() + 4 * begin, np.full(end - begin, 10 * hvd.rank() + factor))
        graph.launch()
        for gradients, parameters_now, (begin, end) in own_elements(step):
            wanted = torch.zeros(gradients.numel())
            for p, place in places.items():
                if place.untyped_storage().data_ptr() == gradients.untyped_storage().data_ptr():
                    offset = place.storage_offset() - gradients.storage_offset()
                    wanted[offset : offset + p.numel()] = average(p, factor)
            assert gradients[begin:end].tolist() == wanted[begin:end].tolist()
            for rank, (b, e) in enumerate(hvd.allgather_object((begin, end))):
                assert set(parameters_now[b:e].tolist()) == ({10.0 * rank + factor} if e > b else set())


@pytest.mark.parametrize("shard", ["elements", "parameters"])
def test_a_backward_pass_by_shards_and_steps_outside(stream, shard):
    step = Step(shard=shard)
    step.settle()
    graph = captured(stream, step.backward)
    for factor in (2, 3):
        step.put(factor)
        graph.launch()
        before = [p.tolist() for p in step.params]
        step.optimizer.step()
        for p, was in zip(step.params, before, strict=True):
            assert p.tolist() == (torch.tensor(was) - 0.5 * average(p, factor)).tolist()


def test_steps_that_are_not_captured_go_on_by_the_same_plan(stream):
    step = Step()
    step.settle()
    graph = captured(stream, step.backward)
    plan, left = step.optimizer._exchange._plans.plan, dict(step.left)
    for factor in (2, 3):
        step.optimizer.zero_grad()
        step.backward(factor)
        step.optimizer.step()
        assert step.is_reduced(factor)
    step.optimizer.zero_grad()
    step.backward(
        1, step.params[:2]
    )  # another plan would be better, but the graph has the memory of this one
    step.optimizer.step()
    assert [p.grad.tolist() if p.grad is not None else None for p in step.params] == [
        *(average(p).tolist() for p in step.params[:2]),
        None,
    ]
    assert step.optimizer._exchange._plans.plan is plan
    with pytest.raises(ringdp.UsageError, match="a CUDA graph has captured this optimizer's exchange"):
        step.optimizer.weigh(3)
    step.left = left
    step.put(7)
    graph.launch()
    views = [slot.place for slot in step.optimizer._exchange._slots]
    assert [v.tolist() for v in views] == [average(p, 7).tolist() for p in step.params]


def test_ranks_join_when_they_have_replayed_all_they_have(stream):
    step = Step()
    step.settle()
    graph = captured(stream, step.backward)
    step.put(2)
    graph.launch()
    step.optimizer.step()
    if hvd.rank() == 0:
        cupy.cuda.get_current_stream().synchronize()
    assert hvd.join() in range(hvd.size())
    step.optimizer.zero_grad()
    step.backward(3)
    step.optimizer.step()
    assert step.is_reduced(3)


def test_several_graphs_of_one_optimizer(stream):
    step = Step()
    step.settle()
    graphs, left = [], []
    for _ in range(2):
        graphs.append(captured(stream, step.backward))
        left.append(dict(step.left))
        step.optimizer.zero_grad()
    views = [slot.place for slot in step.optimizer._exchange._slots]
    for turn in (0, 1, 1, 0):
        step.left = left[turn]
        step.put(turn + 2)
        graphs[turn].launch()
        assert [v.tolist() for v in views] == [average(p, turn + 2).tolist() for p in step.params]


def test_operations_by_name(stream):
    x, y = to_gpu(torch.zeros(1000)), to_gpu(torch.zeros(hvd.rank() + 1, 2))
    hvd.allreduce(x)
    made = {}

    def calls():
        made["sum"] = hvd.allreduce(x, op=hvd.Sum)
        made["all"] = hvd.allgather(y)
        made["group"] = hvd.grouped_allreduce([x, y[:1]], op=hvd.Max)
        handle = hvd.broadcast_async(x, 0)
        made["first"] = hvd.synchronize(handle)

    graph = captured(stream, calls)
    ranks = range(hvd.size())
    for turn in (1, 2):
        for tensor in (x, y):
            write(tensor.data_ptr(), np.full(tuple(tensor.shape), hvd.rank() + turn))
        graph.launch()
        assert made["sum"].tolist() == [sum(r + turn for r in ranks)] * 1000
        assert made["all"].tolist() == [[r + turn] * 2 for r in ranks for _ in range(r + 1)]
        assert [g.flatten().tolist() for g in made["group"]] == [
            [hvd.size() - 1 + turn] * n for n in (1000, 2)
        ]
        assert made["first"].tolist() == [turn] * 1000


# --- what is refused ----------------------------------------------------------------------------------------


def refused(stream, body, why):
    def call():
        with pytest.raises(ringdp.UsageError, match=why):
            body()

    captured(stream, call)


def test_not_the_first_step(stream):
    step = Step()
    refused(stream, step.backward, "take some steps before the capture")


def test_no_weights(stream):
    step = Step()
    for _ in range(3):
        step.optimizer.zero_grad()
        step.optimizer.weigh(2)
        step.backward()
        step.optimizer.step()
    step.optimizer.zero_grad()
    step.optimizer.weigh(2)
    refused(stream, step.backward, "other numbers in each step")


def test_no_communication_hooks(stream):
    step = Step()
    step.optimizer.register_comm_hook(None, lambda _, bucket: hvd.allreduce_future(bucket))
    refused(stream, step.backward, "communication hooks|take some steps")


def test_no_models_partly_on_the_cpu(stream):
    step = Step()
    step.params[0].data = torch.zeros(3)
    step.optimizer = wrap(step.params)

    def both():
        torch.autograd.backward(
            [(step.params[0] * gradient(step.params[0])).sum(), sum(p.sum() for p in step.params[1:])]
        )

    for _ in range(3):
        step.optimizer.zero_grad()
        both()
        step.optimizer.step()
    step.optimizer.zero_grad()
    refused(stream, both, "all parameters must be on the GPU")


def test_all_passes_or_none(stream):
    step = Step(backward_passes_per_step=2)
    for _ in range(3):
        step.optimizer.zero_grad()
        step.backward()
        step.backward()
        step.optimizer.step()
    step.optimizer.zero_grad()
    step.backward()
    refused(stream, step.backward, "all backward passes of a window")


def test_several_passes(stream):
    step = Step(backward_passes_per_step=2)
    for _ in range(3):
        step.optimizer.zero_grad()
        step.backward()
        step.backward()
        step.optimizer.step()
    step.optimizer.zero_grad()

    def whole():
        step.backward()
        step.backward()
        step.optimizer.step()

    graph = captured(stream, whole)
    step.put(3)
    graph.launch()
    assert step.is_reduced(3)


def test_not_without_some_gradients(stream):
    step = Step()
    step.settle()

    def fewer():
        step.backward(1, step.params[1:])
        step.optimizer.step()

    refused(stream, fewer, "no gradient for p0, which had one")
    step.settle()  # it goes on with a new plan
    assert all(device.is_on_gpu(p) for p in step.params)


# --- torch.distributed --------------------------------------------------------------------------------------


def test_collectives_of_torch_distributed(stream, c10d):
    x, y = to_gpu(torch.zeros(1000)), to_gpu(torch.zeros(2))
    rows = to_gpu(torch.zeros(2 * hvd.size()))
    c10d.all_reduce(x)
    seen = []

    def calls():
        work = c10d.all_reduce(x, async_op=True)
        c10d.all_gather_into_tensor(rows, y)
        work.wait()
        assert work.is_completed()
        future = c10d.all_reduce(y, async_op=True).get_future()
        future.then(lambda done: seen.append(done.value()[0] is not None)).wait()

    graph = captured(stream, calls)
    assert seen == [True]
    for turn in (1, 2):
        for tensor in (x, y):
            write(tensor.data_ptr(), np.full(tuple(tensor.shape), hvd.rank() + turn))
        graph.launch()
        total = sum(r + turn for r in range(hvd.size()))
        assert x.tolist() == [total] * 1000
        assert y.tolist() == [total] * 2
        assert rows.tolist() == [r + turn for r in range(hvd.size()) for _ in range(2)]
