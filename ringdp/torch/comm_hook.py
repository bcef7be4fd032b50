"""Communication hooks: the user's way to exchange a bucket, called as those of torch's DistributedDataParallel are.

    def hook(state, bucket: GradBucket) -> future

`optimizer.register_comm_hook(state, hook)` on every rank alike, between steps. The hook is called once for each bucket
of each window, in the order of the plan, which is the same on all ranks, with gradients recording switched off; often
while `backward()` still computes. It starts what it needs and returns at once. What it returns has a `wait()`: a
`torch.futures.Future`, a `ringdp.Handle`, or an object of its own, so that later stages of an exchange can be done in
`wait()`. That is called once a bucket, in the same order on all ranks, after the hooks of several buckets may have been
called. Its result is the reduced bucket, a flat tensor of `bucket.buffer()`'s size (or a list with that one tensor):
averaged already, as with DDP, and the same bits on every rank.

**Names.** A hook exchanges by ringdp's operations. Ranks may be at different buckets at a time, so every operation
needs a name: `bucket.name()`, or `bucket.name() + ".anything"` where there are several. These are the same on all ranks
for the same bucket, and those of different buckets, plans and optimizers differ. Pass
`process_set=bucket.process_set()`.

**Overflows.** GradScaler needs an inf or NaN of one rank to be seen by all. By default the exchange looks at the bucket
before it calls the hook, which takes one pass over its memory; if it finds one on any rank, every rank finds an inf
among its gradients afterwards, whatever the hook made of it. Two attributes of the function (or of the callable object)
say that this is not needed:

    hook.passes_not_finite = True   an inf or NaN on any rank makes the result inf or NaN on all: sums, casts
    hook.tests_finite = True        it looks itself, and calls `bucket.report_not_finite()` before it returns
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from ringdp.errors import UsageError
from ringdp.process_sets import ProcessSet

if TYPE_CHECKING:
    from ringdp.torch.bucket import Bucket


class Waits(Protocol):
    """Something under way."""

    def wait(self) -> Any:
        """Sleep until it is done; its result."""
        ...


class GradBucket:
    """A bucket as a communication hook sees it; the first five methods are those of torch.distributed.GradBucket."""

    def __init__(self, bucket: Bucket, is_last: bool, name: str, plan: int, process_set: ProcessSet) -> None:
        self._bucket = bucket
        self._is_last = is_last
        self._name = name
        self._plan = plan
        self._process_set = process_set
        self.is_finite = True  # unless the hook has reported otherwise

    def index(self) -> int:
        """The bucket's number in the plan: 0 leaves first."""
        return self._bucket.index

    def buffer(self) -> torch.Tensor:
        """The flat bucket itself, shape (elements,), of the parameters' dtype. A hook may reduce it in place. Gradients
        start at multiples of 64 bytes; what lies between them is zero, and should stay so."""
        return self._bucket.gradients

    def gradients(self) -> list[torch.Tensor]:
        """This rank's gradients, in their parameters' shapes: views of the buffer."""
        return [place for place in (slot.place for slot in self._bucket.slots) if place is not None]

    def parameters(self) -> list[torch.Tensor]:
        """The parameters, in the order of `gradients()`."""
        return [slot.param for slot in self._bucket.slots]

    def is_last(self) -> bool:
        """True for the last bucket of the window."""
        return self._is_last

    def set_buffer(self, tensor: torch.Tensor) -> None:
        """Copy `tensor` into the buffer."""
        self.buffer().copy_(tensor.reshape(-1))

    def name(self) -> str:
        """The prefix of the names of a hook's operations; the same on all ranks."""
        return self._name

    def plan(self) -> int:
        """A number that changes when the parameters' places do: state kept for a bucket holds as long as this."""
        return self._plan

    def process_set(self) -> ProcessSet:
        """The ranks that exchange."""
        return self._process_set

    def report_not_finite(self) -> None:
        """This rank has an inf or NaN that the result may not show: every rank gets an inf among its gradients."""
        self.is_finite = False


Hook = Callable[[Any, GradBucket], Any]


@dataclass(frozen=True)
class CommHook:
    """What `register_comm_hook` was given."""

    state: Any
    hook: Hook

    def __str__(self) -> str:
        """For the plan's text: the ranks must have the same."""
        kind = self.hook if hasattr(self.hook, "__qualname__") else type(self.hook)
        return f"{kind.__module__}.{kind.__qualname__}"

    @property
    def needs_look(self) -> bool:
        """The exchange itself must look for what is not finite."""
        return not (
            getattr(self.hook, "passes_not_finite", False) or getattr(self.hook, "tests_finite", False)
        )

    def start(self, bucket: GradBucket) -> Waits:
        """Call the hook."""
        with torch.no_grad():
            future = self.hook(self.state, bucket)
        if not callable(getattr(future, "wait", None)):
            raise UsageError(
                f"the communication hook {self} must return something with wait(), as a torch.futures.Future or "
                f"a ringdp.Handle; it returned a {type(future).__name__}"
            )
        return _Started(self, bucket, future)


class _Started:
    """A bucket that a hook exchanges."""

    def __init__(self, hook: CommHook, bucket: GradBucket, future: Waits) -> None:
        self._hook, self._bucket, self._future = hook, bucket, future

    def wait(self) -> None:
        """The result is in the bucket."""
        with torch.no_grad():
            result = self._future.wait()
            if isinstance(result, (list, tuple)) and len(result) == 1:
                result = result[0]
            flat = self._bucket.buffer()
            if not isinstance(result, torch.Tensor) or result.numel() != flat.numel():
                what = list(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
                raise UsageError(
                    f"the communication hook {self._hook} must give a tensor of the bucket's {flat.numel()} elements; "
                    f"it gave {what}"
                )
            if result.data_ptr() != flat.data_ptr() or result.dtype != flat.dtype:
                flat.copy_(result.reshape(-1))
