"""ringdp trains one model on many processes at once: data parallelism for MPI clusters.

Importing touches no MPI; `init()` does. The collective operations here take NumPy arrays; `ringdp.torch` has the same
ones for PyTorch tensors, and the optimizer. Start: `ringdp run -n 4 script.py`, mpirun or srun.

Names are resolved when they are first used (PEP 562), so that the launcher starts without NumPy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ringdp.constants import Adasum, Average, Max, Min, Product, ReduceOp, Sum
    from ringdp.errors import (
        ChecksumError,
        DeadlineError,
        DuplicateNameError,
        GpuError,
        HorovodInternalError,
        HostsUpdatedInterrupt,
        InitError,
        InjectedError,
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
    from ringdp.mapreduce import map_reduce, shard
    from ringdp.meshes import Mesh, mesh
    from ringdp.metrics import average_metrics
    from ringdp.numpy.grouped import (
        grouped_allgather,
        grouped_allgather_async,
        grouped_allreduce,
        grouped_allreduce_,
        grouped_allreduce_async,
        grouped_allreduce_async_,
        grouped_reducescatter,
        grouped_reducescatter_async,
    )
    from ringdp.numpy.memory import empty
    from ringdp.numpy.ops import (
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
    from ringdp.ops import Handle
    from ringdp.preempt import on_preempt, request_stop, should_stop, stop
    from ringdp.process_sets import ProcessSet, add_process_set, global_process_set, remove_process_set
    from ringdp.state import allgather_object, broadcast_object
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
    "DeadlineError",
    "DuplicateNameError",
    "GpuError",
    "Handle",
    "HorovodInternalError",
    "HostsUpdatedInterrupt",
    "InitError",
    "InjectedError",
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
    "Stragglers",
    "Sum",
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
    "cross_rank",
    "cross_size",
    "empty",
    "global_process_set",
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
    "map_reduce",
    "mesh",
    "on_preempt",
    "patience",
    "poll",
    "rank",
    "reducescatter",
    "reducescatter_async",
    "remove_process_set",
    "request_stop",
    "shard",
    "should_stop",
    "shutdown",
    "size",
    "start_timeline",
    "stop",
    "stop_timeline",
    "stragglers",
    "synchronize",
]

# Where the names come from, the lightest first.
_MODULES = (
    "constants",
    "errors",
    "version",
    "world",
    "process_sets",
    "meshes",
    "ops",
    "numpy.ops",
    "numpy.grouped",
    "numpy.memory",
    "joined",
    "state",
    "metrics",
    "mapreduce",
    "lateness",
    "timeline",
    "preempt",
    "watch",
)


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in _MODULES:
            found = getattr(import_module(f"ringdp.{module}"), name, None)
            if found is not None:
                globals()[name] = found
                return found
    raise AttributeError(f"module 'ringdp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
