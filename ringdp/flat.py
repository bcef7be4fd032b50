"""The exchange of one training step, for frameworks whose gradients come all at once: TensorFlow, JAX and Keras.

All gradients of a step are one call, so the order in which a framework's graph would run single exchanges cannot make
ranks wait for each other. They travel in buckets of memory that the ranks of a host share: while one bucket is filled,
those before it are exchanged.

A small vote goes with the last bucket: the digest of what this rank exchanges beside its complement, merged by MIN.
Only where that shows a difference do the ranks tell each other their lists, to raise one error that names it; else no
rank waits for anything but its gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ringdp import dtypes, world
from ringdp.buckets import default_bucket_bytes
from ringdp.constants import Adasum, Average, Dtype, Max, Min, OpKind, ReduceOp
from ringdp.errors import MismatchError, UsageError
from ringdp.flat_layout import COMPRESSIONS, DIGEST_BITS, Bucket, Entry, Layout, lay_out
from ringdp.numpy.ops import operations
from ringdp.ops import Handle, Operations
from ringdp.process_sets import ProcessSet, global_process_set
from ringdp.requests import Request, reduce_op, usable
from ringdp.state import allgather_object
from ringdp.words import ranks_in_words

ALL_ONES = (1 << DIGEST_BITS) - 1


class FlatExchange:
    """Reduces a list of arrays over the ranks, step after step. Its memory stays from step to step.

    Lists may change from one call to the next, if they do so on all ranks alike. Ranks make their exchanges in the same
    order, or give them names.
    """

    def __init__(
        self,
        name: str | None = None,
        op: ReduceOp = Average,
        compression: str = "none",
        process_set: ProcessSet = global_process_set,
        prescale_factor: float = 1.0,
        postscale_factor: float = 1.0,
        gradient_predivide_factor: float = 1.0,
        bucket_bytes: int | None = None,
        looks: bool = False,
    ) -> None:
        """Nothing is exchanged here.

        Args:
            name: prefix of the operations' names; default: by the order in which exchanges are first called.
            op: how gradients are combined.
            compression: "none", "fp16" or "bf16": float32 and float64 travel as these 16 bits, and come back in their
                own dtype.
            process_set: the ranks that take part.
            prescale_factor, postscale_factor: multiply before and after.
            gradient_predivide_factor: with Average alone: so much of the division comes before the sum.
            bucket_bytes: of a bucket; default: what RINGDP_BUCKET_BYTES says, else 25 MiB.
            looks: after each call `is_finite` says whether there was an inf or a NaN.

        Raises:
            UsageError: options that cannot be.
        """
        self.name, self.op, self.process_set = name, reduce_op(op, None), process_set
        self.compression, self.looks = compression, looks
        if compression not in COMPRESSIONS:
            raise UsageError(f"compression must be one of {', '.join(COMPRESSIONS)}, not {compression!r}")
        if not gradient_predivide_factor > 0:
            raise UsageError(f"gradient_predivide_factor must be positive, not {gradient_predivide_factor!r}")
        if gradient_predivide_factor != 1 and self.op is not Average:
            raise UsageError("gradient_predivide_factor needs op=Average")
        self.scale = prescale_factor / gradient_predivide_factor, postscale_factor * gradient_predivide_factor
        self.bucket_bytes = default_bucket_bytes() if bucket_bytes is None else bucket_bytes
        if self.bucket_bytes < 1:
            raise UsageError(f"bucket_bytes must be positive, not {bucket_bytes!r}")
        # After a call, if it looks: the same on all ranks. A sum, an average or a product carries an inf or a NaN of
        # one rank to all, so what is looked at is the result. With Min, Max and Adasum each rank looks at its own.
        self.is_finite: bool | None = None
        self._world: world.World | None = None
        self._layout: Layout | None = None
        self._seen: Any = None  # of which arrays
        self._called = ""  # the name in this world

    def __call__(
        self,
        arrays: Sequence[Any],
        names: Sequence[str] | None = None,
        out: Sequence[NDArray[Any]] | None = None,
    ) -> list[NDArray[Any]]:
        """Combine the arrays of all ranks, one by one.

        Args:
            arrays: NumPy arrays, or what `numpy.asarray` reads without a copy: any shapes and strides, all dtypes that
                ringdp knows, read-only ones too. They are not written. In the same order on all ranks.
            names: of the arrays, for errors; the ranks compare them, so they must be the same. Default: numbers.
            out: arrays of the same shapes and dtypes, to be written.

        Returns:
            New arrays, which are the caller's, or `out`. All ranks have the same bits.

        Raises:
            MismatchError: the ranks give different arrays (number, shapes, dtypes, names) or have different options. On
                every rank, and nothing is written; the next call is a new one.
            TypeError: an array of another dtype; an `out` that does not fit or cannot be written.
            UsageError: not as many names as arrays.
            PeerError, DeadlineError, TransportError, ChecksumError, NotInitializedError.
        """
        given = [np.asarray(array) for array in arrays]
        layout = self._layout_of(given, names)
        results = [np.empty(a.shape, a.dtype) for a in given] if out is None else self._checked(out, layout)
        try:
            self._exchange(layout, given, results)
        except BaseException:
            self._layout = self._seen = None  # its memory may still be in use
            raise
        return results

    # --- what this rank has ---

    def _layout_of(self, arrays: Sequence[NDArray[Any]], names: Sequence[str] | None) -> Layout:
        here = world.current()
        if self._world is not here:
            self._world, self._layout, self._seen = here, None, None
            self._called = self.name if self.name is not None else self._number(here)
        seen = [(array.shape, array.dtype) for array in arrays], None if names is None else list(names)
        if self._layout is None or seen != self._seen:
            self._layout = None  # the memory of the last one is given back first
            entries = self._entries(arrays, names)
            wire = COMPRESSIONS[self.compression]
            self._layout = lay_out(entries, str(self), 1 if self.op is Adasum else self.bucket_bytes, wire)
            self._seen = seen
        return self._layout

    def _number(self, here: world.World) -> str:
        of_set = usable(self.process_set)
        number = here.exchanges.get(of_set, 0)
        here.exchanges[of_set] = number + 1
        return f"exchange.{number}"

    def _entries(self, arrays: Sequence[NDArray[Any]], names: Sequence[str] | None) -> list[Entry]:
        if names is None:
            names = [str(i) for i in range(len(arrays))]
        elif len(names) != len(arrays):
            raise UsageError(f"{len(names)} names were given for {len(arrays)} arrays")
        entries = []
        for name, array in zip(names, arrays, strict=True):
            dtype = dtypes.of_array(array)
            if dtype is None:
                raise dtypes.unsupported(array.dtype, f"gradient '{name}'")
            entries.append(Entry(str(name), dtype, array.shape))
        return entries

    def __str__(self) -> str:
        return (
            f"op {self.op.name}, compression {self.compression}, prescale_factor {self.scale[0]}, "
            f"postscale_factor {self.scale[1]}, buckets of {self.bucket_bytes} bytes, "
            f"{'looks' if self.looks else 'does not look'} for overflows"
        )

    @staticmethod
    def _checked(out: Sequence[NDArray[Any]], layout: Layout) -> list[NDArray[Any]]:
        if len(out) != len(layout.entries):
            raise TypeError(f"out has {len(out)} arrays for {len(layout.entries)} gradients")
        for array, entry in zip(out, layout.entries, strict=True):
            if not isinstance(array, np.ndarray) or not array.flags.writeable:
                raise TypeError(f"out for gradient {entry} must be a NumPy array that may be written")
            if array.shape != entry.shape or dtypes.of_array(array) is not entry.dtype:
                raise TypeError(f"out for gradient {entry} is {array.dtype}{list(array.shape)}")
        return list(out)

    # --- the exchange ---

    def _exchange(
        self, layout: Layout, arrays: Sequence[NDArray[Any]], results: Sequence[NDArray[Any]]
    ) -> None:
        looks_before = self.looks and self.op in (Min, Max, Adasum)
        is_finite, handles = True, []
        for number, bucket in enumerate(layout.buckets):
            bucket.pack(arrays)
            if looks_before:
                is_finite &= bucket.is_finite()
            handles.append(self._submit(bucket, number))
        said = np.array([layout.digest, ALL_ONES ^ layout.digest, is_finite], np.int64)
        vote = operations.allreduce_async_(
            said, name=f"{self._called}.vote", op=Min, process_set=self.process_set
        )
        digest, complement, all_finite = vote.wait().tolist()
        if digest ^ complement != ALL_ONES:
            self._differ(layout, handles)
        failures = []
        for bucket, handle in zip(layout.buckets, handles, strict=True):
            try:
                handle.wait()
            except Exception as failure:
                failures.append(failure)
            if not failures:
                bucket.unpack(results)
        if failures:
            raise failures[0]
        if self.looks:
            finite_now = all(bucket.is_finite() for bucket in layout.buckets)
            self.is_finite = bool(all_finite) if looks_before else finite_now

    def _submit(self, bucket: Bucket, number: int) -> Handle[Any]:
        request = Request(OpKind.allreduce, bucket, bucket, lambda _: bucket, self.op, self.scale)
        return _flat.submit(request, f"{self._called}.bucket.{number}", self.process_set)

    def _differ(self, layout: Layout, handles: list[Handle[Any]]) -> NoReturn:
        """All ranks come here together. What some of them have begun, all come to, so that it ends."""
        lines = [layout.options, *map(str, layout.entries)]
        mine = world.rank(), len(layout.buckets), lines
        all_ranks = allgather_object(mine, f"{self._called}.lists", self.process_set)
        nothing = Bucket(Dtype.uint8, 0, (), (), np.empty(0, np.uint8))
        for number in range(len(handles), max(buckets for _, buckets, _ in all_ranks)):
            handles.append(self._submit(nothing, number))
        for handle in handles:
            try:
                handle.wait()
            except MismatchError:  # that is why we are here
                continue
        raise MismatchError(
            f"rank {world.rank()}: {self._called}: the ranks have different gradients, and none was changed: "
            f"{_difference({rank: theirs for rank, _, theirs in all_ranks})}"
        )


def _difference(lists: Mapping[int, Sequence[str]]) -> str:
    """The first line that differs, and which ranks have what. The first line of all are the options."""
    for line in range(max(map(len, lists.values()))):
        found: dict[str, list[int]] = {}
        for rank, theirs in lists.items():
            found.setdefault(theirs[line] if line < len(theirs) else "none", []).append(rank)
        if len(found) > 1:
            which = f"gradient {line - 1}" if line else "the options"
            return f"{which}: " + "; ".join(f"{ranks_in_words(r)}: {what}" for what, r in found.items())
    return "their digests"


class _BucketAdapter:
    """As much of `ringdp.ops.Adapter` as buckets need, which are both source and output of what is exchanged."""

    direct: tuple[type, ...] = ()
    note_write = None

    def describe(self, bucket: Bucket) -> tuple[int, int, Sequence[int]]:
        return bucket.address, bucket.dtype, (bucket.count,)

    def on_gpu(self, bucket: Bucket) -> None:
        return None


_flat: Operations[Bucket] = Operations(_BucketAdapter())  # type: ignore[arg-type]  # made of no user's tensors
