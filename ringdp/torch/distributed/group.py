"""The process group: a method for each collective of torch.distributed.

torch calls these methods from Python, and from C++ (DistributedDataParallel, functional collectives) through its
trampolines. Where releases of torch have several names for one, all of them are here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ringdp import world
from ringdp.constants import Average, Sum
from ringdp.errors import UsageError
from ringdp.job import MpiJob
from ringdp.torch import device
from ringdp.torch.distributed import pieces
from ringdp.torch.distributed.futures import Number, Numbers
from ringdp.torch.distributed.messages import Message, Messages, MessageWork
from ringdp.torch.distributed.pieces import Piece
from ringdp.torch.distributed.sets import Places
from ringdp.torch.distributed.waiter import InOrder, Waiters
from ringdp.torch.distributed.work import Beside, Collective, Operation, Work
from ringdp.torch.ops import operations
from ringdp.torch.sparse import sparse_allreduce_async

NAME = "ringdp"
Tensors = Sequence[torch.Tensor]


def create(options: Any, backend_options: Any) -> ProcessGroup:
    """What torch.distributed calls on each member of a new group. Initialises ringdp if nobody has.

    Raises:
        UsageError: torch's ranks are not ringdp's.
        InitError, DeadlineError: see `ringdp.init` and `Places.of`.
    """
    if not world.is_initialized():
        world.init()
    here = world.current()
    ranks = list(options.global_ranks_in_group) or list(range(options.group_size))
    if ranks != sorted(ranks):
        raise UsageError(f"new_group({ranks}): a group of ringdp has its ranks in order (sort_ranks=True)")
    if options.group_rank != _place_of(here.place.rank, ranks) or ranks[-1] >= here.place.size:
        raise UsageError(
            f"to torch.distributed this is rank {options.group_rank} of {ranks}, to ringdp it is rank "
            f"{here.place.rank} of {here.place.size}: leave rank= and world_size= to ringdp, or give the same (and "
            "start the job by mpirun or srun, not by torchrun)"
        )
    return ProcessGroup(options.store, ranks, options.group_id, options.timeout)


def _place_of(rank: int, ranks: Sequence[int]) -> int:
    return ranks.index(rank) if rank in ranks else -1


class ProcessGroup(dist.ProcessGroup):
    """A group of ranks; made by `init_process_group("ringdp")` and `new_group`, not by itself.

    Args:
        store: of the group.
        ranks: of the job, in order.
        name: torch's.
        timeout: until when an operation must have ended.
    """

    def __init__(self, store: Any, ranks: Sequence[int], name: str, timeout: timedelta) -> None:
        here = world.current()
        super().__init__(_place_of(here.place.rank, ranks), len(ranks))
        # (Not the world itself: torch's caches may keep the group until the process has ended.)
        self._rank, self._store = here.place.rank, store
        self._timeout = timeout.total_seconds()
        place = here.service(Places).of(ranks, store, min(self._timeout, here.engine.timeout), name)
        self._ranks, self._set = place.ranks, place.process_set
        self._label = f"torch.distributed group {name} ({place.groups})"
        self._numbers = Numbers(self._label)
        self._waiter: InOrder | None = None
        self._lock = threading.Lock()
        self._besides: dict[int, Beside] = {}  # by GPU: streams of its own
        self._name = self._description = name
        self._messages: Messages | None = None
        if isinstance(here.job, MpiJob):
            self._messages = Messages(here.job.MPI, place.comm, place.groups)

    # --- reductions -------------------------------------------------------------------------------------------

    def allreduce(self, tensors: Tensors, opts: Any = None) -> Work:
        """Combine the tensors of all ranks, in place; every rank gets the same bits."""
        opts = opts or dist.AllreduceOptions()
        if any(tensor.is_sparse for tensor in tensors):
            return self._sparse_allreduce(tensors, opts)
        found = [pieces.reduce_into(tensor, tensor, opts.reduceOp) for tensor in tensors]
        return self._start("all_reduce", found, tensors, opts)

    allreduce_coalesced = allreduce

    def reduce(self, tensors: Tensors, opts: Any) -> Work:
        """As `allreduce`, but only the root gets the result."""
        mine = opts.rootRank == self.rank()
        found = [pieces.reduce_into(tensor, tensor if mine else None, opts.reduceOp) for tensor in tensors]
        return self._start("reduce", found, tensors, opts)

    def reduce_scatter(self, outputs: Tensors, inputs: Sequence[Tensors], opts: Any = None) -> Work:
        """Combine; rank i gets the i-th tensor."""
        opts = opts or dist.ReduceScatterOptions()
        found = [
            pieces.reduce_scatter(sources, output, opts.reduceOp, self._set)
            for output, sources in zip(outputs, inputs, strict=True)
        ]
        return self._start("reduce_scatter", found, outputs, opts)

    def reduce_scatter_single(self, output: torch.Tensor, input: torch.Tensor, opts: Any = None) -> Work:
        """Combine; rank i gets the i-th of equal parts."""
        return self.reduce_scatter([output], [[input]], opts)

    def reduce_scatter_single_coalesced(self, outputs: Tensors, inputs: Tensors, opts: Any = None) -> Work:
        """As `reduce_scatter_single`, of several."""
        return self.reduce_scatter(outputs, [[source] for source in inputs], opts)

    _reduce_scatter_base = reduce_scatter_single
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def _sparse_allreduce(self, tensors: Tensors, opts: Any) -> Work:
        ops = {dist.ReduceOp.SUM: Sum, dist.ReduceOp.AVG: Average}
        op = ops.get(getattr(opts.reduceOp, "op", opts.reduceOp))
        if op is None or len(tensors) != 1:
            raise UsageError("all_reduce of a sparse tensor: one at a time, by SUM or AVG")
        (tensor,) = tensors
        number = self._numbers.take()
        started = sparse_allreduce_async(tensor, self._name_of(number), op, self._set)

        def after(_: Any) -> None:
            with torch.no_grad():
                tensor.copy_(
                    started.wait()
                )  # (a detached sparse tensor would not share what is replaced here)

        gpu = device.gpu_of(tensor) if device.is_on_gpu(tensor) else None
        collective = Collective(started.handles, [lambda _: None, after], list(tensors), gpu)
        return self._work("all_reduce", number, collective, opts)

    # --- movements --------------------------------------------------------------------------------------------

    def broadcast(self, tensors: Tensors, opts: Any) -> Work:
        """Give every rank the root's tensors."""
        root = self._ranks[opts.rootRank]
        found = [pieces.broadcast(tensor, root, self._set) for tensor in tensors]
        return self._start("broadcast", found, tensors, opts)

    def allgather(self, outputs: Sequence[Tensors], inputs: Tensors, opts: Any = None) -> Work:
        """Give every rank the tensors of all, which may differ in size."""
        found = [
            pieces.gather_into(source, targets, self.rank())
            for source, targets in zip(inputs, outputs, strict=True)
        ]
        return self._start("all_gather", found, [t for targets in outputs for t in targets], opts)

    def allgather_coalesced(self, outputs: Sequence[Tensors], inputs: Tensors, opts: Any = None) -> Work:
        """As `allgather`; `outputs[r][i]` is for the i-th input of rank r."""
        return self.allgather(list(zip(*outputs, strict=True)), inputs, opts)

    def all_gather_single(self, output: torch.Tensor, input: torch.Tensor, opts: Any = None) -> Work:
        """Give every rank the tensors of all, one after the other."""
        return self.allgather([[output]], [input], opts)

    def all_gather_single_coalesced(self, outputs: Tensors, inputs: Tensors, opts: Any = None) -> Work:
        """As `all_gather_single`, of several."""
        return self.allgather([[output] for output in outputs], inputs, opts)

    _allgather_base = all_gather_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced

    def gather(self, outputs: Sequence[Tensors], inputs: Tensors, opts: Any) -> Work:
        """Give the root the tensors of all."""
        found, (source,) = list(outputs[0]) if outputs else [], inputs
        splits = [0] * self.size()
        splits[opts.rootRank] = pieces.units(source)
        piece = pieces.exchange([source], splits, found, None, self._set, "gather")
        return self._start("gather", [piece], found, opts)

    def scatter(self, outputs: Tensors, inputs: Sequence[Tensors], opts: Any) -> Work:
        """Give rank i the i-th tensor of the root."""
        (output,), sources = outputs, list(inputs[0]) if inputs else []
        splits = [pieces.units(source) for source in sources] or [0] * self.size()
        sources = sources or [output.new_empty(0)]
        piece = pieces.exchange(sources, splits, [output], None, self._set, "scatter")
        return self._start("scatter", [piece], outputs, opts)

    def alltoall(self, outputs: Tensors, inputs: Tensors, opts: Any = None) -> Work:
        """Send the i-th tensor to rank i, and get one from each."""
        splits = [pieces.units(source) for source in inputs]
        piece = pieces.exchange(inputs, splits, outputs, None, self._set, "all_to_all")
        return self._start("all_to_all", [piece], outputs, opts)

    def all_to_all_single(
        self,
        output: torch.Tensor,
        input: torch.Tensor,
        output_split_sizes: Sequence[int] | None = None,
        input_split_sizes: Sequence[int] | None = None,
        opts: Any = None,
    ) -> Work:
        """Send the i-th part to rank i, and get one from each; equal parts, or so many rows each."""
        splits = self._elements(input, input_split_sizes, "input")
        expected = self._elements(output, output_split_sizes, "output")
        piece = pieces.exchange([input], splits, [output], expected, self._set, "all_to_all_single")
        return self._start("all_to_all_single", [piece], [output], opts)

    alltoall_base = all_to_all_single

    def _elements(self, tensor: torch.Tensor, rows: Sequence[int] | None, which: str) -> list[int]:
        total, length = pieces.units(tensor), tensor.shape[0] if tensor.dim() else 1
        if not rows:
            if length % self.size():
                raise UsageError(
                    f"all_to_all_single: the {which}'s {length} rows do not divide evenly among {self.size()} "
                    f"ranks: give {which}_split_sizes"
                )
            return [total // self.size()] * self.size()
        if sum(rows) != length or len(rows) != self.size():
            raise UsageError(
                f"all_to_all_single: {which}_split_sizes {list(rows)} are not the {length} rows of the {which} for "
                f"{self.size()} ranks"
            )
        return [n * (total // length if length else 0) for n in rows]

    def barrier(self, opts: Any = None) -> Work:
        """Ended when all ranks have come."""
        token = torch.zeros(1, dtype=torch.uint8)
        return self._start("barrier", [pieces.reduce_into(token, token, dist.ReduceOp.MAX)], [], opts)

    # --- messages ---------------------------------------------------------------------------------------------

    def send(self, tensors: Tensors, dst: int, tag: int = 0) -> Work:
        """Send to a rank of the group."""
        (tensor,) = tensors
        return self._message(f"send to rank {dst}", lambda by: by.send(tensor, dst, tag))

    def recv(self, tensors: Tensors, src: int, tag: int = 0) -> Work:
        """Receive from a rank of the group."""
        (tensor,) = tensors
        return self._message(f"recv from rank {src}", lambda by: by.receive(tensor, src, tag))

    def recv_anysource(self, tensors: Tensors, tag: int = 0) -> Work:
        """Receive from whoever sends first; `_source_rank()` of the work says who."""
        (tensor,) = tensors
        return self._message("recv from any rank", lambda by: by.receive(tensor, None, tag))

    def _message(self, call: str, start: Callable[[Messages], Message]) -> Work:
        if self._messages is None:
            raise UsageError(f"{call}: only a job over MPI has messages from rank to rank")
        message = start(self._messages)
        waiters = world.current().service(Waiters)
        beside = None if message.gpu is None else self._beside(message.gpu)
        work = MessageWork(message, self._describes(call), self._timeout, beside)
        if not message.poll():
            waiters.polling().add(work)
        return work

    # --- how a call reaches the core --------------------------------------------------------------------------

    def _start(self, call: str, found: Sequence[Piece], results: Tensors, opts: Any) -> Work:
        number, requests = self._numbers.take(), [piece.request for piece in found]
        name = self._name_of(number)
        if len(requests) == 1:
            handles = [operations.submit(requests[0], name, self._set)]
        else:
            handles = list(operations.submit_group(requests, name, self._set).handles)
        places = [request.place for request in requests if request.place is not None]
        gpu = places[0].gpu if places else None
        collective = Collective(handles, [piece.after for piece in found], list(results), gpu)
        return self._work(call, number, collective, opts)

    def _name_of(self, number: Number) -> str:
        # What is called is not part of it: so ranks that call different things see that they do.
        of_another = "" if number.group == self._label else f" of {number.group}"
        return f"{self._label}, call {number}{of_another}"

    def _work(self, call: str, number: Number, operation: Operation, opts: Any) -> Work:
        given = opts.timeout.total_seconds() if opts is not None else 0.0
        timeout = given if given > 0 else self._timeout
        return Work(operation, number, self._describes(call), timeout, self._attend)

    def _describes(self, call: str) -> Callable[[], str]:
        return lambda: f"rank {self._rank}: {call} in {self._label} of the ranks {list(self._ranks)}"

    def _attend(self, work: Work) -> None:
        with self._lock:
            if self._waiter is None:
                self._waiter = world.current().service(Waiters).in_order(self._label)
        if work.gpu is not None:
            work.beside = self._beside(work.gpu)
        self._waiter.add(work)

    def _beside(self, gpu: int) -> Beside:
        with self._lock:
            if gpu not in self._besides:
                self._besides[gpu] = device.stream_beside(gpu)
            return self._besides[gpu]

    # --- about the group --------------------------------------------------------------------------------------

    def getBackendName(self) -> str:
        """ "ringdp"."""
        return NAME

    def getGroupName(self) -> str:
        """torch's name of the group."""
        return self._name

    def setGroupName(self, name: str) -> None:
        """Is called by torch."""
        self._name = name

    def getGroupDesc(self) -> str:
        """torch's description of the group."""
        return self._description

    def setGroupDesc(self, description: str) -> None:
        """Is called by torch."""
        self._description = description

    _set_group_name, _set_group_desc = setGroupName, setGroupDesc
    group_name = property(getGroupName)
    group_desc = property(getGroupDesc)

    def get_group_store(self) -> Any:
        """The store that it was made with."""
        return self._store

    def set_timeout(self, timeout: timedelta) -> None:
        """Of the operations that are called from now on."""
        self._timeout = timeout.total_seconds()

    def shutdown(self) -> None:
        """The group is destroyed. Ranks may come to this at any time: what is under way goes on."""
        if self._waiter is not None:
            self._waiter.close()

    abort = shutdown

    def __repr__(self) -> str:
        return f"<ringdp process group: {self._label}, ranks {list(self._ranks)}>"
