"""What one collective asks of the core, and what becomes of the result: torch's tensors in, torch's tensors out.

Tensors travel as one flat row of elements in row-major order, whatever their shapes and strides: torch compares
neither. What is only moved and has a dtype that the core does not know (complex, float8, …) travels as bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ringdp.constants import OpKind, ReduceOp
from ringdp.errors import UsageError
from ringdp.process_sets import ProcessSet
from ringdp.requests import Request
from ringdp.torch import device
from ringdp.torch.adapter import DTYPES, note_write, refuse_unsupported
from ringdp.torch.distributed.reductions import Reduction, reduction
from ringdp.torch.ops import operations

Rows = tuple[list[int], torch.Tensor]  # how many elements are of, or from, each rank; and all of them


@dataclass
class Piece:
    """One operation of the core, and what to do with its result before the caller may look."""

    request: Request[torch.Tensor]
    after: Callable[[Any], None]


# --- memory ---------------------------------------------------------------------------------------------------


def flat(tensor: torch.Tensor, reduced: bool = False) -> torch.Tensor:
    """The elements as a row that the core can read: the tensor's own memory if it is dense, else a copy.

    Args:
        tensor: any shape and strides.
        reduced: the elements must stay numbers, and not become bytes.

    Raises:
        TypeError: what ringdp cannot exchange.
    """
    dense = arrived(tensor).detach()
    if not dense.is_contiguous() or dense.is_neg() or dense.is_conj():
        dense = dense.resolve_conj().resolve_neg().contiguous()
    row = dense.reshape(-1)
    if row.dtype not in DTYPES and row.layout is torch.strided and not row.is_quantized:
        if reduced and row.is_complex():
            row = torch.view_as_real(row).reshape(-1)
        elif not reduced:
            row = row.view(torch.uint8)
    refuse_unsupported(row)
    return row


def arrived(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor; where it is one of those of functional collectives, which wait when they are used, what is inside."""
    wait = getattr(tensor, "trigger_wait", None)
    return tensor if wait is None else wait()


def store(tensor: torch.Tensor, row: torch.Tensor) -> None:
    """Put a row, as `flat` makes them, into the tensor it was made of, or into one like that."""
    own = arrived(tensor).detach()
    if own.numel() and own.data_ptr() == row.data_ptr():
        note_write(own)  # it is there already
        return
    if row.dtype is not own.dtype:
        if own.dtype in DTYPES:
            raise TypeError(f"a result of {row.dtype} does not go into a tensor of {own.dtype}")
        row = torch.view_as_complex(row.view(-1, 2)) if _is_pairs(row, own) else row.view(own.dtype)
    _used_here(row, own)
    with torch.inference_mode(own.is_inference()), torch.no_grad():
        own.copy_(row.view(own.shape))


def _used_here(*tensors: torch.Tensor) -> None:
    """They were made in the stream of the call, and it may be another one in which the result is brought home."""
    for tensor in tensors:
        if device.is_on_gpu(tensor):
            device.used_in_current_stream(tensor)


def _is_pairs(row: torch.Tensor, tensor: torch.Tensor) -> bool:
    return tensor.is_complex() and row.dtype.is_floating_point


def joined(tensors: Sequence[torch.Tensor], reduced: bool = False) -> torch.Tensor:
    """The rows of all of them, one after the other."""
    rows = [flat(tensor, reduced) for tensor in tensors]
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def refuse_mixed(call: str, *tensors: torch.Tensor) -> None:
    """All must have one dtype: elements travel as they are.

    Raises:
        TypeError: they have not.
    """
    dtypes = list(dict.fromkeys(tensor.dtype for tensor in tensors))
    if len(dtypes) > 1:
        raise TypeError(
            f"{call}: the tensors are of {' and '.join(map(str, dtypes))}: give inputs and outputs one dtype"
        )


def units(tensor: torch.Tensor, reduced: bool = False) -> int:
    """The elements of its row."""
    if tensor.dtype in DTYPES:
        return tensor.numel()
    return tensor.numel() * 2 if reduced else tensor.nbytes


# --- reductions -----------------------------------------------------------------------------------------------


def reduce_into(source: torch.Tensor, target: torch.Tensor | None, op: Any) -> Piece:
    """Combine all ranks' `source` into `target`, of its shape; that may be `source`, or None: it is not wanted here."""
    how = reduction(op, source.dtype)
    row = flat(source, reduced=True)
    if how.bitwise is not None:
        return _gather_and_combine(row, target, how)
    scale = how.prescale, 1.0
    if target is source:
        request = operations.requests.allreduce_(row, how.op, scale)
    else:
        request = operations.requests.allreduce(row, how.op, scale)
    return Piece(request, lambda result: None if target is None else store(target, result))


def _gather_and_combine(row: torch.Tensor, target: torch.Tensor | None, how: Reduction) -> Piece:
    def after(result: torch.Tensor) -> None:
        if target is None or row.numel() == 0:
            return
        assert how.bitwise is not None
        _used_here(result)
        total, *others = result.view(-1, row.numel()).unbind()
        for other in others:
            total = how.bitwise(total, other)
        store(target, total)

    return Piece(operations.requests.allgather(row), after)


def reduce_scatter(
    sources: Sequence[torch.Tensor], target: torch.Tensor, op: Any, place: ProcessSet
) -> Piece:
    """Combine all ranks' `sources`, one for each rank or all in one; rank i gets the i-th part.

    Raises:
        UsageError: the part is not as large as `target`.
        TypeError: not all are of one dtype.
    """
    refuse_mixed("reduce_scatter", *sources, target)
    how = reduction(op, target.dtype)
    rank, size = place.rank() or 0, place.size()
    total = sum(units(source, True) for source in sources)
    sizes = [total // size] * size if len(sources) == 1 else [units(source, True) for source in sources]
    if sum(sizes) != total or len(sizes) != size or sizes[rank] != units(target, True):
        raise UsageError(
            f"reduce_scatter among {size} ranks: {_counts(sources)} elements cannot be cut into a part of "
            f"{target.numel()} elements for rank {rank} of the group"
        )
    row = joined(sources, reduced=True)
    if how.bitwise is not None or len(set(sizes)) > 1:
        start = sum(sizes[:rank])
        whole = torch.empty_like(row)
        piece = _gather_and_combine(row, whole, how) if how.bitwise else reduce_into(row, whole, op)

        def after(result: torch.Tensor) -> None:
            piece.after(result)
            store(target, whole[start : start + sizes[rank]])

        return Piece(piece.request, after)
    output = row.new_empty(0) if not target.is_contiguous() else flat(target, reduced=True)
    if output.numel() != sizes[rank]:
        output = row.new_empty(sizes[rank])
    request = Request(
        OpKind.reducescatter, row, output, lambda _: output, ReduceOp(how.op), (how.prescale, 1.0)
    )
    return Piece(request, lambda result: store(target, result))


# --- movements ------------------------------------------------------------------------------------------------


def broadcast(tensor: torch.Tensor, root: int, place: ProcessSet) -> Piece:
    """`root`: a rank of the job."""
    return Piece(
        operations.requests.broadcast_(flat(tensor), root, place), lambda result: store(tensor, result)
    )


def gather_into(source: torch.Tensor, targets: Sequence[torch.Tensor], rank: int) -> Piece:
    """All ranks' `source`, one after the other, into the targets: one for each rank, or one for all.

    `rank`: this one's number in the group.
    """
    refuse_mixed("all_gather", source, *targets)
    request = operations.requests.allgather(flat(source))
    _with_rows(request, targets, rank * request.source.nbytes)
    return Piece(request, lambda result: _deal("all_gather", result, targets))


def exchange(
    sources: Sequence[torch.Tensor],
    splits: Sequence[int],
    targets: Sequence[torch.Tensor],
    expected: Sequence[int] | None,
    place: ProcessSet,
    call: str,
) -> Piece:
    """Send `splits[i]` elements to rank i, and put what comes into the targets: one for each rank, or one for all.

    Args:
        expected: how many elements should come from each rank; None: what the targets have room for.
        call: for the errors.
    """
    refuse_mixed(call, *sources, *targets)
    request = operations.requests.alltoall(joined(sources), list(splits), place)
    both = request.finish  # gives the output, and the rows that came as a tensor
    request.finish = lambda core: both(core)[0]
    _with_rows(request, targets, None)

    def after(result: Rows) -> None:
        if expected is not None and list(expected) != result[0]:
            raise UsageError(
                f"{call}: {result[0]} elements came from the ranks of the group, and room was made for "
                f"{list(expected)}"
            )
        _deal(call, result, targets)

    return Piece(request, after)


def _with_rows(
    request: Request[torch.Tensor], targets: Sequence[torch.Tensor], own_place: int | None
) -> None:
    """Let the result be preceded by the numbers of elements from each rank, and go into a single dense target at once.

    Args:
        own_place: in bytes, where in the target this rank's own part may lie already; None: nowhere.
    """
    finish = request.finish
    target = _straight(request.source, targets, own_place)
    if target is not None:
        request.output, request.room = target, target.nbytes

    def with_rows(core: Any) -> Rows:
        counts = list(core.rows())
        went_straight = target is not None and sum(counts) == target.numel()
        return counts, target if went_straight else finish(core)

    request.finish = with_rows


def _straight(
    source: torch.Tensor, targets: Sequence[torch.Tensor], own_place: int | None
) -> torch.Tensor | None:
    if len(targets) != 1:
        return None
    row = flat(targets[0])
    if row.dtype is not source.dtype or row.data_ptr() != arrived(targets[0]).data_ptr():
        return None
    at = source.data_ptr() - row.data_ptr()
    if -source.nbytes < at < row.nbytes and at != own_place:  # it would be written over before it is sent
        return None
    return row


def _deal(call: str, result: Rows, targets: Sequence[torch.Tensor]) -> None:
    counts, row = result
    if len(targets) <= 1:  # what lies one after the other, or nothing where this rank gets nothing
        counts = [row.numel()] * len(targets)
    room = [units(target) for target in targets]
    if room != counts:
        raise UsageError(f"{call}: {counts} elements came, and the output has room for {room}")
    for target, part in zip(targets, row.split(counts), strict=True):
        store(target, part)


def _counts(tensors: Sequence[torch.Tensor]) -> str:
    return " + ".join(str(tensor.numel()) for tensor in tensors)
