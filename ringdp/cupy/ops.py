"""The collective operations on CuPy arrays, blocking, asynchronous and in place."""

from __future__ import annotations

from typing import Any

from ringdp.cupy.adapter import CupyAdapter
from ringdp.ops import Operations

operations: Operations[Any] = Operations(CupyAdapter())

allreduce = operations.allreduce
allreduce_ = operations.allreduce_
allreduce_async = operations.allreduce_async
allreduce_async_ = operations.allreduce_async_
allgather = operations.allgather
allgather_async = operations.allgather_async
broadcast = operations.broadcast
broadcast_ = operations.broadcast_
broadcast_async = operations.broadcast_async
broadcast_async_ = operations.broadcast_async_
alltoall = operations.alltoall
alltoall_async = operations.alltoall_async
reducescatter = operations.reducescatter
reducescatter_async = operations.reducescatter_async
barrier = operations.barrier
poll = operations.poll
synchronize = operations.synchronize
