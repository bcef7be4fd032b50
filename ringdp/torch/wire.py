"""What an exchange asks of the core: open a plan, submit a bucket, vote, and named operations beside the plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ringdp import _core, preempt, world
from ringdp.buckets import BUCKET_BYTES
from ringdp.constants import Average, Max, ReduceOp, Sum
from ringdp.ops import Handle
from ringdp.process_sets import ProcessSet, global_process_set
from ringdp.requests import usable
from ringdp.torch import device
from ringdp.torch.adapter import DTYPES
from ringdp.torch.bucket import Bucket
from ringdp.torch.checks.options import Checks
from ringdp.torch.comm_hook import CommHook, GradBucket, Waits
from ringdp.torch.compression import NAMES, Compressor, NoneCompressor
from ringdp.torch.ops import operations
from ringdp.torch.plan import Plan
from ringdp.torch.vote import Vote
from ringdp.torch.weights import Code, code_for
from ringdp.words import ranks_in_words

Half = _core.schedules.Half

ELEMENTS, PARAMETERS = "elements", "parameters"  # what shards are of


@dataclass(frozen=True)
class Options:
    """What the user asked of a DistributedOptimizer."""

    op: ReduceOp = Average
    passes: int = 1  # backward passes of a window
    predivide: float = 1.0
    sparse_as_dense: bool = False
    bucket_bytes: int = BUCKET_BYTES
    process_set: ProcessSet = global_process_set
    compression: type[Compressor] = NoneCompressor
    shard: str = ""  # of what each rank steps a part: see ringdp.torch.sharded.how
    checks: Checks = Checks()

    @property
    def scale(self) -> tuple[float, float]:
        """What multiplies the gradients before and after the sum."""
        return 1 / self.predivide, self.predivide

    def __str__(self) -> str:
        return (
            f"op {self.op.name}, backward_passes_per_step {self.passes}, "
            f"gradient_predivide_factor {self.predivide}, compression {NAMES[self.compression]}"
            f"{f', shards of {self.shard}' if self.shard else ''}{self.checks}"
        )


class Wire:
    """One optimizer's connection to the core of the current world."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.world = world.current()
        self.set = usable(options.process_set)
        self.ranks = options.process_set.size()
        self.rank = options.process_set.rank() or 0  # this one's number among them
        # The ranks of a set make its optimizers in the same order: so the number is the same on all.
        number = self.world.plans.get(self.set, 0)
        self.world.plans[self.set] = number + 1
        self.name = f"optimizer.{number}"
        self._version = 0
        self._digest = 0
        self._opening: Handle[int] | None = None
        self.active: int | None = None  # in this window: ranks by which averages are divided, unless by all

    def open(self, plan: Plan) -> None:
        """Start to agree on a plan; the first `submit` or `vote` waits for it.

        That one raises MismatchError with the first line that differs, on every rank.
        """
        self._version += 1
        self._digest = plan.digest
        core = self.world.engine.open_plan(self.set, f"{self.name}.plan.{self._version}", plan.text)
        self._opening = Handle(core, None, lambda core: int(core.lane()), self.world)

    def agreed(self) -> int:
        """The lane that the plan was given; waits for it. Raises as `open` says."""
        assert self._opening is not None
        return self._opening.wait()

    def weight_code(self, dtype: torch.dtype) -> Code:
        """How the ranks' weights travel in a bucket of this dtype."""
        return code_for(dtype, self.ranks)

    def submit(self, bucket: Bucket) -> Waits:
        """Reduce a bucket in place. Its memory must not be touched until the handle was waited for.

        With shards of elements, this rank's chunk alone is reduced."""
        half = Half.reduce_scatter if self.options.shard == ELEMENTS else Half.both
        return self._submit(bucket.flat, bucket.index, self._op_of(bucket), self.options.scale, half)

    def before_look(self, bucket: Bucket) -> None:
        """This rank's gradients are in the bucket: RINGDP_INJECT may spoil them before anybody looks at them."""
        engine, flat = self.world.engine, bucket.flat
        if engine.injects and bucket.gpu is None:
            dtype = int(DTYPES[flat.dtype])
            engine.before_look(self.set, self.agreed(), bucket.index, flat.data_ptr(), flat.numel(), dtype)

    def submit_again(self, flat: torch.Tensor, bucket: Bucket) -> Waits:
        """Reduce what lies as the bucket does, in place, as the bucket is: all of it, with shards too."""
        return self._submit(flat, bucket.index, self._op_of(bucket), self.options.scale, Half.both)

    def _op_of(self, bucket: Bucket) -> ReduceOp:
        weighed = bucket.tail.numel() > 0  # then the sum is divided by the sum of weights
        return Sum if weighed else self.options.op

    def gather(self, flat: torch.Tensor, index: int) -> Handle[None]:
        """Let all ranks have each other's chunks of what lies as bucket `index` does, in place."""
        return self._submit(flat, index, Sum, (1.0, 1.0), Half.all_gather)

    def own_chunk(self, flat: torch.Tensor) -> tuple[int, int]:
        """Which elements of such a bucket are this rank's chunk: (begin, end)."""
        return self.world.engine.own_chunk(
            self.set, flat.numel(), int(DTYPES[flat.dtype]), device.is_on_gpu(flat)
        )

    def own_part(self, bucket: Bucket) -> slice:
        """The elements of a bucket that are reduced on this rank."""
        return slice(*self.own_chunk(bucket.flat)) if self.options.shard == ELEMENTS else slice(None)

    def _submit(
        self, flat: torch.Tensor, index: int, op: ReduceOp, scale: tuple[float, float], half: Half
    ) -> Handle[None]:
        place = device.place_of(flat)
        on_gpu = () if place is None else (place.gpu, place.stream)
        core = self.world.engine.submit_bucket(
            self.set,
            self.agreed(),
            index,
            self._digest,
            flat.data_ptr(),
            flat.numel(),
            int(DTYPES[flat.dtype]),
            int(op),
            *scale,
            half,
            *on_gpu,
        )
        current_stream = None if place is None else place.current_stream
        return Handle(core, flat, lambda _: None, self.world, current_stream)

    def submit_by(self, hook: CommHook, bucket: GradBucket) -> Waits:
        """As `submit`, by a communication hook."""
        self.agreed()
        return hook.start(bucket)

    def for_hook(self, bucket: Bucket, is_last: bool) -> GradBucket:
        """What a communication hook is shown of a bucket."""
        name = f"{self.name}.plan.{self._version}.bucket.{bucket.index}"
        return GradBucket(bucket, is_last, name, self._digest, self.options.process_set)

    def vote(self, step: int, submitted: int, **said: Any) -> Vote:
        """What all ranks say together. `said`: further fields of `Vote`.

        Raises:
            MismatchError: the ranks disagree on plan, generation or step.
        """
        mine = Vote(self._digest, self.world.generation, step, submitted, go_on=preempt.goes_on(), **said)
        core = self.world.engine.vote(self.set, self.agreed(), mine.encode())
        words = Handle(core, None, lambda core: list(core.words()), self.world).wait()
        steps = self._steps_of_ranks(mine) if Vote.steps_differ(words) else ""
        vote = Vote.decode(words, self.name, steps)
        preempt.voted(self.world, vote.go_on, self.ranks)
        return vote

    def _steps_of_ranks(self, mine: Vote) -> str:
        """Which rank is at which step, in words. All ranks ask, as all have the same merged vote."""
        given = torch.tensor([-1 if mine.joined else mine.step])
        steps = operations.allgather(given, f"{self.name}.steps", self.options.process_set).tolist()
        at: dict[int, list[int]] = {}
        for rank, step in zip(self.options.process_set.ranks or (), steps, strict=True):
            at.setdefault(step, []).append(rank)
        return "; ".join(
            f"{ranks_in_words(ranks)} at {step}" for step, ranks in sorted(at.items()) if step >= 0
        )

    def rescale(self, reduced: torch.Tensor) -> torch.Tensor:
        """An average over all ranks made one over those that have not joined, in place, where that is wanted."""
        return reduced if self.active is None else reduced.mul_(self.ranks).div_(self.active)

    def max_(self, marks: torch.Tensor, what: str) -> None:
        """The greatest mark of all ranks, in place."""
        self.start_max(marks, what).wait()

    def start_max(self, marks: torch.Tensor, what: str) -> Handle[torch.Tensor]:
        """As `max_`, started."""
        name = f"{self.name}.{what}"
        return operations.allreduce_async_(marks, name=name, op=Max, process_set=self.options.process_set)

    def reduce_(self, flat: torch.Tensor, what: str, op: ReduceOp | None = None) -> None:
        """What a bucket's exchange would do to these gradients, in place; or another operation."""
        op = self.options.op if op is None else op
        operations.allreduce_(
            flat, None, f"{self.name}.{what}", op, *self.options.scale, self.options.process_set
        )

    def sum(self, numbers: Sequence[int], what: str) -> Handle[torch.Tensor]:
        """Start to add up each of these numbers over the ranks."""
        given = torch.tensor(numbers, dtype=torch.int64)
        name = f"{self.name}.{what}"
        return operations.allreduce_async_(given, name=name, op=Sum, process_set=self.options.process_set)

    def from_rank_0(self, numbers: list[int], what: str) -> list[int]:
        """The list of as many numbers of the first rank."""
        assert self.options.process_set.ranks is not None
        root = self.options.process_set.ranks[0]
        given = torch.tensor(numbers, dtype=torch.int64)
        name = f"{self.name}.{what}"
        return operations.broadcast(given, root, name, self.options.process_set).tolist()
