"""ringdp for Keras 3, on each of its backends: `import ringdp.keras as hvd`.

Which backend that is says Keras (KERAS_BACKEND); nothing here imports another one. Importing touches no MPI; `init()`
does. `ringdp.tensorflow.keras` is another name for this package.
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
    HorovodInternalError,
    InitError,
    MismatchError,
    NotInitializedError,
    PeerError,
    RingdpError,
    TransportError,
    UsageError,
)
from ringdp.keras import callbacks
from ringdp.keras.compression import Compression
from ringdp.keras.data import shard_equally
from ringdp.keras.ops import allgather, allreduce, broadcast, reducescatter
from ringdp.keras.optimizer import DistributedOptimizer, PartialDistributedOptimizer
from ringdp.keras.saving import load_model
from ringdp.keras.state import (
    allgather_object,
    broadcast_global_variables,
    broadcast_model,
    broadcast_object,
    broadcast_variables,
)
from ringdp.meshes import Mesh, mesh
from ringdp.metrics import average_metrics
from ringdp.numpy.ops import barrier
from ringdp.process_sets import ProcessSet, add_process_set, global_process_set, remove_process_set
from ringdp.timeline import start_timeline, stop_timeline
from ringdp.version import __version__
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
    "DistributedOptimizer",
    "DuplicateNameError",
    "HorovodInternalError",
    "InitError",
    "Max",
    "Mesh",
    "Min",
    "MismatchError",
    "NotInitializedError",
    "PartialDistributedOptimizer",
    "PeerError",
    "ProcessSet",
    "Product",
    "ReduceOp",
    "RingdpError",
    "Sum",
    "TransportError",
    "UsageError",
    "__version__",
    "add_process_set",
    "allgather",
    "allgather_object",
    "allreduce",
    "average_metrics",
    "barrier",
    "broadcast",
    "broadcast_global_variables",
    "broadcast_model",
    "broadcast_object",
    "broadcast_variables",
    "callbacks",
    "ccl_built",
    "cross_rank",
    "cross_size",
    "cuda_built",
    "ddl_built",
    "global_process_set",
    "gloo_built",
    "gloo_enabled",
    "init",
    "is_homogeneous",
    "is_initialized",
    "load_model",
    "local_rank",
    "local_size",
    "mesh",
    "mpi_built",
    "mpi_enabled",
    "mpi_threads_supported",
    "nccl_built",
    "rank",
    "reducescatter",
    "remove_process_set",
    "rocm_built",
    "shard_equally",
    "shutdown",
    "size",
    "start_timeline",
    "stop_timeline",
]
