"""Every public call before `init()`, after `shutdown()` and in a child: a clear error, or it needs no job."""

import json
import subprocess
import sys

import pytest
from driver.environ import environment

pytest.importorskip("torch")

import ringdp
import ringdp.torch as hvd

LIMIT = 100  # seconds

# Each call that exchanges something or asks where this rank is, with arguments that are right.
RAISES = """
add_process_set([0]) | remove_process_set(ringdp.ProcessSet([0]))
allgather(x) | allgather_async(x) | allreduce(x) | allreduce_(x) | allreduce_async(x) | allreduce_async_(x)
alltoall(x) | alltoall_async(x) | barrier() | broadcast(x, 0) | broadcast_(x, 0) | broadcast_async(x, 0)
broadcast_async_(x, 0) | reducescatter(x) | reducescatter_async(x)
grouped_allgather([x]) | grouped_allgather_async([x]) | grouped_allreduce([x]) | grouped_allreduce_([x])
grouped_allreduce_async([x]) | grouped_allreduce_async_([x]) | grouped_reducescatter([x])
grouped_reducescatter_async([x])
mesh(data=1) | allgather_object(1) | broadcast_object(1) | average_metrics({"loss": 1.0}) | empty(3)
join() | should_stop() | stop() | stragglers() | start_timeline(path) | stop_timeline()
rank() | size() | local_rank() | local_size() | cross_rank() | cross_size() | is_homogeneous()
"""
# Of NumPy arrays alone.
RAISES_AT_TOP = "shard([1, 2]) | map_reduce(sum, [1, 2])"
RAISES_IN_TORCH = """
sparse_allreduce_async(sparse, "name", hvd.Sum)
broadcast_parameters([x]) | broadcast_optimizer_state(optimizer) | DistributedOptimizer(optimizer)
use_local_device() | in_context(uneven(net)) | SyncBatchNorm(2)(torch.ones(3, 2))
"""
# What a child of a rank is told (the parent here is the only rank of its job), and what needs no more than that.
ANSWERED_FOR_PARENT = """
rank() | size() | local_rank() | local_size() | cross_rank() | cross_size() | is_homogeneous() | use_local_device()
SyncBatchNorm(2)(torch.ones(3, 2))
"""
# Those that work at any time.
WORKS = "is_initialized() | shutdown() | on_preempt(print) | request_stop() | ProcessSet([0])"
WORKS_IN_TORCH = """
ccl_built() | cuda_built() | ddl_built() | gloo_built() | gloo_enabled() | mpi_built() | mpi_enabled()
nccl_built() | rocm_built() | convert_sync_batchnorm(net) | SyncBatchNorm(2)
"""
# That no call gives a handle for, before `init()`; classes and constants; what has a test of its own.
ELSEWHERE = {"init", "poll", "synchronize", "Handle", "SparseHandle", "GradBucket", "Compression", "ReduceOp"}
ELSEWHERE |= {"Adasum", "Average", "Max", "Min", "Product", "Sum", "global_process_set", "__version__"}
ELSEWHERE |= {"comm_hooks", "data", "elastic", "mpi_threads_supported", "parallel", "patience"}
ELSEWHERE |= {"Mesh", "Stragglers"}


def calls(text):
    return [call.strip() for line in text.strip().splitlines() for call in line.split("|")]


def name(call):
    return call.removeprefix("in_context(").split("(")[0]


ASK = """
import contextlib, json, multiprocessing, os, sys, warnings
import numpy as np, torch, ringdp, ringdp.torch as hvd

def in_context(manager):
    with manager:
        pass

def answers(calls):
    found = {}
    for module, call in calls:
        net = torch.nn.Linear(2, 2)
        names = {
            "ringdp": ringdp, "hvd": hvd, "torch": torch, "in_context": in_context, "net": net,
            "x": np.ones((2, 2)) if module == "ringdp" else torch.ones(2, 2),
            "sparse": torch.eye(2).to_sparse(), "optimizer": torch.optim.SGD(net.parameters(), lr=0.1),
            "path": os.path.join(os.environ["FOLDER"], "timeline"),
        }
        names.update({n: getattr(sys.modules[module], n) for n in sys.modules[module].__all__})
        try:
            eval(call, names)
            found[f"{module}.{call}"] = "works"
        except BaseException as error:
            found[f"{module}.{call}"] = f"{type(error).__name__}: {error}"
    return found

def in_child(calls, queue):
    queue.put(answers(calls))

if __name__ == "__main__":
    when, calls = sys.argv[1], json.loads(sys.argv[2])
    if when != "before":
        ringdp.init()
    if when == "after":
        ringdp.shutdown()
    if when in ("fork", "spawn"):
        context = multiprocessing.get_context(when)
        queue = context.Queue()
        child = context.Process(target=in_child, args=(calls, queue))
        child.start()
        print(json.dumps(queue.get(timeout=40)))
        child.join(10)
    else:
        print(json.dumps(answers(calls)))
"""


def of_modules(both, in_torch, at_top=""):
    asked = [(module, call) for module in ("ringdp", "ringdp.torch") for call in calls(both)]
    asked += [("ringdp", call) for call in calls(at_top) if call]
    return asked + [("ringdp.torch", call) for call in calls(in_torch)]


NEED_A_JOB, DO_NOT = of_modules(RAISES, RAISES_IN_TORCH, RAISES_AT_TOP), of_modules(WORKS, WORKS_IN_TORCH)


@pytest.fixture(scope="module", params=["before", "after", "fork", "spawn"])
def told(request, tmp_path_factory):
    """When, and what each call said then."""
    folder = tmp_path_factory.mktemp(request.param)
    script = folder / "ask.py"
    script.write_text(ASK)
    command = [sys.executable, str(script), request.param, json.dumps(NEED_A_JOB + DO_NOT)]
    done = subprocess.run(
        command, env={**environment(), "FOLDER": str(folder)}, capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode == 0, done.stderr
    return request.param, json.loads(done.stdout.splitlines()[-1])


def test_every_public_name_is_in_a_table():
    known = {name(call) for call in calls(RAISES) + calls(WORKS)} | ELSEWHERE
    in_torch = known | {name(call) for call in calls(RAISES_IN_TORCH) + calls(WORKS_IN_TORCH)}
    known |= {name(call) for call in calls(RAISES_AT_TOP)}
    for module, names in ((ringdp, known), (hvd, in_torch)):
        errors = {n for n in module.__all__ if isinstance(getattr(module, n), type)}
        errors = {n for n in errors if issubclass(getattr(module, n), BaseException)}
        assert set(module.__all__) - errors - names == set()


def test_calls_that_need_a_job(told):
    when, answers = told
    in_child = when in ("fork", "spawn")
    why = "is a child of rank 0" if in_child else "ringdp.init() first"
    for module, call in NEED_A_JOB:
        answer = answers[f"{module}.{call}"]
        if in_child and call in calls(ANSWERED_FOR_PARENT):
            assert answer == "works", (call, answer)
        else:
            assert answer.startswith("NotInitializedError: ") and why in answer, (module, call, answer)


def test_calls_that_work_at_any_time(told):
    _, answers = told
    for module, call in DO_NOT:
        assert answers[f"{module}.{call}"] == "works", (module, call)
