"""What torch gets back from a collective: a `Work`, and its future.

Whoever notices first that the operation has ended, a caller that waits or the waiter's thread, settles the work: brings
the result where it belongs, once, and then completes the future.

On a GPU an operation has ended, for this, when the GPU has been told all there is to do. Results are brought home in
the settling thread's current stream; that of the waiter's thread is one of the group's own, so that the caller's goes
on with what it has to compute. Whoever waits lets its own current stream come after that.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist

from ringdp.errors import DeadlineError
from ringdp.ops import Handle
from ringdp.torch import device
from ringdp.torch.distributed.futures import Future, Number, again

Beside = Callable[[], contextlib.AbstractContextManager[object]]  # see `device.stream_beside`


class Operation(Protocol):
    """Something under way."""

    @property
    def gpu(self) -> int | None:
        """Where its tensors lie; None: in host memory."""
        ...

    def poll(self) -> bool:
        """Whether it has ended. Does not block."""
        ...

    def sleep(self, seconds: float, helping: bool) -> bool:
        """Until it has ended or the seconds have passed; whether it has ended. `helping`: see `Handle.done_within`."""
        ...

    def finish(self) -> list[torch.Tensor]:
        """Once it has ended: bring the result where it belongs. Raises what went wrong."""
        ...

    def give_up(self) -> None:
        """Nobody waits for it any more."""
        ...


class Collective:
    """Operations of the core under way.

    Args:
        handles: of the core.
        after: one for each, called with its result when all have ended well.
        results: what the work's `result()` and its future give.
        gpu: where they lie; None: in host memory.
    """

    def __init__(
        self,
        handles: Sequence[Handle[Any]],
        after: Sequence[Callable[[Any], None]],
        results: list[torch.Tensor],
        gpu: int | None = None,
    ) -> None:
        self.gpu = gpu
        self._handles, self._after, self._results = handles, after, results

    def poll(self) -> bool:
        """See `Operation`."""
        return all(handle.poll() for handle in self._handles)

    def sleep(self, seconds: float, helping: bool) -> bool:
        """See `Operation`."""
        end = time.monotonic() + seconds
        return all(
            handle.done_within(max(0.0, end - time.monotonic()), helping) or handle.poll()
            for handle in self._handles
        )

    def finish(self) -> list[torch.Tensor]:
        """See `Operation`."""
        results = [handle.wait() for handle in self._handles]
        for act, result in zip(self._after, results, strict=True):
            act(result)
        return self._results

    def give_up(self) -> None:
        """See `Operation`. What was submitted goes on; the world keeps its memory."""


class Work(dist.Work):
    """A collective, or a message, under way.

    Args:
        operation: what is under way.
        number: of the call.
        what: for the error at its deadline: call and group.
        timeout: seconds until then.
        attend: called when somebody asks for a future: a thread must settle this, then.
    """

    def __init__(
        self,
        operation: Operation,
        number: Number,
        what: Callable[[], str],
        timeout: float,
        attend: Callable[[Work], object],
    ) -> None:
        super().__init__()
        self.number = number
        self._operation: Operation | None = operation
        self._what = what
        self._timeout, self._end = timeout, time.monotonic() + timeout
        self._attend = attend
        self._lock = threading.Lock()
        self._result: list[torch.Tensor] = []
        self._error: Exception | None = None
        self._future: Future | None = None
        self.gpu = operation.gpu
        self.beside: Beside | None = None  # where the waiter's thread brings results home
        self._mark: device.Mark | None = None  # in the stream where they were
        # In a CUDA graph: a thread of ours cannot be a part of the capture.
        self._is_captured = self.gpu is not None and device.is_captured(self.gpu)

    # --- for torch --------------------------------------------------------------------------------------------

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        """Sleep until the operation is done; on a GPU, let this thread's current stream wait until it is.

        Args:
            timeout: at most so long, counted from now; 0: until the group's timeout, counted from the call.

        Raises:
            DeadlineError: it has not ended by then.
            MismatchError, PeerError, TransportError, UsageError: as it failed.
        """
        given = timeout.total_seconds()
        if given > 0:
            self._settle_by(time.monotonic() + given, given)
        else:
            self._settle_in_time()
        if self._error is not None:
            raise again(self._error)
        self._order()
        return True

    def is_completed(self) -> bool:
        """Whether it has ended, well or not, on the GPU as well. Does not block."""
        operation = self._operation
        if operation is not None and operation.poll():
            self.settle()
        return self._operation is None and (self._mark is None or self._is_captured or self._mark.passed())

    def is_success(self) -> bool:
        """Whether it has ended well."""
        return self.is_completed() and self._error is None

    def exception(self) -> Exception | None:
        """What `wait` raises, if it has failed."""
        return self._error

    def result(self) -> list[torch.Tensor]:
        """The tensors that hold the result, once it has ended."""
        return self._result

    def synchronize(self) -> None:
        """As `wait`."""
        self.wait()

    def get_future(self) -> Future:
        """A future of `result()`."""
        with self._lock:
            future = self._future
            if future is None:
                devices = [] if self.gpu is None else device.of_future(self.gpu)
                future = self._future = Future(self.number, self._settle_in_time, devices)
                ended = self._operation is None
            else:
                return future
        if ended:
            self._complete(future)
        elif self._is_captured:  # it has ended, as far as the host is concerned
            self._settle_in_time()
        else:
            self._attend(self)
        return future

    # --- ends -------------------------------------------------------------------------------------------------

    def sleep(self, seconds: float) -> bool:
        """Until it has ended or the seconds have passed; whether it has ended."""
        operation = self._operation
        return operation is None or operation.sleep(seconds, helping=False)

    def settle_if_over(self) -> bool:
        """For a thread of ours: whether it has ended."""
        if not self.sleep(0):
            return False
        with self.beside() if self.beside is not None else contextlib.nullcontext():
            self.settle()
        return True

    def settle(self) -> None:
        """The operation has ended."""
        with self._lock:
            operation = self._operation
            if operation is None:
                return
            try:
                self._result = operation.finish()
                self._mark = None if self.gpu is None else device.Mark(self.gpu)
            except Exception as error:
                self._error = error.with_traceback(None)
            self._operation = None
            future = self._future
        if future is not None:
            self._complete(future)

    def is_late(self) -> bool:
        """Whether the group's timeout has passed."""
        return time.monotonic() >= self._end

    def expire(self, reason: Exception | None = None) -> None:
        """Fail, whatever still comes. Default reason: the group's timeout has passed."""
        with self._lock:
            operation = self._operation
            if operation is None:
                return
            operation.give_up()
            self._error, self._operation = reason or self._too_late(self._timeout), None
            future = self._future
        if future is not None:
            self._complete(future)

    def _order(self) -> None:
        if self._mark is not None:
            self._mark.order()

    def _settle_in_time(self) -> None:
        try:
            self._settle_by(self._end, self._timeout)
        except DeadlineError:
            self.expire()

    def _settle_by(self, end: float, seconds: float) -> None:
        operation = self._operation
        if operation is None:
            return
        if not operation.sleep(max(0.0, end - time.monotonic()), helping=True):
            raise self._too_late(seconds)
        self.settle()

    def _too_late(self, seconds: float) -> DeadlineError:
        return DeadlineError(f"{self._what()} has not ended within its timeout of {seconds:g} s")

    def _complete(self, future: Future) -> None:
        if self._error is not None:
            future.set_exception(self._error)
        else:
            future.set_result(self._result)
