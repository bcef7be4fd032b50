"""Which ranks take part in an operation. So far: all of them."""

from __future__ import annotations

from dataclasses import dataclass

from ringdp import world


@dataclass(frozen=True)
class ProcessSet:
    """A set of ranks of the job."""

    process_set_id: int

    def rank(self) -> int:
        """This rank's number in the set."""
        return world.rank()

    def size(self) -> int:
        """The number of ranks in the set."""
        return world.size()

    def included(self) -> bool:
        """True if this rank is one of the set."""
        return True


global_process_set = ProcessSet(0)
