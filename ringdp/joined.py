"""`join()`: this rank has no more data, while others go on.

In the core a rank that has joined comes to every named operation that others begin, with zeros (or what else changes
nothing); see csrc/agree/meetings.h. Optimizers exchange by plans, which a rank knows beforehand: those of this rank go
on with empty windows, until in a window's vote all ranks have joined.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from typing import Protocol

import numpy as np

from ringdp import preempt, world
from ringdp.constants import Dtype, OpKind
from ringdp.errors import UsageError
from ringdp.ops import Handle
from ringdp.process_sets import ProcessSet, global_process_set
from ringdp.requests import usable

NAME = "ringdp.join"
DIVIDE_BY = ("all", "active")


class Member(Protocol):
    """Something of this rank that exchanges by a plan of its own."""

    def exchanges_in(self, process_set_id: int) -> bool:
        """True if it exchanges among the ranks of this process set."""
        ...

    def join_window(self, divide_by_active: bool) -> bool:
        """Take part in one window with nothing to contribute; True if all ranks did. Waits for the others."""
        ...

    def like_this_thread(self) -> contextlib.AbstractContextManager[object]:
        """For another thread, to call `join_window` inside: GPUs are asked where the calling thread would ask them."""
        ...


def join(device: int = -1, *, divide_by: str = "all", process_set: ProcessSet = global_process_set) -> int:
    """Say that this rank has no more data, and wait until all ranks of the set have said so.

    Meanwhile it takes part in what the others exchange, optimizers included, with tensors that change nothing: zeros in
    sums and averages, no rows in an all-gather. A broadcast whose root has joined fails on all ranks, and so does an
    all-to-all. Parameters of a rank that has joined do not move: afterwards broadcast them from the rank returned.

    Args:
        device: not used (Horovod's GPU number).
        divide_by: what averages are divided by meanwhile: the number of "all" ranks, as in Horovod, or of those that
            are "active", which have not joined. The same on all ranks.
        process_set: the ranks that join.

    Returns:
        The rank (of the job) that joined last: that has exchanged most since the last join; of several the highest.

    Raises:
        UsageError: another `divide_by`.
        SystemExit: the job was asked to stop meanwhile, and does: see `on_preempt`.
        DeadlineError, PeerError, TransportError: as for any operation.
    """
    if divide_by not in DIVIDE_BY:
        raise UsageError(f"divide_by must be one of {', '.join(DIVIDE_BY)}, not {divide_by!r}")
    from ringdp import _core
    from ringdp.numpy.ops import operations

    here = world.current()
    number = usable(process_set)
    submission = _core.Submission(
        int(OpKind.join), NAME, number, 0, 0, int(Dtype.uint8), [], 0, 1.0, 1.0, -1, []
    )
    submission.divides_by_active = divide_by == "active"
    gc.collect()  # optimizers that were dropped are gone on all ranks
    members = [member for member in list(here.members) if member.exchanges_in(number)]
    handle = Handle(here.engine.submit(submission), None, lambda core: int(core.words()[0]), here)
    _take_part(members, divide_by == "active", here)
    work = handle.wait() + here.windows.pop(number, 0)
    said = operations.allgather(np.array([[work, *preempt.when_joining(here)]]), NAME, process_set)
    preempt.have_joined(here, said[:, 1:], process_set)
    ranks = process_set.ranks
    assert ranks is not None
    return ranks[max(range(len(ranks)), key=lambda r: (said[r][0], r))]


def _take_part(members: list[Member], divide_by_active: bool, here: world.World) -> None:
    """Empty windows of all, until all ranks have joined. Others may use their optimizers in any order, so each has a
    thread of its own where there are several.
    """
    failures: list[BaseException] = []

    def go_on(member: Member) -> None:
        try:
            while not member.join_window(divide_by_active):
                pass
        except BaseException as failure:
            failures.append(failure)

    def in_thread(member: Member, like_caller: contextlib.AbstractContextManager[object]) -> None:
        with world.use(here), like_caller:
            go_on(member)

    threads = [
        threading.Thread(target=in_thread, args=(member, member.like_this_thread())) for member in members[1:]
    ]
    for thread in threads:
        thread.start()
    for member in members[:1]:
        go_on(member)
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
