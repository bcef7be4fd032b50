"""Commits in memory: one counts when all ranks have it.

A rank keeps the commit before until it has heard that all ranks have saved the next one. So there are two copies for
the length of `commit()`, and never do some ranks have nothing but the one and others nothing but the other:

    rank 0: has 3 | saves 4 | votes | hears that all have 4: drops 3
    rank 1: has 3 | saves 4 | votes | fails before it hears: has 3, and 4 undecided

When ringdp has been initialised again, all take the greatest number that any rank *has*: what one has, all have saved.
"""

from __future__ import annotations

import contextlib
from typing import Any, Protocol

import numpy as np

from ringdp import world
from ringdp.constants import Max
from ringdp.errors import HorovodInternalError, MismatchError, PeerError
from ringdp.numpy.ops import operations


class Holder(Protocol):
    """A state that is saved in memory."""

    def save(self) -> None:
        """See `ringdp.elastic.State`."""
        ...

    def _copies(self) -> Any:
        """What `save()` has made last: the objects themselves, which the next `save()` leaves as they are."""
        ...

    def _put_copies(self, copies: Any) -> None:
        """`restore()` is to bring these back."""
        ...


class Voted:
    """The commits in memory of one state."""

    def __init__(self, holder: Holder) -> None:
        self._holder = holder
        self.number = 0  # of the last commit that all ranks have
        self._undecided: Any = (
            None  # the copies of the next one, while it is not known whether all ranks have it
        )

    def save(self) -> None:
        """Save the next commit, on all ranks or on none. Collective.

        Raises:
            PeerError: some rank could not save: it has its own error.
            MismatchError: the ranks are not at the same commit.
        """
        before = self._holder._copies()
        try:
            if self._undecided is not None:
                raise MismatchError(
                    f"rank {world.rank()}: commit(): an error in the last one was caught, and whether all ranks have "
                    "that is not known here: let elastic.run go on from it, or call sync() on all ranks"
                )
            self._holder.save()
        except BaseException as error:
            self._holder._put_copies(before)
            if isinstance(error, Exception):  # the others wait for a vote
                with contextlib.suppress(HorovodInternalError):
                    self._vote(has_saved=False)
            raise
        saved = self._holder._copies()
        self._undecided = saved
        self._holder._put_copies(before)
        refusal = self._vote(has_saved=True)
        self._undecided = None
        if refusal is not None:
            raise refusal
        self._holder._put_copies(saved)
        self.number += 1

    def go_on_from(self, number: int) -> None:
        """All ranks have been given what one of them has, as this commit."""
        self.number, self._undecided = number, None

    def settle(self, number: int) -> bool:
        """All ranks have this commit, the greatest number of any: take it, if this rank has not heard so before.

        Returns:
            Whether `restore()` brings back another one now than it would have before.
        """
        undecided = self._undecided
        takes = undecided is not None and number == self.number + 1
        if takes:
            self._holder._put_copies(undecided)
        self.go_on_from(number)
        return takes

    def _vote(self, has_saved: bool) -> HorovodInternalError | None:
        """Why the commit does not count; None: it does."""
        rank = world.rank()
        mine = np.array([-1 if has_saved else rank, self.number, -self.number], np.int64)
        failed, most, least = operations.allreduce(mine, name="elastic.vote", op=Max).tolist()
        if failed >= 0:
            return PeerError(f"rank {rank}: commit(): rank {failed} could not save; the commit before counts")
        if most != -least:
            return MismatchError(
                f"rank {rank}: commit(): the ranks are at different commits, numbers {-least} to {most}: an error in "
                "an earlier one was caught. Let elastic.run go on from it, or call sync() on all ranks"
            )
        return None
