"""The collective operations, once for all frameworks: what differs between frameworks is an `Adapter`.

Path of a call: adapter.source() gives a dense tensor → the core's `submit` (ringdp._core, csrc/engine) → `Handle` →
adapter gives the result back. Names: operations of the same name meet; an unnamed call meets the other ranks' unnamed
call of the same number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from ringdp import world
from ringdp.constants import OpKind, ReduceOp
from ringdp.errors import DeadlineError, UsageError
from ringdp.process_sets import ProcessSet, global_process_set

T = TypeVar("T")


class Adapter(Protocol[T]):
    """What the operations need to know of a framework's tensors. All tensors here are on the CPU."""

    # Tensors of exactly these types the core looks at by itself (csrc/bindings/tensor.h); those that it cannot use as
    # they lie there, and all others, take the longer way by `source`, `target` and `describe`.
    direct: tuple[type, ...]
    # To be called when the core has written such a tensor, if the framework wants to know.
    note_write: Callable[[Any], None] | None

    def source(self, tensor: Any) -> T:
        """`tensor` as a dense tensor in row-major order that may be read; a copy only if it must be.

        Raises:
            TypeError: not a tensor of this framework, or a dtype or device that ringdp does not know.
        """
        ...

    def target(self, tensor: Any) -> T:
        """A dense tensor for an in-place operation on `tensor`: itself if it is dense, else a dense copy.

        Raises:
            TypeError: a tensor that must not be written: read-only, or of a framework with immutable tensors.
        """
        ...

    def written(self, tensor: Any, target: T) -> None:
        """An in-place operation has written `target`: bring it back into `tensor` if that is another one."""
        ...

    def empty(self, shape: Sequence[int], like: T) -> T:
        """A new tensor of this shape, of the dtype of `like`."""
        ...

    def empty_like(self, like: T) -> T:
        """A new tensor of the shape and dtype of `like`, which is dense."""
        ...

    def from_bytes(self, data: Any, shape: Sequence[int], like: T) -> T:
        """A tensor of this shape and the dtype of `like` over a NumPy array of bytes, without a copy."""
        ...

    def describe(self, tensor: T) -> tuple[int, int, Sequence[int]]:
        """(address, dtype number, shape)."""
        ...

    def integers(self, values: Sequence[int]) -> T:
        """A one-dimensional int64 tensor (int32 where the framework's users expect it)."""
        ...


class Handle(Generic[T]):
    """An operation in flight: `poll()`, `wait()`. Its tensors live until it is done, also if the handle does not."""

    __slots__ = ("_core", "_finish", "_result", "_world")

    def __init__(self, core: Any, tensors: Any, finish: Callable[[Any], T], in_world: world.World) -> None:
        self._core = core
        in_world.hold(core, tensors)
        self._finish: Callable[[Any], T] | None = finish
        self._result: T | None = None
        self._world = in_world

    def poll(self) -> bool:
        """True once the operation has completed or failed. Does not block."""
        return bool(self._core.poll())

    def wait(self) -> T:
        """Sleep until the operation is done; its result. May be called again.

        Raises:
            MismatchError, PeerError, DeadlineError, TransportError: as the operation failed.
        """
        if self._finish is None:
            return self._result  # type: ignore[return-value]
        # The core ends every operation by its own deadline; this one is only there because no wait is without.
        if not self._world.engine.wait(self._core, self._world.engine.timeout + 60):
            raise DeadlineError("the engine did not end an operation at its deadline: please report this")
        self._world.release(self._core)
        self._core.check()
        self._result = self._finish(self._core)
        self._finish = None
        return self._result


def reduce_op(op: ReduceOp | None, average: bool | None) -> ReduceOp:
    """Horovod's two ways to say it: `op`, or the older `average`.

    Raises:
        UsageError: both were given, or an operation that is none.
    """
    if op is not None and average is not None:
        raise UsageError("give op=, not average= as well (average is the older form of op)")
    if op is None:
        return ReduceOp.Sum if average is False else ReduceOp.Average
    try:
        return ReduceOp(op)
    except ValueError:
        raise UsageError(f"op must be one of {', '.join(o.name for o in ReduceOp)}, not {op!r}") from None


def splits_of(splits: Any, rows: int, size: int) -> list[int]:
    """Rows for each rank: as given, or equal parts.

    Raises:
        UsageError: no splits, and the rows do not divide evenly; or a negative one.
    """
    if splits is None:
        if rows % size:
            raise UsageError(f"alltoall: {rows} rows do not divide evenly among {size} ranks: give splits")
        return [rows // size] * size
    values = [int(n) for n in (splits.tolist() if hasattr(splits, "tolist") else splits)]
    if any(n < 0 for n in values):
        raise UsageError(f"alltoall: splits must not be negative: {values}")
    return values


class Operations(Generic[T]):
    """All collective operations for the tensors of one framework.

    Each comes blocking, `_async` (returns a `Handle`), and, where it makes sense, in place (`_`). Shapes, dtypes and
    options must be the same on all ranks, unless said otherwise; if they are not, every rank raises `MismatchError` and
    no output is touched. Memory in flight belongs to the operation until `wait()` or `synchronize()` returns.
    """

    def __init__(self, adapter: Adapter[T]) -> None:
        self._adapter = adapter
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
    ) -> Handle[T]:
        """As `allreduce`, returning a handle at once."""
        source = self._adapter.source(tensor)
        output = self._adapter.empty_like(source)
        return self._submit(
            OpKind.allreduce,
            name,
            process_set,
            source,
            output,
            lambda _: output,
            op=reduce_op(op, average),
            scale=(prescale_factor, postscale_factor),
        )

    def allreduce(
        self,
        tensor: Any,
        average: bool | None = None,
        name: str | None = None,
        op: ReduceOp | None = None,
        prescale_factor: float = 1.0,
        postscale_factor: float = 1.0,
        process_set: ProcessSet = global_process_set,
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

        Returns:
            A new tensor of the same shape and dtype.

        Raises:
            MismatchError: shape, dtype, op or factors differ between ranks.
            UsageError, DuplicateNameError, DeadlineError, PeerError, TransportError, NotInitializedError.

        Algorithms: docs/architecture.md; csrc/collectives names the source of each.
        """
        here = world.current()
        chosen = op if average is None and type(op) is ReduceOp else reduce_op(op, average)
        if type(tensor) in self._direct:
            output = self._adapter.empty_like(tensor)
            if here.engine.allreduce(
                name,
                process_set.process_set_id,
                tensor,
                output,
                chosen,
                prescale_factor,
                postscale_factor,
                here,
            ):
                return output
        source = self._adapter.source(tensor)
        output = self._adapter.empty_like(source)
        scale = prescale_factor, postscale_factor
        self._allreduce(here, source, output, name, chosen, scale, process_set)
        return output

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
        target = self._adapter.target(tensor)
        return self._submit(
            OpKind.allreduce,
            name,
            process_set,
            target,
            target,
            lambda _: self._written(tensor, target),
            op=reduce_op(op, average),
            scale=(prescale_factor, postscale_factor),
        )

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
        here = world.current()
        chosen = op if average is None and type(op) is ReduceOp else reduce_op(op, average)
        if type(tensor) in self._direct and here.engine.allreduce(
            name, process_set.process_set_id, tensor, tensor, chosen, prescale_factor, postscale_factor, here
        ):
            if self._note_write is not None:
                self._note_write(tensor)
            return tensor
        target = self._adapter.target(tensor)
        scale = prescale_factor, postscale_factor
        self._allreduce(here, target, target, name, chosen, scale, process_set)
        return self._written(tensor, target)

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
        source = self._adapter.source(tensor)
        output = self._adapter.empty_like(source)
        return self._submit(
            OpKind.allreduce,
            name,
            process_set,
            wire,
            wire,
            lambda _: output,
            op=reduce_op(op, average),
            scale=(prescale_factor, postscale_factor),
            wide=(source, output),
        )

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
        address, dtype, shape = self._adapter.describe(source)
        target = address if output is source else self._adapter.describe(output)[0]
        here.engine.allreduce_at(
            name, process_set.process_set_id, address, target, dtype, shape, op, *scale, here, source, output
        )

    # --- all-gather ---

    def allgather_async(
        self, tensor: Any, name: str | None = None, process_set: ProcessSet = global_process_set
    ) -> Handle[T]:
        """As `allgather`, returning a handle at once."""
        source = self._adapter.source(tensor)

        def finish(core: Any) -> T:
            return self._take_output(core, source)

        return self._submit(OpKind.allgather, name, process_set, source, None, finish)

    def allgather(
        self, tensor: Any, name: str | None = None, process_set: ProcessSet = global_process_set
    ) -> T:
        """Concatenate the tensors of all ranks along the first dimension, in rank order.

        Args:
            tensor: at least one dimension; the first may differ between ranks, the others not.
            name, process_set: see `allreduce`.

        Returns:
            A new tensor, shape (sum of the first dimensions, …), the same on all ranks.
        """
        return self.allgather_async(tensor, name, process_set).wait()

    # --- broadcast ---

    def broadcast_async(
        self,
        tensor: Any,
        root_rank: int,
        name: str | None = None,
        process_set: ProcessSet = global_process_set,
    ) -> Handle[T]:
        """As `broadcast`, returning a handle at once."""
        source = self._adapter.source(tensor)
        output = self._adapter.empty(self._adapter.describe(source)[2], source)
        return self._submit(
            OpKind.broadcast, name, process_set, source, output, lambda _: output, root=root_rank
        )

    def broadcast(
        self,
        tensor: Any,
        root_rank: int,
        name: str | None = None,
        process_set: ProcessSet = global_process_set,
    ) -> T:
        """Give every rank the tensor of `root_rank`, as a new tensor. Shapes and dtypes must agree on all ranks."""
        return self.broadcast_async(tensor, root_rank, name, process_set).wait()

    def broadcast_async_(
        self,
        tensor: Any,
        root_rank: int,
        name: str | None = None,
        process_set: ProcessSet = global_process_set,
    ) -> Handle[Any]:
        """As `broadcast_`, returning a handle at once."""
        target = self._adapter.target(tensor)
        return self._submit(
            OpKind.broadcast,
            name,
            process_set,
            target,
            target,
            lambda _: self._written(tensor, target),
            root=root_rank,
        )

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
    ) -> Handle[Any]:
        """As `alltoall`, returning a handle at once."""
        source = self._adapter.source(tensor)
        shape = self._adapter.describe(source)[2]
        rows = splits_of(splits, shape[0] if shape else 0, process_set.size())

        def finish(core: Any) -> Any:
            output = self._take_output(core, source)
            return output if splits is None else (output, self._adapter.integers(core.rows()))

        return self._submit(OpKind.alltoall, name, process_set, source, None, finish, splits=rows)

    def alltoall(
        self,
        tensor: Any,
        splits: Any = None,
        name: str | None = None,
        process_set: ProcessSet = global_process_set,
    ) -> Any:
        """Send part i of `tensor` (along the first dimension) to rank i, and get one part from every rank.

        Args:
            tensor: at least one dimension; the first may differ between ranks.
            splits: rows for each rank, adding up to the first dimension; default: equal parts.
            name, process_set: see `allreduce`.

        Returns:
            The received parts in rank order, concatenated; with `splits` a pair of that and the rows received from each
            rank (a one-dimensional integer tensor).
        """
        return self.alltoall_async(tensor, splits, name, process_set).wait()

    # --- reduce-scatter ---

    def reducescatter_async(
        self,
        tensor: Any,
        name: str | None = None,
        op: ReduceOp | None = None,
        process_set: ProcessSet = global_process_set,
        prescale_factor: float = 1.0,
        postscale_factor: float = 1.0,
    ) -> Handle[T]:
        """As `reducescatter`, returning a handle at once."""
        source = self._adapter.source(tensor)
        shape = list(self._adapter.describe(source)[2])
        if shape:
            base, extra = divmod(shape[0], process_set.size())
            shape[0] = base + (process_set.rank() < extra)
        output = self._adapter.empty(shape, source)
        return self._submit(
            OpKind.reducescatter,
            name,
            process_set,
            source,
            output,
            lambda _: output,
            op=reduce_op(op, None),
            scale=(prescale_factor, postscale_factor),
        )

    def reducescatter(
        self,
        tensor: Any,
        name: str | None = None,
        op: ReduceOp | None = None,
        process_set: ProcessSet = global_process_set,
        prescale_factor: float = 1.0,
        postscale_factor: float = 1.0,
    ) -> T:
        """Combine the tensors of all ranks, and give rank i the i-th part of the result (along the first dimension).

        The first dimension need not divide evenly: the first ranks get one row more.

        Returns:
            A new tensor, shape (this rank's rows, …).
        """
        return self.reducescatter_async(
            tensor, name, op, process_set, prescale_factor, postscale_factor
        ).wait()

    # --- without tensors ---

    def barrier(self, process_set: ProcessSet = global_process_set) -> None:
        """Wait until all ranks have come here."""
        here = world.current()
        here.engine.barrier(process_set.process_set_id, here)

    def poll(self, handle: Handle[Any]) -> bool:
        """True once the operation has completed or failed: `synchronize` will not block."""
        return handle.poll()

    def synchronize(self, handle: Handle[Any]) -> Any:
        """Wait for the operation and return its result."""
        return handle.wait()

    # --- how a call reaches the core ---

    def _submit(
        self,
        kind: OpKind,
        name: str | None,
        process_set: ProcessSet,
        source: T,
        output: T | None,
        finish: Callable[[Any], Any],
        op: ReduceOp = ReduceOp.Sum,
        scale: tuple[float, float] = (1.0, 1.0),
        root: int = -1,
        splits: Sequence[int] = (),
        wide: tuple[T, T] | None = None,
    ) -> Handle[Any]:
        here = world.current()
        address, dtype, shape = self._adapter.describe(source)
        target = 0 if output is None else self._adapter.describe(output)[0]
        wide_at: tuple[int, ...] = ()
        if wide is not None:
            wide_address, wide_dtype, _ = self._adapter.describe(wide[0])
            wide_at = wide_dtype, wide_address, self._adapter.describe(wide[1])[0]
        core = here.engine.submit(
            int(kind),
            name or "",
            process_set.process_set_id,
            address,
            target,
            dtype,
            list(shape),
            int(op),
            *scale,
            root,
            list(splits),
            *wide_at,
        )
        return Handle(core, (source, output, wide), finish, here)

    def _written(self, tensor: Any, target: T) -> Any:
        self._adapter.written(tensor, target)
        return tensor

    def _take_output(self, core: Any, source: T) -> T:
        shape = list(self._adapter.describe(source)[2])
        shape[0] = sum(core.rows())
        data = core.take_output()
        if math.prod(shape) == 0:
            return self._adapter.empty(shape, source)
        return self._adapter.from_bytes(data, shape, source)
