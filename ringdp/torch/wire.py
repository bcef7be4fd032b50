"""What an exchange asks of the core: open a plan, submit a bucket, vote, and named operations beside the plan."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ringdp import world
from ringdp.constants import Average, Max, ReduceOp
from ringdp.ops import Handle
from ringdp.process_sets import ProcessSet, global_process_set
from ringdp.torch.adapter import DTYPES
from ringdp.torch.bucket import Bucket
from ringdp.torch.compression import NAMES, Compressor, NoneCompressor
from ringdp.torch.ops import operations
from ringdp.torch.plan import MIB, Plan
from ringdp.torch.vote import Vote


@dataclass(frozen=True)
class Options:
    """What the user asked of a DistributedOptimizer."""

    op: ReduceOp = Average
    passes: int = 1  # backward passes of a window
    predivide: float = 1.0
    sparse_as_dense: bool = False
    bucket_bytes: int = 25 * MIB
    process_set: ProcessSet = global_process_set
    compression: type[Compressor] = NoneCompressor

    @property
    def scale(self) -> tuple[float, float]:
        """What multiplies the gradients before and after the sum."""
        return 1 / self.predivide, self.predivide

    def __str__(self) -> str:
        return (
            f"op {self.op.name}, backward_passes_per_step {self.passes}, "
            f"gradient_predivide_factor {self.predivide}, compression {NAMES[self.compression]}"
        )


class Wire:
    """One optimizer's connection to the core of the current world."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.world = world.current()
        # The ranks make their optimizers in the same order: so the number is the same on all.
        self.name = f"optimizer.{self.world.plans}"
        self.world.plans += 1
        self._version = 0
        self._digest = 0
        self._opening: Handle[int] | None = None

    def open(self, plan: Plan) -> None:
        """Start to agree on a plan; the first `submit` or `vote` waits for it.

        That one raises MismatchError with the first line that differs, on every rank.
        """
        self._version += 1
        self._digest = plan.digest
        core = self.world.engine.open_plan(
            self.options.process_set.process_set_id, f"{self.name}.plan.{self._version}", plan.text
        )
        self._opening = Handle(core, None, lambda core: int(core.lane()), self.world)

    def _lane(self) -> int:
        assert self._opening is not None
        return self._opening.wait()

    def submit(self, bucket: Bucket) -> Handle[None]:
        """Reduce a bucket in place. Its memory must not be touched until the handle was waited for."""
        core = self.world.engine.submit_bucket(
            self.options.process_set.process_set_id,
            self._lane(),
            bucket.index,
            self._digest,
            bucket.flat.data_ptr(),
            bucket.flat.numel(),
            int(DTYPES[bucket.flat.dtype]),
            int(self.options.op),
            *self.options.scale,
        )
        return Handle(core, bucket.flat, lambda _: None, self.world)

    def vote(self, step: int, submitted: int, in_plan: bool, complete: bool) -> Vote:
        """What all ranks say together.

        Raises:
            MismatchError: the ranks disagree on plan, generation or step.
        """
        mine = Vote(self._digest, self.world.generation, step, submitted, in_plan=in_plan, complete=complete)
        core = self.world.engine.vote(self.options.process_set.process_set_id, self._lane(), mine.encode())
        words = Handle(core, None, lambda core: list(core.words()), self.world).wait()
        return Vote.decode(words, self.name)

    def max_(self, marks: torch.Tensor, what: str) -> None:
        """The greatest mark of all ranks, in place."""
        operations.allreduce_(marks, name=f"{self.name}.{what}", op=Max, process_set=self.options.process_set)

    def reduce_(self, flat: torch.Tensor, what: str) -> None:
        """What a bucket's exchange would do to these gradients, in place."""
        operations.allreduce_(
            flat, None, f"{self.name}.{what}", self.options.op, *self.options.scale, self.options.process_set
        )

    def from_rank_0(self, numbers: list[int], what: str) -> list[int]:
        """Rank 0's list of as many numbers."""
        given = torch.tensor(numbers, dtype=torch.int64)
        name = f"{self.name}.{what}"
        return operations.broadcast(given, 0, name, self.options.process_set).tolist()
