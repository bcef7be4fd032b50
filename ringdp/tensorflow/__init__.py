"""ringdp for TensorFlow 2: `import ringdp.tensorflow as hvd`.

Importing touches no MPI; `init()` does. All operations work eagerly and inside `tf.function`; not in functions that
XLA compiles (`jit_compile=True`), which cannot call Python. Tensors on a GPU go by way of host memory.
"""

from ringdp.built import (
    ccl_built,
    cuda_built,
    ddl_built,
    gloo_built,
    gloo_enabled,
    mpi_built,
    mpi_enabled,
    mpi_threads_supported,
    nccl_built,
    rocm_built,
)
from ringdp.constants import Adasum, Average, Max, Min, Product, ReduceOp, Sum
from ringdp.errors import (
    ChecksumError,
    DeadlineError,
    DuplicateNameError,
    GpuError,
    HorovodInternalError,
    HostsUpdatedInterrupt,
    InitError,
    MismatchError,
    NotInitializedError,
    PeerError,
    RingdpError,
    TransportError,
    UsageError,
)
from ringdp.joined import join
from ringdp.lateness import Stragglers, stragglers
from ringdp.metrics import average_metrics
from ringdp.preempt import on_preempt, request_stop, should_stop, stop
from ringdp.process_sets import ProcessSet, add_process_set, global_process_set, remove_process_set
from ringdp.tensorflow import elastic
from ringdp.tensorflow.compression import Compression
from ringdp.tensorflow.graphs import original_error
from ringdp.tensorflow.grouped import grouped_allgather, grouped_allreduce, grouped_reducescatter
from ringdp.tensorflow.ops import (
    allgather,
    allreduce,
    alltoall,
    barrier,
    broadcast,
    local_rank_op,
    local_size_op,
    process_set_included_op,
    rank_op,
    reducescatter,
    size_op,
)
from ringdp.tensorflow.optimizer import DistributedOptimizer
from ringdp.tensorflow.state import (
    allgather_object,
    broadcast_,
    broadcast_object,
    broadcast_object_fn,
    broadcast_variables,
)
from ringdp.tensorflow.sync_batch_norm import SyncBatchNormalization
from ringdp.tensorflow.tape import DistributedGradientTape, PartialDistributedGradientTape
from ringdp.timeline import start_timeline, stop_timeline
from ringdp.version import __version__
from ringdp.watch import patience
from ringdp.world import (
    cross_rank,
    cross_size,
    init,
    is_homogeneous,
    is_initialized,
    local_rank,
    local_size,
    rank,
    shutdown,
    size,
)

__all__ = [
    "Adasum",
    "Average",
    "ChecksumError",
    "Compression",
    "DeadlineError",
    "DistributedGradientTape",
    "DistributedOptimizer",
    "DuplicateNameError",
    "GpuError",
    "HorovodInternalError",
    "HostsUpdatedInterrupt",
    "InitError",
    "Max",
    "Min",
    "MismatchError",
    "NotInitializedError",
    "PartialDistributedGradientTape",
    "PeerError",
    "ProcessSet",
    "Product",
    "ReduceOp",
    "RingdpError",
    "Stragglers",
    "Sum",
    "SyncBatchNormalization",
    "TransportError",
    "UsageError",
    "__version__",
    "add_process_set",
    "allgather",
    "allgather_object",
    "allreduce",
    "alltoall",
    "average_metrics",
    "barrier",
    "broadcast",
    "broadcast_",
    "broadcast_object",
    "broadcast_object_fn",
    "broadcast_variables",
    "ccl_built",
    "cross_rank",
    "cross_size",
    "cuda_built",
    "ddl_built",
    "elastic",
    "global_process_set",
    "gloo_built",
    "gloo_enabled",
    "gpu_available",
    "grouped_allgather",
    "grouped_allreduce",
    "grouped_reducescatter",
    "init",
    "is_homogeneous",
    "is_initialized",
    "join",
    "local_rank",
    "local_rank_op",
    "local_size",
    "local_size_op",
    "mpi_built",
    "mpi_enabled",
    "mpi_threads_supported",
    "nccl_built",
    "on_preempt",
    "original_error",
    "patience",
    "process_set_included_op",
    "rank",
    "rank_op",
    "reducescatter",
    "remove_process_set",
    "request_stop",
    "rocm_built",
    "should_stop",
    "shutdown",
    "size",
    "size_op",
    "start_timeline",
    "stop",
    "stop_timeline",
    "stragglers",
]


def gpu_available(ext_base_name: str = "tensorflow", verbose: bool = False) -> bool:
    """True where TensorFlow has a GPU. (Horovod's arguments, which change nothing.)"""
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))
