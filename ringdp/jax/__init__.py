"""ringdp for JAX: `import ringdp.jax as hvd`, on the CPU.

Importing touches no MPI; `init()` does. Outside of `jit` an operation exchanges arrays at once; inside it becomes a
part of the compiled program (docs/jax.md).
"""

from ringdp.constants import Adasum, Average, Max, Min, Product, ReduceOp, Sum
from ringdp.errors import (
    ChecksumError,
    DeadlineError,
    DuplicateNameError,
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
from ringdp.jax.compression import Compression
from ringdp.jax.exchange import allreduce_gradients, value_and_grad
from ringdp.jax.failures import own_error, own_errors
from ringdp.jax.grouped import grouped_allgather, grouped_allreduce, grouped_reducescatter
from ringdp.jax.ops import (
    allgather,
    allreduce,
    allreduce_,
    alltoall,
    barrier,
    broadcast,
    broadcast_,
    reducescatter,
)
from ringdp.jax.optimizer import distributed
from ringdp.jax.state import allgather_object, broadcast_object, broadcast_parameters
from ringdp.joined import join
from ringdp.lateness import Stragglers, stragglers
from ringdp.meshes import Mesh, mesh
from ringdp.metrics import average_metrics
from ringdp.preempt import on_preempt, request_stop, should_stop, stop
from ringdp.process_sets import ProcessSet, add_process_set, global_process_set, remove_process_set
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
    "DuplicateNameError",
    "HorovodInternalError",
    "HostsUpdatedInterrupt",
    "InitError",
    "Max",
    "Mesh",
    "Min",
    "MismatchError",
    "NotInitializedError",
    "PeerError",
    "ProcessSet",
    "Product",
    "ReduceOp",
    "RingdpError",
    "Stragglers",
    "Sum",
    "TransportError",
    "UsageError",
    "__version__",
    "add_process_set",
    "allgather",
    "allgather_object",
    "allreduce",
    "allreduce_",
    "allreduce_gradients",
    "alltoall",
    "average_metrics",
    "barrier",
    "broadcast",
    "broadcast_",
    "broadcast_object",
    "broadcast_parameters",
    "cross_rank",
    "cross_size",
    "distributed",
    "global_process_set",
    "grouped_allgather",
    "grouped_allreduce",
    "grouped_reducescatter",
    "init",
    "is_homogeneous",
    "is_initialized",
    "join",
    "local_rank",
    "local_size",
    "mesh",
    "on_preempt",
    "own_error",
    "own_errors",
    "patience",
    "rank",
    "reducescatter",
    "remove_process_set",
    "request_stop",
    "should_stop",
    "shutdown",
    "size",
    "start_timeline",
    "stop",
    "stop_timeline",
    "stragglers",
    "value_and_grad",
]
