"""The collective operations, once for all frameworks: what differs between frameworks is an `Adapter`.

Path of a call: a `Request` is made of the tensor (ringdp/requests.py) → the core's `submit` (ringdp._core, csrc/engine)
→ `Handle` → the request's `finish` gives the result. Names: operations of the same name meet; an unnamed call meets the
other ranks' unnamed call of the same number. Each process set has its own names, and its own numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from ringdp import world
from ringdp.constants import Average, OpKind, ReduceOp
from ringdp.process_sets import ProcessSet, global_process_set
from ringdp.requests import Adapter, Request, Requests, awaiting, reduce_op, usable

T = TypeVar("T")


class Handle(Generic[T]):
    """An operation in flight: `poll()`, `wait()`. Its tensors live until it is done, also if the handle does not."""

    __slots__ = ("_core", "_finish", "_result", "_stream", "_world")

    def __init__(
        self,
        core: Any,
        tensors: Any,
        finish: Callable[[Any], T],
        in_world: world.World,
        stream: Callable[[], int] | None = None,
    ) -> None:
        """`stream`: of tensors on a GPU: this thread's current one there."""
        self._core = core
        self._stream = stream
        in_world.hold(core, tensors)
        self._finish: Callable[[Any], T] | None = finish
        self._result: T | None = None
        self._world = in_world

    def poll(self) -> bool:
        """True once the operation has completed or failed. Does not block."""
        return bool(self._core.poll())

    def done_within(self, seconds: float, helping: bool = True) -> bool:
        """Sleep until the operation has completed or failed, or the seconds have passed; whether it is done.

        Args:
            seconds: at most.
            helping: this thread takes part in the engine's work, which is the faster way; else it only sleeps.
        """
        if helping:
            return bool(self._world.engine.wait(self._core, seconds))
        return bool(self._core.sleep(seconds))

    def wait(self) -> T:
        """Sleep until the operation is done; its result. May be called again.

        Of tensors on a GPU: until the GPU has been told all there is to do. What this thread's current stream does from
        then on comes after it; nothing waits for the GPU.

        Raises:
            MismatchError, PeerError, ChecksumError, DeadlineError, TransportError, GpuError: as the operation failed.
        """
        if self._finish is None:
            self._order()
            return self._result  # type: ignore[return-value]
        self._world.engine.wait_for_end(self._core)
        self._world.release(self._core)
        self._core.check()
        self._order()
        self._result = self._finish(self._core)
        self._finish = None
        return self._result

    def _order(self) -> None:
        if self._stream is not None:
            self._core.order(self._stream())


class GroupHandle:
    """The operations of a group in flight. They complete together, or none does."""

    __slots__ = ("handles",)

    def __init__(self, handles: Sequence[Handle[Any]]) -> None:
        self.handles = handles

    def poll(self) -> bool:
        """True once all have completed or failed. Does not block."""
        return all(handle.poll() for handle in self.handles)

    def wait(self) -> list[Any]:
        """Sleep until all are done; their results, in order. May be called again.

        Raises:
            MismatchError, PeerError, DeadlineError, TransportError: as the first of them that failed.
        """
        results, failures = [], []
        for handle in self.handles:
            try:
                results.append(handle.wait())
            except Exception as failure:
                failures.append(failure)
        if failures:
            raise failures[0]
        return results


class Operations(Generic[T]):
    """All collective operations for the tensors of one framework.

    Each comes blocking, `_async` (returns a `Handle`), and, where it makes sense, in place (`_`). Shapes, dtypes and
    options must be the same on all ranks, unless said otherwise; if they are not, every rank raises `MismatchError` and
    no output is touched. Memory in flight belongs to the operation until `wait()` or `synchronize()` returns.
    """

    def __init__(self, adapter: Adapter[T]) -> None:
        self._adapter = adapter
        self.requests = Requests(adapter)
        self._direct, self._note_write = adapter.direct, adapter.note_write

    # --- all-reduce ---

    def allreduce_async(
        self,
        tensor: Any,
        average: bool | None = None,
        name: str | None = None,
        op: ReduceOp | None = None,
        prescale_factor: float = 1.0,
        postscale_factor: float = 1.0,
        process_set: ProcessSet = global_process_set,
        *,
        out: Any = None,
    ) -> Handle[T]:
        """As `allreduce`, returning a handle at once."""
        scale = prescale_factor, postscale_factor
        request = self.requests.allreduce(tensor, reduce_op(op, average), scale, out)
        return self.submit(request, name, process_set)

    def allreduce(
        self,
        tensor: Any,
        average: bool | None = None,
        name: str | None = None,
        op: ReduceOp | None = None,
        prescale_factor: float = 1.0,
        postscale_factor: float = 1.0,
        process_set: ProcessSet = global_process_set,
        *,
        out: Any = None,
    ) -> T:
        """Combine the tensors of all ranks element by element; every rank gets the same bits.

        Args:
            tensor: any shape, the same on all ranks.
            average: older form of `op`: True is Average, False is Sum.
            name: operations of the same name meet; default: by the order of unnamed calls.
            op: Average (default), Sum, Min, Max or Product.
            prescale_factor: multiplies the input first.
            postscale_factor: multiplies the result.
            process_set: the ranks that take part.
            out: a tensor of the same shape and dtype for the result, of any layout; it may be `tensor`, or overlap it.

        Returns:
            A new tensor of the same shape and dtype, or `out`.

        Raises:
            MismatchError: shape, dtype, op or factors differ between ranks.
            UsageError: `out` has another shape or dtype; TypeError: it cannot be written. Nothing is exchanged then.
            DuplicateNameError, DeadlineError, PeerError, TransportError, NotInitializedError.

        Algorithms: docs/architecture.md; csrc/collectives names the source of each.
        """
        if awaiting.on:
            how = prescale_factor, postscale_factor, process_set
            return self.allreduce_async(tensor, average, name, op, *how, out=out).wait()
        here = world.current()
        chosen = op if average is None and type(op) is ReduceOp else reduce_op(op, average)
        if out is None and type(tensor) in self._direct:
            output = self._adapter.empty_like(tensor)
            if here.engine.allreduce(
                name,
                usable(process_set),
                tensor,
                output,
                chosen,
                prescale_factor,
                postscale_factor,
                here,
            ):
                return output
        source = self._adapter.source(tensor)
        output = self._adapter.empty_like(source) if out is None else self._into(out, source)
        scale = prescale_factor, postscale_factor
        self._allreduce(here, source, output, name, chosen, scale, process_set)
        if out is None:
            return output
        self._adapter.written(out, output)
        return out  # type: ignore[no-any-return]

    def allreduce_async_(
        self,
        tensor: Any,
        average: bool | None = None,
        name: str | None = None,
        op: ReduceOp | None = None,
        prescale_factor: float = 1.0,
        postscale_factor: float = 1.0,
        process_set: ProcessSet = global_process_set,
    ) -> Handle[Any]:
        """As `allreduce_`, returning a handle at once; the tensor holds the result when the handle was waited for."""
        request = self.requests.allreduce_(
            tensor, reduce_op(op, average), (prescale_factor, postscale_factor)
        )
        return self.submit(request, name, process_set)

    def allreduce_(
        self,
        tensor: Any,
        average: bool | None = None,
        name: str | None = None,
        op: ReduceOp | None = None,
        prescale_factor: float = 1.0,
        postscale_factor: float = 1.0,
        process_set: ProcessSet = global_process_set,
    ) -> Any:
        """As `allreduce`, in place: writes the result into `tensor` and returns it."""
        if awaiting.on:
            how = prescale_factor, postscale_factor, process_set
            return self.allreduce_async_(tensor, average, name, op, *how).wait()
        here = world.current()
        chosen = op if average is None and type(op) is ReduceOp else reduce_op(op, average)
        if type(tensor) in self._direct and here.engine.allreduce(
            name, usable(process_set), tensor, tensor, chosen, prescale_factor, postscale_factor, here
        ):
            if self._note_write is not None:
                self._note_write(tensor)
            return tensor
        target = self._adapter.target(tensor)
        scale = prescale_factor, postscale_factor
        self._allreduce(here, target, target, name, chosen, scale, process_set)
        self._adapter.written(tensor, target)
        return tensor

    def allreduce_through_async(
        self,
        wire: T,
        tensor: Any,
        average: bool | None = None,
        name: str | None = None,
        op: ReduceOp | None = None,
        prescale_factor: float = 1.0,
        postscale_factor: float = 1.0,
        process_set: ProcessSet = global_process_set,
    ) -> Handle[T]:
        """As `allreduce_async`, but the tensor travels as `wire`: it is cast to its dtype, reduced, scaled, and cast
        back, by the core while other parts are under way. The bits are those of these steps on the whole tensor.

        Args:
            wire: of 16-bit floats, the shape of `tensor`, dense; anything may be in it.
            tensor: float32 or float64.

        Raises:
            UsageError: other dtypes; or this operation is not cast under way (`engine.casts_under_way`).
        """
        scale = prescale_factor, postscale_factor
        request = self.requests.allreduce_through(wire, tensor, reduce_op(op, average), scale)
        return self.submit(request, name, process_set)

    def _into(self, out: Any, source: T) -> T:
        return self.requests.into(out, source, in_place=True)

    def _allreduce(
        self,
        here: world.World,
        source: T,
        output: T,
        name: str | None,
        op: ReduceOp,
        scale: tuple[float, float],
        process_set: ProcessSet,
    ) -> None:
        """The blocking form: the caller's own thread does the work, see csrc/engine/drive.cc."""
        if self._adapter.on_gpu(source) is not None:
            request = Request(OpKind.allreduce, source, output, lambda _: output, op, scale)
            self.submit(request, name, process_set).wait()
            return
        address, dtype, shape = self._adapter.describe(source)
        target = address if output is source else self._adapter.describe(output)[0]
        here.engine.allreduce_at(
            name, usable(process_set), address, target, dtype, shape, op, *scale, here, source, output
        )

    # --- all-gather ---

    def allgather_async(
        self,
        tensor: Any,
        name: str | None = None,
        process_set: ProcessSet = global_process_set,
        *,
        out: Any = None,
    ) -> Handle[T]:
        """As `allgather`, returning a handle at once."""
        return self.submit(self.requests.allgather(tensor, out), name, process_set)

    def allgather(
        self,
        tensor: Any,
        name: str | None = None,
        process_set: ProcessSet = global_process_set,
        *,
        out: Any = None,
    ) -> T:
        """Concatenate the tensors of all ranks along the first dimension, in rank order.

        Args:
            tensor: at least one dimension; the first may differ between ranks, the others not.
            name, process_set: see `allreduce`.
            out: for the result, with as many rows as come.

        Returns:
            A new tensor, shape (sum of the first dimensions, …), the same on all ranks; or `out`.

        Raises:
            UsageError: other numbers of rows have come than `out` has, which was not written. On this rank alone.
        """
        return self.allgather_async(tensor, name, process_set, out=out).wait()

    # --- broadcast ---

    def broadcast_async(
        self,
        tensor: Any,
        root_rank: int,
        name: str | None = None,
        process_set: ProcessSet = global_process_set,
        *,
        out: Any = None,
    ) -> Handle[T]:
        """As `broadcast`, returning a handle at once."""
        return self.submit(self.requests.broadcast(tensor, root_rank, process_set, out), name, process_set)

    def broadcast(
        self,
        tensor: Any,
        root_rank: int,
        name: str | None = None,
        process_set: ProcessSet = global_process_set,
        *,
        out: Any = None,
    ) -> T:
        """Give every rank the tensor of `root_rank`, as a new tensor or in `out`, on the root too.

        Shapes and dtypes must agree on all ranks.
        """
        return self.broadcast_async(tensor, root_rank, name, process_set, out=out).wait()

    def broadcast_async_(
        self,
        tensor: Any,
        root_rank: int,
        name: str | None = None,
        process_set: ProcessSet = global_process_set,
    ) -> Handle[Any]:
        """As `broadcast_`, returning a handle at once."""
        return self.submit(self.requests.broadcast_(tensor, root_rank, process_set), name, process_set)

    def broadcast_(
        self,
        tensor: Any,
        root_rank: int,
        name: str | None = None,
        process_set: ProcessSet = global_process_set,
    ) -> Any:
        """As `broadcast`, in place: writes the tensor of `root_rank` into `tensor` and returns it."""
        return self.broadcast_async_(tensor, root_rank, name, process_set).wait()

    # --- all-to-all ---

    def alltoall_async(
        self,
        tensor: Any,
        splits: Any = None,
        name: str | None = None,
        process_set: ProcessSet = global_process_set,
        *,
        out: Any = None,
    ) -> Handle[Any]:
        """As `alltoall`, returning a handle at once."""
        return self.submit(self.requests.alltoall(tensor, splits, process_set, out), name, process_set)

    def alltoall(
        self,
        tensor: Any,
        splits: Any = None,
        name: str | None = None,
        process_set: ProcessSet = global_process_set,
        *,
        out: Any = None,
    ) -> Any:
        """Send part i of `tensor` (along the first dimension) to rank i, and get one part from every rank.

        Args:
            tensor: at least one dimension; the first may differ between ranks.
            splits: rows for each rank, adding up to the first dimension; default: equal parts.
            name, process_set: see `allreduce`.
            out: for the received parts: see `allgather`.

        Returns:
            The received parts in rank order, concatenated; with `splits` a pair of that and the rows received from each
            rank (a one-dimensional integer tensor).
        """
        return self.alltoall_async(tensor, splits, name, process_set, out=out).wait()

    # --- reduce-scatter ---

    def reducescatter_async(
        self,
        tensor: Any,
        name: str | None = None,
        op: ReduceOp = Average,
        process_set: ProcessSet = global_process_set,
        prescale_factor: float = 1.0,
        postscale_factor: float = 1.0,
        *,
        out: Any = None,
    ) -> Handle[T]:
        """As `reducescatter`, returning a handle at once."""
        scale = prescale_factor, postscale_factor
        request = self.requests.reducescatter(tensor, reduce_op(op, None), scale, process_set, out)
        return self.submit(request, name, process_set)

    def reducescatter(
        self,
        tensor: Any,
        name: str | None = None,
        op: ReduceOp = Average,
        process_set: ProcessSet = global_process_set,
        prescale_factor: float = 1.0,
        postscale_factor: float = 1.0,
        *,
        out: Any = None,
    ) -> T:
        """Combine the tensors of all ranks, and give rank i the i-th part of the result (along the first dimension).

        The first dimension need not divide evenly: the first ranks get one row more.

        Returns:
            A new tensor, shape (this rank's rows, …), or `out`.
        """
        return self.reducescatter_async(
            tensor, name, op, process_set, prescale_factor, postscale_factor, out=out
        ).wait()

    # --- without tensors ---

    def barrier(self, process_set: ProcessSet = global_process_set) -> None:
        """Wait until all ranks have come here."""
        here = world.current()
        here.engine.barrier(usable(process_set), here)

    def poll(self, handle: Handle[Any]) -> bool:
        """True once the operation has completed or failed: `synchronize` will not block."""
        return handle.poll()

    def synchronize(self, handle: Handle[Any]) -> Any:
        """Wait for the operation and return its result."""
        return handle.wait()

    # --- how a call reaches the core ---

    def submit(self, request: Request[T], name: str | None, process_set: ProcessSet) -> Handle[Any]:
        """Start one operation."""
        here = world.current()
        core = here.engine.submit(request.submission(name or "", usable(process_set), self._adapter))
        return self._handle_of(core, request, here)

    def submit_group(
        self, requests: Sequence[Request[T]], name: str | None, process_set: ProcessSet, layout: str = ""
    ) -> GroupHandle:
        """Start several operations that complete together or not at all; `name.0`, `name.1`, … are their names.

        `layout`: lines that the ranks compare as well, and are told of where they differ.

        Raises:
            DuplicateNameError, UsageError: one of them cannot be; then none was started.
        """
        here = world.current()
        number = usable(process_set)
        cores = here.engine.submit_group(
            [
                request.submission(f"{name}.{i}" if name else "", number, self._adapter)
                for i, request in enumerate(requests)
            ],
            layout,
        )
        return GroupHandle(
            [self._handle_of(core, request, here) for core, request in zip(cores, requests, strict=True)]
        )

    def _handle_of(self, core: Any, request: Request[Any], here: world.World) -> Handle[Any]:
        stream = None if request.place is None else request.place.current_stream
        return Handle(core, request, request.finish, here, stream)
