"""Ending a job in order when some rank is asked to: all ranks stop after the same step, save, and exit with 143.

A rank is asked by a signal (`handle`) or by its own program (`request_stop`), and only notes it. The votes of an
optimizer over all ranks carry the note, and so does `should_stop()`: what these have merged is known to all ranks at
the same place of their programs, and only that is acted on. An optimizer over some of the ranks has no say.

Where a rank stops: after the step of the optimizer that ends an iteration (`Rounds`), or wherever the program looks, if
it calls `should_stop()`. Ranks that have joined (`ringdp.join`) take part: whoever stops joins them, so that all come
out of `join()` together.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from ringdp import watch

if TYPE_CHECKING:
    from ringdp.process_sets import ProcessSet
    from ringdp.world import World

EXIT_CODE = 128 + signal.SIGTERM
_BY_PROGRAM = -1  # in place of a signal's number
_NAME = "ringdp.stop"

Hook = TypeVar("Hook", bound=Callable[[], Any])

_hooks: list[Callable[[], Any]] = []
_asked = 0  # this process: by which signal
_in_hook = False
_ends = False  # it is on its way out: the hooks are running, or have run


class Rounds:
    """Which optimizer's step ends an iteration: of several, the one that stepped last before one did so again."""

    def __init__(self) -> None:
        self._round: set[Hashable] = set()
        self._last: Hashable = None
        self._closing: Hashable = None  # None: the first round is not over
        self._since: set[Hashable] = (
            set()
        )  # steps since `stepped` was first told that there is a reason to stop

    def stepped(self, optimizer: Hashable, is_only: bool, reason: bool) -> bool:
        """True if an iteration ends here.

        Where the pattern changes, the second step of any optimizer since there is a `reason` counts as an end.
        """
        if optimizer in self._round:
            self._closing = self._last
            self._round.clear()
        self._round.add(optimizer)
        self._last = optimizer
        again = optimizer in self._since
        if reason:
            self._since.add(optimizer)
        return again or optimizer == self._closing or (self._closing is None and is_only)


@dataclass
class Stopping:
    """How far one world has come with it."""

    decided: bool = False  # all ranks know that they stop, since the same step
    looks: bool = False  # something of this rank will hear of a request
    in_program: bool = False  # should_stop() was called: the program stops by itself
    stopping: bool = False  # this rank is in stop(), or was
    rounds: Rounds = field(default_factory=Rounds)
    steps: dict[Hashable, int] = field(default_factory=dict)  # of each optimizer

    def most_steps(self) -> int:
        """Of the optimizer that has stepped most often."""
        return max(self.steps.values(), default=0)


# --- what users call ------------------------------------------------------------------------------


def on_preempt(callback: Hook) -> Hook:
    """Let `callback()` be called on every rank when the job is asked to stop: the place to save a checkpoint.

    It is called once, after the same step on all ranks, with that step's parameters, so it may use collective
    operations. Several are called in the order in which they were registered. Then every rank exits with code 143. It
    is called within `optimizer.step()`: what the training loop does after that (a scheduler's step, counters) has not
    been done for this step. May be called before `init()`, and as a decorator; returns `callback`.

    An optimizer whose ranks are all ranks of the job looks for requests in every step; a loop without one calls
    `should_stop()`. A request that comes before either is there ends the job at once, as it would without ringdp.
    """
    if not callable(callback):
        raise TypeError(f"on_preempt needs a function without arguments, not a {type(callback).__name__}")
    _hooks.append(callback)
    return callback


def request_stop() -> None:
    """Ask all ranks to stop after this step, as a signal would. On any rank; may be called by a signal handler."""
    _note(_BY_PROGRAM)


def should_stop() -> bool:
    """Whether some rank was asked to stop. Collective, and the answer is the same on all ranks.

    To be called once an iteration, on all ranks, in loops without an optimizer, or where more than `optimizer.step()`
    belongs to a step. From the first call on optimizers do not stop the job any more; the loop does, by `stop()` or as
    it likes. A rank that has joined (`join()`) is not asked.

    Raises:
        NotInitializedError: before `init()`.
        PeerError, DeadlineError, TransportError: as for any operation.
    """
    from ringdp import world

    here = world.current()
    here.stopping.looks = here.stopping.in_program = True
    if not here.stopping.stopping:
        agree(here, f"{_NAME}.asked")
    return here.stopping.decided


def stop() -> NoReturn:
    """Call what `on_preempt` has registered, then end this rank with exit code 143 (SystemExit). On all ranks alike.

    Raises:
        NotInitializedError: before `init()`.
        PeerError, DeadlineError, TransportError: as for any operation.
    """
    import numpy as np

    from ringdp import world
    from ringdp.joined import join
    from ringdp.numpy.ops import operations

    here = world.current()
    if not here.stopping.stopping:
        here.stopping.decided = here.stopping.stopping = True
        told = operations.allgather(np.array([[here.place.rank, _asked]]), f"{_NAME}.now")
        if here.place.rank == told[0][0]:
            _say(here, [(int(rank), int(number)) for rank, number in told if number])
        if len(told) < here.place.size:
            join()  # others have, and wait there
        _call_hooks()
    raise SystemExit(EXIT_CODE)


# --- what is asked --------------------------------------------------------------------------------


def handle(number: int) -> bool:
    """A signal of RINGDP_PREEMPT_SIGNALS has come: True if it is noted, False if it ends the process as it always did.

    A launcher sends SIGTERM to the survivors of a rank that has died, too. Nothing can be saved together then.
    """
    from ringdp import world

    here = world._world
    if _ends or here is None or here.pid != os.getpid():
        return _ends
    if (
        here.engine.is_broken()
    ):  # a process of this host has died, or MPI or a GPU has failed: no step will end
        return False
    if not (here.stopping.looks or any(member.exchanges_in(0) for member in list(here.members))):
        return False
    _note(number)
    return True


def _note(number: int) -> None:
    global _asked
    _asked = _asked or number


# --- what ranks tell each other -------------------------------------------------------------------


def goes_on() -> bool:
    """What this rank says in a vote."""
    return _asked == 0


def voted(here: World, go_on: bool, ranks: int) -> None:
    """What the votes of so many ranks have said together."""
    if not go_on and ranks == here.place.size:
        here.stopping.decided = True


def agree(here: World, name: str) -> None:
    """What votes do, by an operation of this name."""
    import numpy as np

    from ringdp.constants import Sum
    from ringdp.numpy.ops import operations

    mine = np.array([int(_asked != 0 or here.stopping.decided)])
    here.stopping.decided = bool(operations.allreduce(mine, name=name, op=Sum)[0])


def stepped(here: World, optimizer: Hashable, of_all: bool) -> None:
    """An optimizer of this rank has updated its parameters: where this ends an iteration, all ranks may stop.

    Args:
        optimizer: tells it from others.
        of_all: it exchanges among all ranks of the job. (Others step on some ranks, which must not decide anything.)
    """
    state = here.stopping
    state.steps[optimizer] = state.steps.get(optimizer, 0) + 1
    watch.stepped()
    if not of_all:
        return
    state.looks = True
    if here.place.size == 1 and _asked:
        state.decided = True
    ends = state.rounds.stepped(optimizer, here.plans.get(0, 0) <= 1, state.decided)
    if state.decided and ends and not state.in_program and not _in_hook:
        stop()


def when_joining(here: World) -> list[int]:
    """What this rank says to those that leave `join()` together with it: see `have_joined`."""
    state = here.stopping
    return [int(_asked != 0 or state.decided), int(state.in_program), int(state.stopping)]


def have_joined(here: World, said: Any, process_set: ProcessSet) -> None:
    """All ranks have joined, and each has `said` something (rows of numbers). Some may have come there to stop."""
    state = here.stopping
    asked, in_program, stopping = (bool(column.any()) for column in said.T)
    if process_set.process_set_id != 0 or state.stopping or not asked:
        return
    state.decided, state.in_program = True, in_program
    if stopping:
        state.stopping = True
        _call_hooks()
        raise SystemExit(EXIT_CODE)
    if not in_program:
        stop()


def _call_hooks() -> None:
    global _ends, _in_hook
    if _ends:
        return
    _ends = _in_hook = True
    try:
        for hook in list(_hooks):
            hook()
    finally:
        _in_hook = False


def _say(here: World, asked: list[tuple[int, int]]) -> None:
    steps = here.stopping.most_steps()
    after = f"after step {steps}" if steps else "here"
    names = {_BY_PROGRAM: "request_stop()"}
    who = ", ".join(f"rank {rank} by {names.get(n) or signal.Signals(n).name}" for rank, n in asked[:8])
    who += f" and {len(asked) - 8} more" if len(asked) > 8 else ""
    print(
        f"ringdp: all ranks stop {after}; asked: {who or 'a rank that has joined'}",
        file=sys.stderr,
        flush=True,
    )
