"""The collective operations on several CuPy arrays in one call: all are exchanged, or none is."""

from ringdp.cupy.ops import operations
from ringdp.grouped import GroupedOperations

groups = GroupedOperations(operations)

grouped_allreduce = groups.grouped_allreduce
grouped_allreduce_ = groups.grouped_allreduce_
grouped_allreduce_async = groups.grouped_allreduce_async
grouped_allreduce_async_ = groups.grouped_allreduce_async_
grouped_allgather = groups.grouped_allgather
grouped_allgather_async = groups.grouped_allgather_async
grouped_reducescatter = groups.grouped_reducescatter
grouped_reducescatter_async = groups.grouped_reducescatter_async
