"""Going on without ranks that are lost, by Open MPI's ULFM (`ringdp run --elastic`, docs/elastic.md).

When an exchange has failed, the ranks that live come together: whoever has noticed revokes the communicators, by which
the others notice, and leaves its engine; then all agree that they are here, make a communicator of those that live
(`MPI_Comm_shrink`), and initialise ringdp again over it: another generation, with other memory.

*Fencing*: a process of this host that does not come in time is killed, so that it cannot go on later with what was
ours. No rank goes on before all that are left behind on its host are dead for sure. Those of other hosts are the
matter of the ranks there. Where none of a host is left nobody knows whether its ranks are dead, or cut off and about
to go on by themselves: of the two sides one goes on at most.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ringdp import watch
from ringdp.errors import DeadlineError, HorovodInternalError, InitError, PeerError

if TYPE_CHECKING:
    from ringdp.process_sets import ProcessSet
    from ringdp.world import World

# Set by `ringdp run --elastic`.
VARIABLE, MIN_RANKS = "RINGDP_ELASTIC", "RINGDP_MIN_RANKS"
_ENABLED = ("OMPI_MCA_mpi_ft_enable", "1")  # what mpirun --with-ft ulfm tells its ranks
LOST = "lost.jsonl"  # in the report's folder: a line of JSON for each recovery

_GONE = 60.0  # seconds for which a stopped rank is waited for, unless RINGDP_TIMEOUT is less
_LOOK = 0.05  # seconds between two looks at the ranks of this host
_DIES = 20.0  # seconds that a killed process may take to be gone: the kernel frees its memory first

_FINALIZES = 5.0  # seconds, where ranks are lost: Open MPI then waits for them now and then, and for ever

_any_lost = False
_running = False  # this rank is in elastic.run, or has left it by an exception


class NotRecovered(PeerError):
    """Ranks are lost, and the others cannot go on without them: on all of these."""


def is_wanted(environ: Mapping[str, str]) -> bool:
    """`ringdp run --elastic` has started this rank."""
    return environ.get(VARIABLE, "") not in ("", "0")


def prepare(MPI: Any, base: Any) -> Any:
    """The communicator by which those that live find each other; None where nobody wants to. Collective over `base`.

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
    alive = base.Dup()
    alive.Set_errhandler(MPI.ERRORS_RETURN)
    return alive


def is_on() -> bool:
    """Ranks that are lost are recovered in this job."""
    from ringdp import world

    return world.is_initialized() and world.current().alive is not None


def seconds_to_finalize() -> float:
    """For MPI_Finalize at the most: a rank that has done all its work, and waits there for lost ones, is ended."""
    return _FINALIZES if _any_lost else math.inf


def begins() -> None:
    """This rank is in `elastic.run`: the others will go on if it is lost."""
    global _running
    _running = True


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


# --- fencing ----------------------------------------------------------------------------------------------------------


class Fence:
    """While the ranks that live come together: kills those of this host that do not come.

    Args:
        neighbours: this process's watch, of the generation that ends.
        waited: ranks that are stopped now have been waited for long enough.
    """

    def __init__(self, neighbours: Any, waited: bool) -> None:
        self._watch = neighbours
        self._end = watch.seconds_of(watch.TIMEOUT, 600)
        self._gone = min(_GONE, self._end)
        self._began = time.monotonic()
        self._stopped_since: dict[int, float] = {}
        if waited:
            self._stopped_since = {
                one[0]: self._began - self._gone for one in neighbours.neighbours() if one[4]
            }
        self._killed: set[int] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._main, name="ringdp-fence", daemon=True)

    def __enter__(self) -> Fence:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: Any, traceback: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _main(self) -> None:
        while not self._over.wait(_LOOK):
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """Kill whoever's time is over."""
        for rank, pid, is_dead, can_be_killed, is_stopped, recovers, patience in self._watch.neighbours():
            if not is_stopped:
                self._stopped_since.pop(rank, None)
            if is_dead or not can_be_killed or rank in self._killed:
                continue
            why = ""
            if is_stopped and now - self._stopped_since.setdefault(rank, now) >= self._gone:
                why = f"it is stopped, and was waited for for {self._gone:g} s"
            elif not recovers and now - self._began >= max(self._end, patience):
                why = f"it has not come for {now - self._began:.0f} s"
            if why:
                _say(f"killing rank {rank} (process {pid}), as the others go on without it: {why}")
                self._killed.add(rank)
                self._watch.kill(rank, 0)

    def confirm(self, lost: Iterable[int]) -> None:
        """Of ranks that are left behind, those of this host are dead: killed if need be.

        Raises:
            NotRecovered: one cannot be killed.
        """
        here = {one[0]: one for one in self._watch.neighbours()}
        for rank in lost:
            if rank in here and not here[rank][2] and not self._watch.kill(rank, _DIES):
                raise NotRecovered(
                    f"rank {rank} (process {here[rank][1]}) is left behind, but lives and cannot be killed: nobody may "
                    "go on beside it"
                )


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
    return _agree(here.alive, done)


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

    global _any_lost
    before, neighbours, groups = world.current(), watch.current(), watch.groups()
    began = time.monotonic()
    neighbours.recovers()
    os.environ.pop("RINGDP_INJECT", None)  # its ranks are those that were started
    with Fence(neighbours, isinstance(cause, DeadlineError)) as fence:
        _revoke(_communicators(before))
        world.abandon()
        if not before.has_agreed:
            _agree(before.alive, False)
        alive = before.alive
        while True:
            alive = _shrink(alive)
            numbers = _numbers(MPI, before.alive, alive)
            lost = [rank for rank in range(before.place.size) if rank not in numbers]
            _any_lost = _any_lost or bool(lost)
            fence.confirm(lost)
            watch.end(all_left=False)
            joined = False
            made: list[Any] = []
            _refuse_too_few(before.place.rank, alive.Get_size(), lost, cause)
            _refuse_a_split(before.place.rank, groups, list(numbers), cause)
            try:
                world.join_again(_remembering(MPI, alive, made), alive, before.arguments)
                joined = True
            except (MPI.Exception, HorovodInternalError):  # one is lost meanwhile
                pass
            if not joined:
                _revoke([*made, alive])
            if _agree(alive, joined):
                break
            if world.is_initialized():
                _revoke(_communicators(world.current()))
                world.abandon()
    here = world.current()
    if here.place.rank == 0 and lost:
        _report(before, lost, here, time.monotonic() - began)
    try:
        _put_process_sets(before, numbers)
    except MPI.Exception as error:  # one more is lost
        raise PeerError(f"rank {here.place.rank}: process sets could not be made again: {error}") from error


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
            f"rank {rank}: {_ranks(lost)} lost, {left} left: fewer than the {least} of --min-ranks, so the job ends "
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
            f"rank {rank}: {_ranks(unknown)} lost with all of their hosts: nobody here can know whether they are dead, "
            f"or cut off and go on, and with {len(left)} left these are too few to go on beside them ({cause})"
        ) from cause


def _put_process_sets(before: World, numbers: Mapping[int, int]) -> None:
    """Those of which all members live are there again, under the members' new numbers."""
    from ringdp import world
    from ringdp.process_sets import add_process_set

    for number in sorted(before.process_sets):
        one: ProcessSet = before.process_sets[number]
        if one.is_of_a_group or one.process_set_id is not None:
            continue
        gone = one.moved(numbers)
        if gone:
            if world.rank() == 0:
                _say(f"process set {number} is gone with its {_ranks(gone)}: it cannot be used any more")
        else:
            add_process_set(one)


# --- telling ----------------------------------------------------------------------------------------------------------


def _report(before: World, lost: Sequence[int], here: World, seconds: float) -> None:
    """By rank 0: a line, and one for `ringdp run`."""
    _say(
        f"rank 0: going on without {_ranks(lost)} (of {before.place.size}): {here.place.size} left, generation "
        f"{here.generation}, after {seconds:.2f} s"
    )
    numbers = {"generation": here.generation, "of": before.place.size, "left": here.place.size}
    _write({"lost": list(lost), **numbers})


def all_have_left(here: World) -> None:
    """All that live have left the job in peace: to mpirun that is as if they had died, so `ringdp run` is told."""
    if _any_lost and here.place.rank == 0:
        _write({"done": True})


def _write(line: dict[str, Any]) -> None:
    try:
        folder = report_folder()
        folder.mkdir(mode=0o700, exist_ok=True)
        with (folder / LOST).open("a") as file:
            print(json.dumps(line), file=file)
    except OSError as error:
        _say(f"rank 0: `ringdp run` will not hear of it: {error}")


def report_folder() -> Path:
    """Of the job, whatever its generation."""
    return watch.report_folder(watch.name_of_job(os.environ), os.environ.get(watch.FOLDER) or os.getcwd())


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def _say(text: str) -> None:
    print(f"ringdp: {text}", file=sys.stderr, flush=True)
