"""ringdp for PyTorch: `import ringdp.torch as hvd`.

Importing touches no MPI; `init()` does. Tensors may be on the CPU, or on a GPU (docs/gpu.md). The import also makes
ringdp known to torch.distributed (`ringdp.torch.distributed`).
"""

import torch.distributed as _c10d

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
    MissingGradientError,
    NonFiniteError,
    NotInitializedError,
    PeerError,
    ReplicaError,
    RingdpError,
    TransportError,
    UsageError,
    VerificationError,
)
from ringdp.joined import join
from ringdp.lateness import Stragglers, stragglers
from ringdp.meshes import Mesh, mesh
from ringdp.metrics import average_metrics
from ringdp.ops import Handle
from ringdp.preempt import on_preempt, request_stop, should_stop, stop
from ringdp.process_sets import ProcessSet, add_process_set, global_process_set, remove_process_set
from ringdp.timeline import start_timeline, stop_timeline
from ringdp.torch import comm_hooks, data, elastic, parallel
from ringdp.torch.comm_hook import GradBucket
from ringdp.torch.compression import Compression
from ringdp.torch.device import use_local_device
from ringdp.torch.grouped import (
    grouped_allgather,
    grouped_allgather_async,
    grouped_allreduce,
    grouped_allreduce_,
    grouped_allreduce_async,
    grouped_allreduce_async_,
    grouped_reducescatter,
    grouped_reducescatter_async,
)
from ringdp.torch.memory import empty
from ringdp.torch.ops import (
    allgather,
    allgather_async,
    allreduce,
    allreduce_,
    allreduce_async,
    allreduce_async_,
    alltoall,
    alltoall_async,
    barrier,
    broadcast,
    broadcast_,
    broadcast_async,
    broadcast_async_,
    poll,
    reducescatter,
    reducescatter_async,
    synchronize,
)
from ringdp.torch.optimizer import DistributedOptimizer
from ringdp.torch.sparse import SparseHandle, sparse_allreduce_async
from ringdp.torch.state import (
    allgather_object,
    broadcast_object,
    broadcast_optimizer_state,
    broadcast_parameters,
)
from ringdp.torch.sync_batch_norm import SyncBatchNorm, convert_sync_batchnorm
from ringdp.torch.uneven import uneven
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

if _c10d.is_available():
    from ringdp.torch import distributed as distributed

__all__ = [
    "Adasum",
    "Average",
    "ChecksumError",
    "Compression",
    "DeadlineError",
    "DistributedOptimizer",
    "DuplicateNameError",
    "GpuError",
    "GradBucket",
    "Handle",
    "HorovodInternalError",
    "HostsUpdatedInterrupt",
    "InitError",
    "Max",
    "Mesh",
    "Min",
    "MismatchError",
    "MissingGradientError",
    "NonFiniteError",
    "NotInitializedError",
    "PeerError",
    "ReplicaError",
    "ProcessSet",
    "Product",
    "ReduceOp",
    "RingdpError",
    "SparseHandle",
    "Stragglers",
    "Sum",
    "SyncBatchNorm",
    "TransportError",
    "UsageError",
    "VerificationError",
    "__version__",
    "add_process_set",
    "allgather",
    "allgather_async",
    "allgather_object",
    "allreduce",
    "allreduce_",
    "allreduce_async",
    "allreduce_async_",
    "alltoall",
    "alltoall_async",
    "average_metrics",
    "barrier",
    "broadcast",
    "broadcast_",
    "broadcast_async",
    "broadcast_async_",
    "broadcast_object",
    "broadcast_optimizer_state",
    "broadcast_parameters",
    "ccl_built",
    "comm_hooks",
    "convert_sync_batchnorm",
    "cross_rank",
    "cross_size",
    "cuda_built",
    "ddl_built",
    "data",
    "elastic",
    "empty",
    "global_process_set",
    "gloo_built",
    "gloo_enabled",
    "grouped_allgather",
    "grouped_allgather_async",
    "grouped_allreduce",
    "grouped_allreduce_",
    "grouped_allreduce_async",
    "grouped_allreduce_async_",
    "grouped_reducescatter",
    "grouped_reducescatter_async",
    "init",
    "is_homogeneous",
    "is_initialized",
    "join",
    "local_rank",
    "local_size",
    "mesh",
    "mpi_built",
    "mpi_enabled",
    "mpi_threads_supported",
    "nccl_built",
    "on_preempt",
    "parallel",
    "patience",
    "poll",
    "rank",
    "reducescatter",
    "reducescatter_async",
    "remove_process_set",
    "request_stop",
    "rocm_built",
    "should_stop",
    "shutdown",
    "size",
    "sparse_allreduce_async",
    "start_timeline",
    "stop",
    "stop_timeline",
    "stragglers",
    "synchronize",
    "uneven",
    "use_local_device",
]
