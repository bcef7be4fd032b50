"""Every public call of ringdp.keras before `init()` and after `shutdown()`: a clear error, or it needs no job."""

import pytest
from frameworks.not_initialized import WHEN, check, check_tables

import ringdp.keras as hvd

SETUP = """
import os, tempfile
import keras, numpy as np
import ringdp.keras

path = os.path.join(tempfile.mkdtemp(), "timeline")
x, variable, optimizer = np.ones((2, 2), np.float32), keras.Variable(np.ones(2, np.float32)), keras.optimizers.SGD(0.1)
model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
model.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse")
model.save(os.path.join(os.path.dirname(path), "model.keras"))


def fit(callback):
    model.fit(x, x[:, :1], verbose=0, callbacks=[callback])
"""
NEED_A_JOB = """
add_process_set([0]) | remove_process_set(ProcessSet([0])) | mesh(data=1) | mpi_threads_supported()
allgather(x) | allreduce(x) | barrier() | broadcast(x, 0) | reducescatter(x) | shard_equally(x)
allgather_object(1) | broadcast_object(1) | average_metrics({"loss": 1.0})
broadcast_global_variables(0, model) | broadcast_model(model, 0) | broadcast_variables([variable], 0)
DistributedOptimizer(optimizer) | PartialDistributedOptimizer(optimizer)
start_timeline(path) | stop_timeline()
rank() | size() | local_rank() | local_size() | cross_rank() | cross_size() | is_homogeneous()
fit(callbacks.BroadcastGlobalVariablesCallback(0)) | fit(callbacks.MetricAverageCallback())
"""
WORKS = """
is_initialized() | shutdown() | ProcessSet([0])
ccl_built() | cuda_built() | ddl_built() | gloo_built() | gloo_enabled() | mpi_built() | mpi_enabled() | nccl_built()
rocm_built()
"""
ELSEWHERE = {"Adasum", "Average", "Max", "Min", "Product", "ReduceOp", "Sum", "Compression", "__version__"}
ELSEWHERE |= {"Mesh", "callbacks", "global_process_set", "init", "load_model"}


def test_every_public_name_is_in_a_table():
    check_tables(hvd, (NEED_A_JOB, WORKS), ELSEWHERE)


@pytest.mark.parametrize("when", WHEN)
def test_calls(when):
    check(hvd, when, SETUP, NEED_A_JOB, WORKS)
