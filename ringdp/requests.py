"""What each operation asks of the core, and what becomes of its output: once for all frameworks.

A request is made from the caller's tensors by an `Adapter`; `ringdp.ops` submits it, alone or in a group.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from ringdp import dtypes
from ringdp.constants import Dtype, OpKind, ReduceOp
from ringdp.errors import NotInitializedError, UsageError
from ringdp.process_sets import ProcessSet

T = TypeVar("T")


class OnGpu(Protocol):
    """Where a tensor lies that is not in host memory."""

    @property
    def gpu(self) -> int:
        """Its number in this process."""
        ...

    @property
    def stream(self) -> int:
        """The stream (CUstream) in which its framework computed, in the thread that asked."""
        ...

    def current_stream(self) -> int:
        """That of this thread, now."""
        ...

    def empty(self, shape: Sequence[int], like: Any) -> Any:
        """A new tensor there of the dtype of `like`, for use in `stream`. From any thread."""
        ...


class Adapter(Protocol[T]):
    """What the operations need to know of a framework's tensors."""

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

    def on_gpu(self, tensor: T) -> OnGpu | None:
        """None for host memory."""
        ...


class _Awaiting(threading.local):
    on = False


awaiting = _Awaiting()


@contextlib.contextmanager
def awaiting_joined_ranks() -> Iterator[None]:
    """What this thread submits inside, ranks that have joined (ringdp/joined.py) submit too."""
    before, awaiting.on = awaiting.on, True
    try:
        yield
    finally:
        awaiting.on = before


@dataclass(slots=True)
class Request(Generic[T]):
    """One operation of the core on one tensor."""

    kind: OpKind
    source: T
    output: T | None  # None: the core makes it, as it does where `room` is not right
    finish: Callable[[Any], Any]  # the result for the caller, from the core's handle
    op: ReduceOp = ReduceOp.Sum
    scale: tuple[float, float] = (1.0, 1.0)  # before and after
    root: int = -1
    splits: Sequence[int] = ()
    wide: tuple[T, T] | None = None  # the tensors of which `source` is only what travels
    room: int = 0  # all-gather and all-to-all: the bytes of `output`, which is used if just as many come
    place: OnGpu | None = None  # of the tensors, once submitted
    made: list[T] = field(
        default_factory=list
    )  # there: the output of all-gather and all-to-all, until it is taken

    def submission(self, name: str, process_set_id: int, adapter: Adapter[T]) -> Any:
        """For the core's `submit` or `submit_group`."""
        from ringdp import _core

        if not isinstance(name, str):
            raise TypeError(f"the name of an operation must be a str, not {name!r}")
        address, dtype, shape = adapter.describe(self.source)
        target = 0 if self.output is None else adapter.describe(self.output)[0]
        wide: tuple[int, ...] = ()
        if self.wide is not None:
            wide_address, wide_dtype, _ = adapter.describe(self.wide[0])
            wide = wide_dtype, wide_address, adapter.describe(self.wide[1])[0]
        submission = _core.Submission(
            int(self.kind), name, process_set_id, address, target, dtype, list(shape), int(self.op),
            *self.scale, self.root, list(self.splits), *wide,
        )  # fmt: skip
        if self.room:
            submission.room = self.room
        self.place = place = adapter.on_gpu(self.source)
        if place is not None:
            submission.place_on_gpu(place.gpu, place.stream)
            if self.kind in (OpKind.allgather, OpKind.alltoall):
                submission.ask_for_output(lambda rows: self._output_on(place, rows, adapter))
        submission.awaits_joined = awaiting.on
        return submission

    def _output_on(self, place: OnGpu, rows: int, adapter: Adapter[T]) -> int:
        """The address of an output of so many rows, which the core fills."""
        shape = [rows, *adapter.describe(self.source)[2][1:]]
        if self.output is not None and math.prod(shape) == math.prod(adapter.describe(self.output)[2]):
            return adapter.describe(self.output)[0]
        output = place.empty(shape, self.source)
        self.made.append(output)
        return adapter.describe(output)[0]


class Requests(Generic[T]):
    """The requests of all operations, for the tensors of one framework. Arguments: see `ringdp.ops.Operations`."""

    def __init__(self, adapter: Adapter[T]) -> None:
        self._adapter = adapter

    def allreduce(self, tensor: Any, op: ReduceOp, scale: tuple[float, float], out: Any = None) -> Request[T]:
        """The result is a new tensor, or `out`."""
        source = self._adapter.source(tensor)
        if out is not None:
            into = self.into(out, source, in_place=True)
            return Request(OpKind.allreduce, source, into, lambda _: self._written(out, into), op, scale)
        output = self._adapter.empty_like(source)
        return Request(OpKind.allreduce, source, output, lambda _: output, op, scale)

    def allreduce_(self, tensor: Any, op: ReduceOp, scale: tuple[float, float]) -> Request[T]:
        """The result is `tensor`."""
        target = self._adapter.target(tensor)
        return Request(OpKind.allreduce, target, target, lambda _: self._written(tensor, target), op, scale)

    def allreduce_through(self, wire: T, tensor: Any, op: ReduceOp, scale: tuple[float, float]) -> Request[T]:
        """The result is a new tensor, cast from `wire`, which travels."""
        source = self._adapter.source(tensor)
        output = self._adapter.empty_like(source)
        return Request(OpKind.allreduce, wire, wire, lambda _: output, op, scale, wide=(source, output))

    def allgather(self, tensor: Any, out: Any = None) -> Request[T]:
        """The result is a new tensor of all ranks' rows, or `out`."""
        source = self._adapter.source(tensor)
        made: list[T] = []
        if out is not None:
            into = self.into(out, source, any_rows=True)
            return self._with_room(
                Request(OpKind.allgather, source, into, self._take_rows(out, into, made), made=made)
            )
        return Request(
            OpKind.allgather, source, None, lambda core: self._take_output(core, source, made), made=made
        )

    def broadcast(self, tensor: Any, root_rank: int, process_set: ProcessSet, out: Any = None) -> Request[T]:
        """The result is a new tensor, or `out`."""
        source = self._adapter.source(tensor)
        root = number_of(root_rank, process_set)
        if out is not None:
            into = self.into(out, source, in_place=True)
            return Request(OpKind.broadcast, source, into, lambda _: self._written(out, into), root=root)
        output = self._adapter.empty(self._adapter.describe(source)[2], source)
        return Request(OpKind.broadcast, source, output, lambda _: output, root=root)

    def broadcast_(self, tensor: Any, root_rank: int, process_set: ProcessSet) -> Request[T]:
        """The result is `tensor`."""
        target = self._adapter.target(tensor)
        root = number_of(root_rank, process_set)
        return Request(OpKind.broadcast, target, target, lambda _: self._written(tensor, target), root=root)

    def alltoall(self, tensor: Any, splits: Any, process_set: ProcessSet, out: Any = None) -> Request[T]:
        """The result is a new tensor, or `out`; with splits a pair of that and the rows from each rank."""
        source = self._adapter.source(tensor)
        shape = self._adapter.describe(source)[2]
        rows = splits_of(splits, shape[0] if shape else 0, process_set.size())

        made: list[T] = []
        into = None if out is None else self.into(out, source, any_rows=True)
        take = None if into is None else self._take_rows(out, into, made)

        def finish(core: Any) -> Any:
            output = self._take_output(core, source, made) if take is None else take(core)
            return output if splits is None else (output, self._adapter.integers(core.rows()))

        return self._with_room(Request(OpKind.alltoall, source, into, finish, splits=rows, made=made))

    def reducescatter(
        self,
        tensor: Any,
        op: ReduceOp,
        scale: tuple[float, float],
        process_set: ProcessSet,
        out: Any = None,
    ) -> Request[T]:
        """The result is a new tensor of this rank's rows, or `out`."""
        source = self._adapter.source(tensor)
        shape = list(self._adapter.describe(source)[2])
        if shape:
            base, extra = divmod(shape[0], process_set.size())
            shape[0] = base + ((process_set.rank() or 0) < extra)
        if out is not None:
            into = self.into(out, source, shape)
            return Request(OpKind.reducescatter, source, into, lambda _: self._written(out, into), op, scale)
        output = self._adapter.empty(shape, source)
        return Request(OpKind.reducescatter, source, output, lambda _: output, op, scale)

    def into(
        self,
        out: Any,
        source: T,
        shape: Sequence[int] | None = None,
        any_rows: bool = False,
        in_place: bool = False,
    ) -> T:
        """A dense tensor for a result that the caller wants in `out`: itself, where the core can write it.

        Args:
            source: of the operation, from the adapter.
            shape: of the result; None: that of `source`.
            any_rows: the number of rows is not known before the ranks have told theirs.
            in_place: the result may lie where the source does.

        Raises:
            TypeError: no tensor of this framework, or one that must not be written.
            UsageError: it has not the shape and dtype of the result.
        """
        target = self._adapter.target(out)
        address, dtype, has = self._adapter.describe(target)
        at, wanted_dtype, of_source = self._adapter.describe(source)
        wanted = list(of_source if shape is None else shape)
        fits = len(has) == len(wanted) and list(has)[any_rows:] == wanted[any_rows:]
        if not fits or dtype != wanted_dtype:
            rows = ["any", *wanted[1:]] if any_rows else wanted
            raise UsageError(
                f"out is {Dtype(dtype).name}{list(has)}; the result is {Dtype(wanted_dtype).name}"
                f"[{', '.join(map(str, rows))}]"
            )
        size = dtypes.SIZES[Dtype(dtype)]
        ends = address + math.prod(has) * size, at + math.prod(of_source) * size
        overlap = address < ends[1] and at < ends[0] and not (in_place and address == at)
        return self._adapter.empty(has, target) if overlap else target

    def _with_room(self, request: Request[T]) -> Request[T]:
        if request.output is not None:
            _, dtype, shape = self._adapter.describe(request.output)
            request.room = math.prod(shape) * dtypes.SIZES[Dtype(dtype)]
        return request

    def _take_rows(self, out: Any, into: T, made: list[T]) -> Callable[[Any], Any]:
        """What gives `out` once the core has filled `into`, if just its rows have come."""

        def take(core: Any) -> Any:
            rows, has = sum(core.rows()), self._adapter.describe(into)[2]
            if rows != has[0]:
                made.clear()
                raise UsageError(f"out has {has[0]} rows, and {rows} have come; it was not written")
            return self._written(out, into)

        return take

    def _written(self, tensor: Any, target: T) -> Any:
        self._adapter.written(tensor, target)
        return tensor

    def _take_output(self, core: Any, source: T, made: list[T]) -> T:
        if made:
            return made.pop()
        shape = list(self._adapter.describe(source)[2])
        shape[0] = sum(core.rows())
        data = core.take_output()
        if math.prod(shape) == 0:
            return self._adapter.empty(shape, source)
        return self._adapter.from_bytes(data, shape, source)


def usable(process_set: ProcessSet) -> int:
    """Its number.

    Raises:
        NotInitializedError: it was never added, or was removed.
    """
    number = process_set.process_set_id
    if number is None:
        raise NotInitializedError(f"{process_set!r} cannot be used: {process_set.how_to_add()}")
    return number


def number_of(root_rank: int, process_set: ProcessSet) -> int:
    """The number in the set of a rank of the job.

    Raises:
        UsageError: it is not one of the set.
    """
    if usable(process_set) == 0:
        return root_rank  # the core looks at it
    assert process_set.ranks is not None
    if root_rank not in process_set.ranks:
        raise UsageError(f"root_rank {root_rank} is not one of the ranks of {process_set!r}")
    return process_set.ranks.index(root_rank)


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
