"""Every public call of ringdp.tensorflow before `init()` and after `shutdown()`: a clear error, or it needs no job."""

import pytest
from frameworks.not_initialized import WHEN, check, check_tables

import ringdp.tensorflow as hvd

SETUP = """
import os, tempfile
import tensorflow as tf
import ringdp.tensorflow

path = os.path.join(tempfile.mkdtemp(), "timeline")
x, variable = tf.ones([2, 2]), tf.Variable([1.0])
tape = tf.GradientTape(persistent=True)
with tape:
    loss = variable * 2.0
compiled = tf.function(lambda: ringdp.tensorflow.allreduce(x))
"""
NEED_A_JOB = """
add_process_set([0]) | remove_process_set(ProcessSet([0])) | mpi_threads_supported()
allgather(x) | allreduce(x) | alltoall(x) | barrier() | broadcast(x, 0) | broadcast_([variable], 0) | reducescatter(x)
grouped_allgather([x]) | grouped_allreduce([x]) | grouped_reducescatter([x]) | broadcast_variables([variable], 0)
allgather_object(1) | broadcast_object(1) | broadcast_object_fn()(1) | average_metrics({"loss": 1.0}) | compiled()
DistributedGradientTape(tape).gradient(loss, variable) | PartialDistributedGradientTape(tape).gradient(loss, variable)
SyncBatchNormalization()(x, training=True)
join() | should_stop() | stop() | stragglers() | start_timeline(path) | stop_timeline()
rank() | size() | local_rank() | local_size() | cross_rank() | cross_size() | is_homogeneous()
rank_op() | size_op() | local_rank_op() | local_size_op() | process_set_included_op()
"""
WORKS = """
is_initialized() | shutdown() | on_preempt(print) | request_stop() | ProcessSet([0])
ccl_built() | cuda_built() | ddl_built() | gloo_built() | gloo_enabled() | mpi_built() | mpi_enabled() | nccl_built()
rocm_built() | gpu_available() | original_error(ValueError()) | SyncBatchNormalization()
"""
ELSEWHERE = {"Adasum", "Average", "Max", "Min", "Product", "ReduceOp", "Sum", "Compression", "__version__"}
ELSEWHERE |= {"DistributedOptimizer", "Stragglers", "elastic", "global_process_set", "init", "patience"}


def test_every_public_name_is_in_a_table():
    check_tables(hvd, (NEED_A_JOB, WORKS), ELSEWHERE)


@pytest.mark.parametrize("when", WHEN)
def test_calls(when):
    check(hvd, when, SETUP, NEED_A_JOB, WORKS)
