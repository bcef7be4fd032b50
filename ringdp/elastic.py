"""State that is committed to memory and restored when an exchange fails: the part of Horovod's elastic interface that
knows no framework. `ringdp.torch.elastic` has the rest.

What works: ranks that are all alive go back to the last commit together and go on; under `ringdp run --elastic` also
without those that are lost (ringdp/recovery.py); and where a folder is given, commits are written to it as well
(`ringdp.commits`), so that a job that has failed goes on from there when it is started again. Lost ranks can have
replacements, which get the state of those that live (ringdp/spares.py). See docs/elastic.md.
"""

from __future__ import annotations

import copy
import enum
import functools
import os
import pickle
import queue
import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ringdp import recovery, world
from ringdp.commits import generators
from ringdp.commits.kept import Kept, Payloads, folder_for
from ringdp.commits.loading import Payload
from ringdp.commits.voted import Voted
from ringdp.constants import Max
from ringdp.errors import HorovodInternalError, HostsUpdatedInterrupt, PeerError, UsageError
from ringdp.numpy.ops import operations
from ringdp.process_sets import add_process_set

RESET_LIMIT = 3


class HostUpdateResult(enum.IntFlag):
    """What has happened to the hosts of the job."""

    no_update = 0
    removed = 1
    added = 2
    mixed = 3


class State:
    """What the ranks must have alike, with a committed copy in memory. Derive from it, or use `TorchState`.

    Args:
        bcast_object: gives every rank the object of rank 0, as `broadcast_object`.
        get_rank: this rank's number.
    """

    def __init__(self, bcast_object: Callable[[Any], Any], get_rank: Callable[[], int]) -> None:
        self._bcast_object = bcast_object
        self._rank = get_rank
        self._host_messages: queue.SimpleQueue[tuple[float, int]] = queue.SimpleQueue()
        self._last_updated_timestamp: float = 0
        self._reset_callbacks: list[Callable[[], Any]] = []
        self._commits = 0  # what shows that there is progress
        self._voted = Voted(self)
        self._kept: Kept | None = None  # the commits on the disk

    def register_reset_callbacks(self, callbacks: Iterable[Callable[[], Any]]) -> None:
        """Functions to call after each reset, before `sync()`: to scale the learning rate by `size()` anew, say."""
        self._reset_callbacks.extend(callbacks)

    def on_reset(self) -> None:
        """`elastic.run` has initialised ringdp again."""
        self._host_messages = queue.SimpleQueue()
        self.reset()
        for callback in self._reset_callbacks:
            callback()

    def on_hosts_updated(self, timestamp: float, update_res: int) -> None:
        """The hosts of the job are about to change: the next `commit()` or `check_host_updates()` raises. Counts on
        rank 0. May be called by a signal handler. (ringdp itself does not call it.)

        Args:
            timestamp: of the change; one that is not newer than the last is no news.
            update_res: a `HostUpdateResult`.
        """
        self._host_messages.put((timestamp, update_res))

    def commit(self) -> None:
        """`save()` on all ranks or on none, then `check_host_updates()`. Collective. A copy of everything: not for
        every batch.

        The commit counts when all ranks have saved it, which a vote tells; until then each keeps the one before as
        well, so that for the length of this call there are two copies.

        Where there is a folder, a thread writes what was saved to it meanwhile; nobody waits for the disk. A commit
        that comes while the one before is still being written, on some rank, is not written.

        Raises:
            PeerError: some rank could not save, which has its own error: the commit before counts on all.
            MismatchError: the ranks are at different commits, as an error in an earlier one was caught on some.
        """
        self._voted.save()
        if self._kept is not None:
            self._kept.write()
        self.check_host_updates()
        self._commits += 1

    def resume(self) -> int | None:
        """Go on from the newest commit in the folder, if there is one. Collective. `elastic.run` calls it first of all.

        A file that is torn or corrupt is named on stderr, and the commit before is taken. As many ranks as have
        committed also get their random numbers back (Python's, NumPy's, the framework's).

        Returns:
            The commit's number, counted over all restarts; None where there is none, or no folder, or this state has
            committed or gone on already.

        Raises:
            UsageError: there are commits, and none can be used, or they are of another state than this one; on every
                rank.
        """
        return None if self._kept is None else self._kept.resume()

    def flush(self, seconds: float | None = None) -> bool:
        """Wait until the last commit is in the folder. Local. `elastic.run` does it before it returns.

        Args:
            seconds: at most so long; default 600.

        Returns:
            Whether nothing is being written any more.
        """
        return self._kept is None or self._kept.flush(seconds)

    def check_host_updates(self) -> None:
        """Raise HostsUpdatedInterrupt, on all ranks, if rank 0 was told that hosts change. Collective, no copy."""
        previous = newest = self._last_updated_timestamp
        changes = 0
        while not self._host_messages.empty():
            timestamp, change = self._host_messages.get()
            if timestamp > newest:
                newest = timestamp
                changes |= int(change)
        previous, self._last_updated_timestamp, changes = self._bcast_object((previous, newest, changes))
        if self._last_updated_timestamp > previous:
            self._commits += 1  # nothing will be lost: as good as a commit
            raise HostsUpdatedInterrupt(skip_sync=changes == HostUpdateResult.removed)

    def save(self) -> None:
        """Copy what is there now: what `restore()` will bring back. Local: `commit()` asks the others, too.

        New copies in the place of the old ones, which stay as they are: `commit()` may have to go back to them.
        """
        raise NotImplementedError

    def restore(self) -> None:
        """Bring back what was saved last. Local: other ranks may be in trouble."""
        raise NotImplementedError

    def sync(self) -> None:
        """Give every rank what rank 0 has. Collective."""
        raise NotImplementedError

    def reset(self) -> None:
        """What must be forgotten or counted anew after a reset, before `sync()`."""

    # --- see ringdp.commits.voted.Holder ---

    def _copies(self) -> Any:
        return None  # of a state that derives from this class itself only the last are there

    def _put_copies(self, copies: Any) -> None:
        pass


class ObjectState(State):
    """Python objects, each an attribute: `ObjectState(broadcast_object, rank, epoch=0, batch=0)`.

    They are deep-copied when saved and when restored, so that a list that grew after the commit is short again; and
    pickled by `sync()`, which gives every rank what rank 0's attributes are now. (Horovod keeps references, and
    sends what was saved last.)

    Args:
        bcast_object, get_rank: see `State`.
        folder: commits are also written there, for restarts (docs/elastic.md), pickled; default: where
        RINGDP_COMMIT_DIR
            says, and nowhere if it says nothing or this is empty.
        kwargs: the attributes' first values.
    """

    def __init__(
        self,
        bcast_object: Callable[[Any], Any],
        get_rank: Callable[[], int],
        *,
        folder: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(bcast_object, get_rank)
        self._saved_state: dict[str, Any] = {}
        self._keep(kwargs)
        path = folder_for(folder)
        if path is not None:
            self._kept = Kept(path, self)

    def save(self) -> None:
        self._keep({name: getattr(self, name) for name in self._saved_state})

    def restore(self) -> None:
        for name, value in copy.deepcopy(self._saved_state).items():
            setattr(self, name, value)

    def sync(self) -> None:
        values = {name: getattr(self, name) for name in self._saved_state}
        number, values = self._bcast_object((self._voted.number, values))
        self._keep(values)
        self._voted.go_on_from(number)

    def _keep(self, values: dict[str, Any]) -> None:
        self._saved_state = copy.deepcopy(values)
        for name, value in values.items():
            setattr(self, name, value)

    def _copies(self) -> Any:
        return self._saved_state

    def _put_copies(self, copies: Any) -> None:
        self._saved_state = copies

    # --- see ringdp.commits.kept.Holder ---

    def _payloads(self) -> Payloads:
        saved, numbers = self._saved_state, generators.states()
        return Payloads(lambda sink: pickle.dump(saved, sink), lambda sink: pickle.dump(numbers, sink))

    def _put_state(self, state: Payload) -> None:
        self._take_saved(pickle.loads(state))

    def _fits(self, own: Payload) -> bool:
        return True

    def _put_parts(self, parts: Iterable[tuple[int, Payload]], as_before: bool) -> None:
        for rank, part in parts:
            if rank == self._rank():
                generators.put(pickle.loads(part))

    def _take_saved(self, values: dict[str, Any]) -> None:
        """What was committed is what is there.

        Raises:
            UsageError: the names are others.
        """
        refuse_other_names(values, self._saved_state)
        self._saved_state = values
        ObjectState.restore(self)


def refuse_other_names(committed: Iterable[str], here: Iterable[str]) -> None:
    """Raise UsageError unless they are the same."""
    theirs, ours = sorted(committed), sorted(here)
    if theirs != ours:
        raise UsageError(
            f"rank {world.rank()}: the commit is of another state than this one: it has "
            f"{', '.join(theirs) or 'nothing'}, here are {', '.join(ours) or 'none'}. "
            "To begin anew, delete the folder of commits"
        )


def run_fn(
    func: Callable[..., Any], reset: Callable[[Exception], None], reset_limit: int = RESET_LIMIT
) -> Callable[..., Any]:
    """`func(state, ...)`, begun again after each failure: see `ringdp.torch.elastic.run`.

    Args:
        func: takes a `State` first.
        reset: shuts ringdp down and initialises it again; is given what has happened.
        reset_limit: so many resets after failures, without a commit in between, before it gives up.
    """

    @functools.wraps(func)
    def wrapper(state: State, *args: Any, **kwargs: Any) -> Any:
        failures, commits, skip_sync, must_resume = 0, state._commits, False, True
        recovery.begins()
        if recovery.is_new():  # the others are in it already, and begin again together with this one
            failures, skip_sync = _begin_again(state, reset, None, 0, False, reset_limit)
            must_resume = False
            state.on_reset()
        while True:
            cause: Exception
            try:
                if must_resume:
                    skip_sync = state.resume() is not None
                    must_resume = False
                if not skip_sync:
                    state.sync()
                recovery.has_state()
                result = func(state, *args, **kwargs)
                state.flush()
                # All ranks return together: one that fails in its last step is not left alone by those that did not.
                if world.is_initialized():
                    operations.allreduce(np.zeros(1), name="elastic.run has returned")
                    if not recovery.all_are_done():
                        raise PeerError(f"rank {world.rank()}: a rank was lost while elastic.run returned")
                recovery.ends()
                return result
            except HorovodInternalError as error:
                cause = error
                failures = failures + 1 if state._commits == commits else 1
                state.restore()
                skip_sync = False
            except HostsUpdatedInterrupt as interrupt:
                cause = interrupt
                failures = 0
                skip_sync = interrupt.skip_sync
            commits = state._commits
            failures, skip_sync = _begin_again(state, reset, cause, failures, skip_sync, reset_limit)
            state.on_reset()
            del cause  # with its traceback, which holds the engine and the memory that were left

    return wrapper


def _begin_again(
    state: State,
    reset: Callable[[Exception], None],
    cause: Exception | None,
    failures: int,
    skip_sync: bool,
    reset_limit: int,
) -> tuple[int, bool]:
    """All ranks come together after `cause`, and go back to the same commit. Collective.

    Args:
        cause: None on a new rank, for which it is the beginning.
        failures, skip_sync: as this rank has them.

    Returns:
        `failures` and `skip_sync`, as all have them.

    Raises:
        HorovodInternalError: they cannot go on.
    """
    while True:
        try:
            if cause is not None:
                _tell(cause, failures)
                reset(cause)
            mine = [failures, not skip_sync, state._voted.number, *recovery.standing()]
            failures, must_sync, number, *standing = _greatest(mine)
            break
        except HorovodInternalError as error:  # another rank is lost already, or they cannot go on
            if not recovery.is_on():
                raise
            cause = error
    recovery.refuse_unlike(standing)
    is_other = state._voted.settle(number)
    if is_other or (failures and isinstance(cause, HostsUpdatedInterrupt)):  # all go back, to the same
        state.restore()
    if failures > reset_limit:
        raise HorovodInternalError(
            f"rank {world.rank()}: elastic.run gives up after {reset_limit} resets without a commit since; "
            f"the last failure was {type(cause).__name__}: {cause}"
        ) from cause
    return failures, not must_sync


def reset(cause: Exception) -> None:
    """Shut down and initialise again, as it was: the same communicator and process sets.

    Under `ringdp run --elastic` with the ranks that live (`ringdp.recovery`).

    Raises:
        PeerError: some rank has not come within RINGDP_TIMEOUT; or ranks are lost, and too few are left.
    """
    here = world.current()
    if here.alive is not None:
        return recovery.recover(cause)
    kept = [here.process_sets[number] for number in sorted(here.process_sets)]
    process_sets = [one for one in kept if not one.is_of_a_group]
    if not world.leave():
        raise PeerError(
            f"rank {here.place.rank}: elastic.run cannot go on: after {type(cause).__name__} ({cause}) not all of "
            f"{here.place.size} ranks came to the reset within RINGDP_TIMEOUT={here.engine.timeout:g} s: one is lost, "
            "stopped or busy elsewhere. Start the job again from a checkpoint (on this rank, `state` holds the last "
            "commit); `ringdp run` does that with --restarts, or lets the others go on with --elastic"
        ) from cause
    world.init(*here.arguments)
    for process_set in process_sets:
        if process_set.process_set_id is None:  # added after init()
            add_process_set(process_set)


def _tell(cause: Exception, failures: int) -> None:
    """A line from rank 0, and from the ranks where it began: what the others see is that a rank has left."""
    rank = world.rank()
    if rank != 0 and isinstance(cause, PeerError):
        return
    where = "from the last commit" if failures else "with what is there"
    print(
        f"ringdp: rank {rank}: elastic.run goes on {where} after {type(cause).__name__}: {cause}",
        file=sys.stderr,
        flush=True,
    )


def _greatest(numbers: list[int]) -> list[int]:
    """Of all ranks, number by number."""
    mine = np.array(numbers, np.int64)
    return operations.allreduce(mine, name="elastic.run begins again", op=Max).tolist()
