"""Going on without ranks that are lost, by Open MPI's ULFM (`ringdp run --elastic`, docs/elastic.md).

When an exchange has failed, the ranks that live come together: whoever has noticed revokes the communicators, by which
the others notice, and leaves its engine; then all agree that they are here, make a communicator of those that live
(`MPI_Comm_shrink`), and initialise ringdp again over it: another generation, with other memory.

Processes of this host that do not come in time are killed first (`ringdp.fence`).

Where there are spares (`ringdp.spares`), they take part in that, and some come out of it as ranks.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ringdp import lost_ranks, spares, watch
from ringdp.errors import DeadlineError, HorovodInternalError, InitError, PeerError, UsageError
from ringdp.fence import Fence, NotRecovered
from ringdp.lost_ranks import named

if TYPE_CHECKING:
    from ringdp.process_sets import ProcessSet
    from ringdp.world import World

# Set by `ringdp run --elastic`.
VARIABLE, MIN_RANKS = "RINGDP_ELASTIC", "RINGDP_MIN_RANKS"
_ENABLED = ("OMPI_MCA_mpi_ft_enable", "1")  # what mpirun --with-ft ulfm tells its ranks
_SETS = "ringdp.process_sets"  # the operation by which new ranks are told of them

_FINALIZES = 5.0  # seconds, where ranks are lost: Open MPI then waits for them now and then, and for ever

_any_lost = False
_running = False  # this rank is in elastic.run, or has left it by an exception
_runs = 0  # so many times elastic.run has begun
_new = False  # this rank was a spare, and has not got the state yet


def is_wanted(environ: Mapping[str, str]) -> bool:
    """`ringdp run --elastic` has started this rank."""
    return environ.get(VARIABLE, "") not in ("", "0")


def prepare(MPI: Any, base: Any) -> spares.Living | None:
    """The communicators by which those that live find each other; None where nobody wants to. Collective over `base`.

    Raises:
        InitError: this MPI cannot, or was not told.
    """
    if not is_wanted(os.environ):
        return None
    name, value = _ENABLED
    if not hasattr(MPI.Comm, "Shrink") or os.environ.get(name) != value:
        raise InitError(
            f"{VARIABLE} is set, but ranks that are lost cannot be recovered here: that takes Open MPI 5 with ULFM, "
            "started by `ringdp run --elastic` (mpirun --with-ft ulfm --mca pml ob1). With another MPI or launcher use "
            "`ringdp run --restarts K`"
        )
    everyone = base.Dup()
    everyone.Set_errhandler(MPI.ERRORS_RETURN)
    return spares.first(everyone)


def is_on() -> bool:
    """Ranks that are lost are recovered in this job."""
    from ringdp import world

    return world.is_initialized() and world.current().alive is not None


def seconds_to_finalize() -> float:
    """For MPI_Finalize at the most: a rank that has done all its work, and waits there for lost ones, is ended."""
    return _FINALIZES if _any_lost else math.inf


def begins() -> None:
    """This rank is in `elastic.run`: the others will go on if it is lost."""
    from ringdp import world

    global _running, _runs
    _running = True
    _runs += 1
    world.open_bar()


def bars(here: World) -> bool:
    """Exchanges are an error in this world until `elastic.run` begins."""
    return here.alive is not None and bool(here.alive.processes) and _runs == 0


def is_new() -> bool:
    """This rank has taken a lost one's place, and the others are to give it the state."""
    return _new


def has_state() -> None:
    """It has got it."""
    global _new
    _new = False


def standing() -> list[int]:
    """What ranks tell each other when `elastic.run` begins again, of which the greatest counts: see `refuse_unlike`."""
    from ringdp import world

    return [int(_new and world.rank() == 0), _runs, -_runs]


def refuse_unlike(greatest: Sequence[int]) -> None:
    """Of all ranks.

    Raises:
        NotRecovered: those that had the state are all lost, on every rank.
        UsageError: on a new one: the others are not in the first `elastic.run` of the script.
    """
    from ringdp import world

    no_state, most, least = greatest
    if no_state:
        raise NotRecovered(
            f"rank {world.rank()}: all ranks that had the state were lost before those in their places got it: start "
            "the job again from a checkpoint (`ringdp run --restarts K` does that)"
        )
    if _new and most != -least:
        raise UsageError(
            f"rank {world.rank()}: the others are in their elastic.run number {most}, and this process, which takes a "
            "lost one's place, is in its first: only in the first one of a script can lost ranks be replaced"
        )


def ends() -> None:
    """It has left it in peace, with all others."""
    global _running
    _running = False


def others_go_on(here: World, kind: type[BaseException]) -> bool:
    """Without this rank, which is ended by an exception of its own. (What all ranks get ends the job.)"""
    return (
        _running
        and here.alive is not None
        and not issubclass(kind, (HorovodInternalError, KeyboardInterrupt))
    )


def end_alone(here: World, failure: str) -> None:
    """End this rank, in a way that the launcher tells the others of and does not end them for."""
    print(
        f"ringdp: rank {here.place.rank} ended by {failure.partition(':')[0]}: the other ranks go on without it",
        file=sys.stderr,
    )
    sys.stdout.flush()
    sys.stderr.flush()
    watch.failed_alone(failure)


# --- coming together --------------------------------------------------------------------------------------------------


def all_are_done(done: bool = True) -> bool:
    """Whether all ranks are done with what `elastic.run` calls, and none is lost: the same answer on all that live.
    Collective over them; once for each time that it is called.
    """
    from ringdp import world

    here = world.current()
    if here.alive is None:
        return done
    here.has_agreed = True
    return _agree(here.alive.ranks, done)


@watch.guarded("MPI_Comm_agree", times=3)
def _agree(alive: Any, yes: bool) -> bool:
    """Whether all say yes, and all live. The same on all that live."""
    from mpi4py import MPI

    try:
        return bool(alive.Agree(int(yes)))
    except MPI.Exception:  # some rank is dead
        return False


@watch.guarded("MPI_Comm_shrink", times=3)
def _shrink(alive: Any) -> Any:
    from mpi4py import MPI

    left = alive.Shrink()
    left.Set_errhandler(MPI.ERRORS_RETURN)
    return left


@watch.guarded("MPI_Comm_revoke")
def _revoke(communicators: Iterable[Any]) -> None:
    from mpi4py import MPI

    for communicator in communicators:
        try:
            communicator.Revoke()
        except MPI.Exception:
            pass  # it was


def _communicators(here: World) -> list[Any]:
    from ringdp.job import MpiJob

    return here.job.communicators() if isinstance(here.job, MpiJob) else []


def recover(cause: Exception) -> None:
    """Go on with the ranks that live: leave the generation that has failed, and begin another. Collective over them.

    Raises:
        HorovodInternalError: another rank was lost when all was done but for the process sets: to be called again.
        NotRecovered: fewer than RINGDP_MIN_RANKS are left, or others that are cut off might go on as well, or one that
            was left behind cannot be killed; on all ranks, as far as they can hear of it.
    """
    from mpi4py import MPI

    from ringdp import world

    before, neighbours, groups = world.current(), watch.current(), watch.groups()
    living = before.alive
    assert living is not None
    began = time.monotonic()
    neighbours.recovers()
    os.environ.pop("RINGDP_INJECT", None)  # its ranks are those that were started
    with Fence(neighbours, isinstance(cause, DeadlineError), living.spares()) as fence:
        _revoke(_communicators(before))
        world.abandon()
        if not before.has_agreed:
            _agree(living.ranks, False)
        if living.spares():
            _revoke([living.everyone])  # they wait for that
        _, numbers = _come_together(living, before.arguments, cause, fence, groups)
    here = world.current()
    lost = [rank for rank in range(before.place.size) if rank not in numbers]
    if here.place.rank == 0 and len(numbers) < living.everyone.Get_size():
        dead = sum(number not in numbers for number in range(before.place.size, len(living.processes)))
        lost_ranks.tell(before, lost, dead, here, time.monotonic() - began)
    try:
        if _new:
            _take_process_sets(before.arguments[1])
        else:
            _put_process_sets(before, numbers)
    except MPI.Exception as error:  # one more is lost
        raise PeerError(f"rank {here.place.rank}: process sets could not be made again: {error}") from error


def wait_as_spare(living: spares.Living, arguments: tuple[Any, Any]) -> None:
    """Until this process is a rank, of a later generation. Where the job is over before, it ends with exit code 0.

    Raises:
        PeerError: all ranks that had the state are gone, or too few are left.
    """

    global _new, _running, _any_lost
    while True:
        try:
            spares.wait(living)
        except PeerError:
            _any_lost = True
            raise
        living, _ = _come_together(living, arguments, PeerError("ranks were lost"), None)
        if living.ranks is not None:
            break
    _new = _running = True


def _come_together(
    before: spares.Living,
    arguments: tuple[Any, Any],
    cause: Exception,
    fence: Fence | None,
    groups: Sequence[int] = (),
) -> tuple[spares.Living, dict[int, int]]:
    """The next generation begins, of those that live. Collective over them, spares too.

    Args:
        fence, groups: of a rank; None: this is a spare, which does as the ranks that it comes together with.

    Returns:
        Those that live, and their numbers now, by those of before.
    """
    from mpi4py import MPI

    from ringdp import world

    global _any_lost
    everyone = before.everyone
    while True:
        everyone = _shrink(everyone)
        numbers = _numbers(MPI, before.everyone, everyone)
        lost = [rank for rank in range(before.size) if rank not in numbers]
        _any_lost = _any_lost or len(numbers) < before.everyone.Get_size()
        if fence is not None:
            fence.confirm(lost)
        watch.end(all_left=False)
        _refuse_too_few(before.everyone.Get_rank(), min(before.full, len(numbers)), lost, cause)
        if groups:  # spares do not count: they had no part in the generation that may go on elsewhere
            _refuse_a_split(
                before.everyone.Get_rank(), groups, [r for r in numbers if r < before.size], cause
            )
        if len(lost) == before.size:
            raise NotRecovered(
                f"a spare (process {os.getpid()}): all {before.size} ranks are lost, and the state with them"
            )
        joined = False
        made: list[Any] = []
        living = _divide(before, everyone, numbers)
        if living is not None:
            try:
                if living.ranks is not None:
                    world.join_again(_remembering(MPI, living.ranks, made), living, arguments)
                joined = True
            except (MPI.Exception, HorovodInternalError):  # one is lost meanwhile
                pass
        if not joined:
            ours = [] if living is None or living.ranks is None else [living.ranks]
            _revoke([*made, *ours, everyone])
        if _agree(everyone, joined) and living is not None:
            return living, numbers
        if world.is_initialized():
            _revoke(_communicators(world.current()))
            world.abandon()


@watch.guarded("MPI_Comm_split", times=3)
def _divide(before: spares.Living, everyone: Any, numbers: Mapping[int, int]) -> spares.Living | None:
    """None: another one is lost meanwhile. The same on all."""
    from mpi4py import MPI

    if not before.processes:  # nobody waits: all are ranks
        return before.without_lost(everyone, numbers)
    living = None
    try:
        living = before.without_lost(everyone, numbers)
    except MPI.Exception:
        pass
    # Who has it must not wait in it for one that has not.
    return living if _agree(everyone, living is not None) else None


def _remembering(MPI: Any, comm: Any, made: list[Any]) -> Any:
    """The communicator, which notes in `made` those that are made of it: if one rank is lost meanwhile, others wait in
    them for ever, unless they are revoked."""

    class Remembering(MPI.Intracomm):  # type: ignore[misc, name-defined]
        def _note(self, new: Any) -> Any:
            made.append(new)
            return new if new == MPI.COMM_NULL else Remembering(new)

        def Dup(self, *args: Any) -> Any:
            return self._note(MPI.Intracomm.Dup(self, *args))

        def Split(self, *args: Any, **kwargs: Any) -> Any:
            return self._note(MPI.Intracomm.Split(self, *args, **kwargs))

        def Split_type(self, *args: Any, **kwargs: Any) -> Any:
            return self._note(MPI.Intracomm.Split_type(self, *args, **kwargs))

    return Remembering(comm)


def _numbers(MPI: Any, before: Any, now: Any) -> dict[int, int]:
    """The ranks that live: number of before, number now."""
    ranks = list(range(now.Get_size()))
    return dict(
        zip(MPI.Group.Translate_ranks(now.Get_group(), ranks, before.Get_group()), ranks, strict=True)
    )


def _refuse_too_few(rank: int, left: int, lost: Sequence[int], cause: Exception) -> None:
    least = int(os.environ.get(MIN_RANKS) or 1)
    if left < least:
        raise NotRecovered(
            f"rank {rank}: {named(lost)} lost, {left} left: fewer than the {least} of --min-ranks, so the job ends "
            f"({cause})"
        ) from cause


def _refuse_a_split(rank: int, groups: Sequence[int], left: Sequence[int], cause: Exception) -> None:
    """`groups`: of each rank, a number that those have in common which see each other's processes; `left`: the ranks
    that live. The others of a group of which one is left are dead for sure. All other ranks may be alive and cut off:
    those that are left go on only if they are more, or as many and have the lowest rank. To the other side it is the
    same the other way round, so it does not.
    """
    seen = {groups[one] for one in left}
    unknown = [one for one, group in enumerate(groups) if group not in seen]
    if unknown and (len(left), -min(left)) < (len(unknown), -min(unknown)):
        raise NotRecovered(
            f"rank {rank}: {named(unknown)} lost with all of their hosts: nobody here can know whether they are dead, "
            f"or cut off and go on, and with {len(left)} left these are too few to go on beside them ({cause})"
        ) from cause


def _put_process_sets(before: World, numbers: Mapping[int, int]) -> None:
    """Those of which all members live are there again, under the members' new numbers. New ranks are told which."""
    from ringdp import world
    from ringdp.process_sets import add_process_set
    from ringdp.state import broadcast_object

    again: list[ProcessSet] = []
    for number in sorted(before.process_sets):
        one: ProcessSet = before.process_sets[number]
        if one.is_of_a_group or one.process_set_id is not None:
            continue
        if one.is_apart():  # those of some ranks may have lost members, and those of others not
            if world.rank() == 0:
                what = "of a mesh" if one.is_of_a_mesh else "of several made together"
                spares.say(f"process set {number}, {what}, is gone, on all ranks: {one.how_to_add()} again")
            continue
        gone = one.moved(numbers)
        if not gone:
            again.append(one)
        elif world.rank() == 0:
            spares.say(f"process set {number} is gone with its {named(gone)}: it cannot be used any more")
    if before.alive is not None and before.alive.processes:
        broadcast_object([(one.place, one.ranks) for one in again], name=_SETS)
    for one in again:
        add_process_set(one)


def _take_process_sets(given: Any) -> None:
    """Of a new rank: those that the others have, as far as its `init()` was `given` them, are the objects there."""
    from ringdp.process_sets import ProcessSet, add_process_set
    from ringdp.state import broadcast_object

    told: list[tuple[int | None, list[int]]] = broadcast_object([], name=_SETS)
    mine = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else []
    for place, ranks in told:
        one = mine[place] if place is not None and place < len(mine) else None
        one = one if isinstance(one, ProcessSet) else ProcessSet(ranks)
        one.ranks, one.place = ranks, place
        add_process_set(one)


def receive_process_sets(given: Any) -> None:
    """Of a new rank, in `init()`, as often as others are lost meanwhile."""
    cause: HorovodInternalError | None = None
    while True:
        try:
            if cause is None:
                _take_process_sets(given)
            else:
                recover(cause)
            return
        except NotRecovered:
            raise
        except HorovodInternalError as error:
            cause = error


# --- leaving ----------------------------------------------------------------------------------------------------------


def dismiss_spares(here: World) -> None:
    """This rank leaves the job, or is about to: nobody waits for it."""
    global _any_lost
    if here.alive is None or not here.alive.spares():
        return
    dead = spares.dismiss(here.alive)
    if dead:
        _any_lost = True
        if here.place.rank == 0:
            lost_ranks.write({"spares": dead})


def all_have_left(here: World) -> None:
    """All that live have left the job in peace: to mpirun that is as if they had died, so `ringdp run` is told."""
    if _any_lost and here.place.rank == 0:
        lost_ranks.write({"done": True})


def refuse_to_leave(here: World) -> None:
    """A new rank that ends before `elastic.run`: the others wait for it there, and go on when it is dead."""
    if _new:
        end_alone(
            here, "the end of its script: it takes a lost rank's place, and has not come to elastic.run"
        )
