"""The job as one rank sees it: `init()`, `shutdown()`, who and where this rank is.

Importing touches no MPI; `init()` does. One `World` is current in a process. (Tests run several ranks as threads of one
process: `use()` makes a world current for one thread.)
"""

from __future__ import annotations

import atexit
import contextlib
import io
import multiprocessing
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from ringdp import alike, cut_off, launch, link, mpi, preempt, recovery, sharing, signals, spares, watch
from ringdp import place as places
from ringdp.compat import variables
from ringdp.errors import HorovodInternalError, InitError, NotInitializedError, UsageError
from ringdp.job import Job, MpiJob
from ringdp.place import Place

S = TypeVar("S")


@dataclass
class World:
    """One rank's engine, place and process sets."""

    engine: Any
    place: Place
    job: Job = None  # type: ignore[assignment]  # only a job of one rank may do without
    generation: int = 0
    pid: int = field(default_factory=os.getpid)
    arguments: tuple[Any, ...] = ()  # what init() was given
    process_sets: dict[int, Any] = field(default_factory=dict)  # beside the global one, by number
    sets_made: int = 0
    # Core handle and tensors of what is in flight, by the handle's id: the tensors must live until it is done.
    in_flight: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    plans: dict[int, int] = field(default_factory=dict)  # by process set: optimizers made so far
    exchanges: dict[int, int] = field(default_factory=dict)  # by process set: see ringdp/flat.py
    members: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)  # see ringdp/joined.py
    windows: dict[int, int] = field(
        default_factory=dict
    )  # by process set: of optimizers, since the last join
    service_lock: Any = field(default_factory=threading.RLock)
    services: dict[Any, Any] = field(default_factory=dict)  # by kind: see `service`
    timeline: Path | None = None  # of the file, while something is recorded for it: ringdp/timeline.py
    stopping: preempt.Stopping = field(default_factory=preempt.Stopping)
    alive: spares.Living | None = None  # by which those that live find each other (ringdp/recovery.py)
    has_agreed: bool = False  # on whether all are done with elastic.run
    lender: sharing.Lender = field(default_factory=lambda: sharing.Lender(sharing.Neighbourhood(), 0))

    def service(self, kind: Callable[[World], S]) -> S:
        """The one of this class that belongs to this world, made when first asked for, as `kind(world)`.

        It has a `close()`, which is called when all ranks have left, or this one has given up waiting for them.
        """
        with self.service_lock:
            if kind not in self.services:
                self.services[kind] = kind(self)
            return self.services[kind]

    def ranks_of(self, comm: Any) -> tuple[int, ...]:
        """The ranks of the job that an mpi4py communicator holds, in order; none for MPI.COMM_NULL.

        Raises:
            UsageError: it holds others, too, or this is no job over MPI.
        """
        if not isinstance(self.job, MpiJob):
            raise UsageError("only a job over MPI has process sets made of communicators")
        MPI = self.job.MPI
        if comm == MPI.COMM_NULL:
            return ()
        theirs = comm.Get_group()
        ranks = MPI.Group.Translate_ranks(theirs, list(range(comm.Get_size())), self.job.comm.Get_group())
        if MPI.UNDEFINED in ranks:
            raise UsageError("the communicator of a process set holds ranks that are not in the job")
        return tuple(sorted(ranks))

    def hold(self, core: Any, tensors: Any) -> None:
        """Keep the tensors of an operation alive until it is done, also if nobody keeps its handle.

        A GPU is done later than the caller is told, and nobody hears when: those of earlier operations are let go here.
        """
        if self.in_flight:
            most_to_look_at = 1 if len(self.in_flight) < 16 else len(self.in_flight)
            for key, (other, _) in list(self.in_flight.items()):
                if not other.memory_in_use():
                    self.in_flight.pop(key, None)
                elif (most_to_look_at := most_to_look_at - 1) == 0:
                    break
        self.in_flight[id(core)] = (core, tensors)

    def release(self, core: Any) -> None:
        """The operation is done: its tensors are the caller's again."""
        if not core.memory_in_use():
            self.in_flight.pop(id(core), None)


_world: World | None = None
_generation = 0
_left: World | None = None  # before all ranks had: an exception that nobody catches still ends the job by it
# Worlds whose transport may still use the memory of operations that were given up.
_abandoned: list[World] = []
_local = threading.local()
_has_threads_of_their_own = False  # use() was called
_is_child = False  # forked from a rank
_hooks_installed = False


# --- which world ----------------------------------------------------------------------------------


@contextlib.contextmanager
def use(world: World) -> Iterator[World]:
    """Make `world` the current one for this thread."""
    global _has_threads_of_their_own
    _has_threads_of_their_own = True
    previous = getattr(_local, "world", None)
    _local.world = world
    try:
        yield world
    finally:
        _local.world = previous


def current() -> World:
    """The world of this rank.

    Raises:
        NotInitializedError: before `init()`, after `shutdown()`, or in a child process of a rank.
    """
    world = getattr(_local, "world", None) or _world if _has_threads_of_their_own else _world
    if world is None or _is_child:
        _refuse_children("collective operations")
        raise NotInitializedError("ringdp is not initialised: call ringdp.init() first (or it was shut down)")
    return world


def _parent() -> tuple[int, Place] | None:
    """The process and the place of the rank that this one is a child of, if it is."""
    told = places.told_by()
    if told is None or told[0] == os.getpid():
        return None
    is_child = multiprocessing.parent_process() is not None or (
        _world is not None and _world.pid != os.getpid()
    )
    return told if is_child else None


def _refuse_children(what: str) -> None:
    parent = _parent()
    if parent is not None:
        pid, place = parent
        raise NotInitializedError(
            f"process {os.getpid()} is a child of rank {place.rank} (process {pid}): {what} work only in the rank "
            "itself. Data-loading workers may ask rank() and size(), nothing more"
        )


def _place() -> Place:
    # Nothing in these lines stops torch.compile, which notes what it has read.
    world = getattr(_local, "world", None) or _world if _has_threads_of_their_own else _world
    if world is not None and not _is_child:
        return world.place
    parent = _parent()
    return parent[1] if parent is not None else current().place


# --- init and shutdown ----------------------------------------------------------------------------


def init(comm: Any = None, process_sets: Any = None) -> None:
    """Join the job: initialise MPI (unless that was done), check that all ranks fit together, start the engine.

    Collective over all ranks. A second call with the same arguments does nothing; after `shutdown()` it starts anew.

    Args:
        comm: whose ranks form the job: an mpi4py communicator, which is duplicated, or a list of ranks of
            MPI.COMM_WORLD (only they call it). Default: all that were started together.
        process_sets: a list of `ProcessSet` (or of what they are made of), the same on all ranks: they can be used from
            now on. Horovod's "dynamic" changes nothing: further ones may always be added.

    Raises:
        UsageError, MismatchError: process sets that cannot be, as for `add_process_set`; or RINGDP_PREEMPT_SIGNALS
            names what is no signal.
        InitError: no MPI or another than the one built for, a thread level that is too low, N jobs of size 1 instead of
            one of size N, or versions of ringdp, MPI or the framework that differ between ranks.
        NotInitializedError: in a child process of a rank.
    """
    arguments = comm, process_sets
    if _world is not None and _world.pid == os.getpid():
        if arguments != (None, None) and arguments != _world.arguments:
            raise InitError(
                "ringdp.init() was called before with other arguments: call ringdp.shutdown() first"
            )
        return
    _refuse_children("ringdp.init()")
    spares.refuse(comm)
    _join(comm, arguments)
    if recovery.is_new():
        recovery.receive_process_sets(process_sets)
    else:
        _start(process_sets)
    here = current()
    if recovery.bars(here):
        here.engine = spares.Barred(here.engine)
        _core_finds(None)


def open_bar() -> None:
    """`elastic.run` begins: this rank may exchange, if it was barred from that. What optimizers have begun to plan is
    void, as in another world: they plan in the order in which they are used, those of the ranks that live, too."""
    global _world
    if _world is not None and isinstance(_world.engine, spares.Barred):
        _world.engine = _world.engine.engine
        _world = replace(_world, plans={}, exchanges={})
        _core_finds(_world.engine)


def join_again(comm: Any, alive: spares.Living, arguments: tuple[Any, Any]) -> None:
    """As `init(*arguments)`, of another generation of ranks, those of `comm` and `alive`, without process sets."""
    global _generation
    with watch.guarded("MPI_Allreduce in init()"):
        _generation = max(
            comm.allgather(_generation)
        )  # some may have been lost before all came to the last one
    _join(comm, arguments, alive)


def _join(comm: Any, arguments: tuple[Any, Any], alive: spares.Living | None = None) -> None:
    global _world, _generation, _left
    first = alive is None
    ignored = variables.honour(os.environ) if first else []
    preempting = signals.wanted(os.environ)
    mpi.build()  # an installation that cannot work says so first
    guard = watch.begin()
    try:
        with watch.guarded("MPI_Init_thread", missing=first):
            MPI = mpi.load()
        with watch.guarded("MPI_Comm_create_group", missing=first):
            base = _base(MPI, comm)
        library = launch.library_name(MPI.Get_library_version())
        if base.Get_size() == 1 and comm is None:
            _refuse_singleton(library)
        is_ours = base is not comm and base is not MPI.COMM_WORLD
        with watch.guarded("MPI_Comm_dup in init()", missing=first):
            alive = alive or recovery.prepare(MPI, base)
        if first and alive is not None and alive.processes:
            if alive.ranks is None:
                return recovery.wait_as_spare(alive, arguments)
            base = alive.ranks
        with watch.guarded("the ranks' first exchange in init()", missing=comm is None):
            alike.compare(base, library)
        with watch.guarded("the exchange of places in init()", missing=first):
            place = places.find(MPI, base)
            hosts = link.hosts_of(base, MPI)
            link.warn_if_far(base, hosts)
            # The watch's handlers come before it.
            signals.install(preempting, preempt.handle, mpi.caught_in_init())
            watch.meet(guard, base, place, 1 if first else _generation + 1)
        with watch.guarded("MPI_Comm_dup in init()", missing=first):
            job = MpiJob(base, hosts)
            engine = job.engine(_generation + 1)
    except BaseException:
        watch.end(all_left=False)
        raise
    _generation += 1
    lender = sharing.Lender(job.neighbours, place.rank)
    _world = World(engine, place, job, _generation, arguments=arguments, alive=alive, lender=lender)
    _left = None
    _core_finds(engine)
    places.tell_children(place)
    _install_hooks()
    if first:
        with watch.guarded("MPI_Gather in init()", missing=True):
            places.warn_oversubscription(base, place)
    if place.rank == 0:
        for line in ignored:
            print(f"ringdp: {line}", file=sys.stderr, flush=True)
    if is_ours:
        with watch.guarded("MPI_Comm_free in init()"):
            base.Free()


def _core_finds(engine: Any) -> None:
    """What was compiled once, and holds no engine (ringdp/jax), uses this one from now on; None: no one."""
    from ringdp import _core

    _core.set_current(engine)


def _base(MPI: Any, comm: Any) -> Any:
    if comm is None:
        return MPI.COMM_WORLD
    if hasattr(comm, "Get_group"):
        return comm
    ranks, mine = [int(rank) for rank in comm], MPI.COMM_WORLD.Get_rank()
    if mine not in ranks:
        raise InitError(
            f"ringdp.init(comm={ranks}): rank {mine} of MPI.COMM_WORLD is none of these, and must not call it"
        )
    group = MPI.COMM_WORLD.Get_group().Incl(ranks)
    return MPI.COMM_WORLD.Create_group(group)


def _start(process_sets: Any) -> None:
    from ringdp.process_sets import register
    from ringdp.timeline import start_from_environment

    try:
        start_from_environment(current())
        register(process_sets)
    except BaseException:
        shutdown()
        raise


def shutdown() -> None:
    """Leave the job: outstanding operations of this rank fail, then wait until all ranks have left. Collective.

    MPI stays initialised. Does nothing where ringdp is not initialised. `init()` may follow.
    """
    leave()


def leave() -> bool:
    """As `shutdown()`. Whether all ranks have left within RINGDP_TIMEOUT: if not, `init()` would wait for ever."""
    global _world, _left
    world = _world
    if world is None or world.pid != os.getpid():
        return True
    _world = None
    _core_finds(None)
    places.tell_children_nothing()
    for process_set in world.process_sets.values():
        process_set.process_set_id = None
    _write_timeline(world)
    if not world.stopping.stopping:
        signals.restore()
    recovery.refuse_to_leave(world)
    was_broken = world.engine.is_broken()  # where ranks are lost, nothing is given back together
    all_left = world.engine.shutdown(world.engine.timeout, world.stopping.most_steps())
    signals.restore()  # not before others have saved what they stop with, to which this rank's end would be the end
    for service in reversed(list(world.services.values())):
        service.close()
    if any(core.memory_in_use() for core, _ in world.in_flight.values()):
        _abandoned.append(world)
    recovery.dismiss_spares(world)
    if all_left and isinstance(world.job, MpiJob) and not (was_broken and world.alive is not None):
        world.job.free()
        recovery.all_have_left(world)
        if world.alive is not None and not world.alive.spares():
            with watch.guarded("MPI_Comm_free in shutdown()"):
                world.alive.everyone.Free()
    elif not all_left:
        _left = world
    if all_left:
        watch.end(all_left=True)
    return bool(all_left)


def abandon() -> None:
    """Leave the job alone and at once: others are lost. What MPI may still have memory of stays as it is, for good."""
    global _world, _left
    world, _world = _world, None
    if world is None:
        return
    _left = world
    _core_finds(None)
    places.tell_children_nothing()
    for process_set in world.process_sets.values():
        process_set.process_set_id = None
    _write_timeline(world)
    signals.restore()
    pending = world.engine.abandon()
    for service in reversed(list(world.services.values())):
        service.close()
    if pending:
        _abandoned.append(world)
    else:
        world.in_flight.clear()


def _write_timeline(world: World) -> None:
    from ringdp import timeline

    try:
        timeline.finish(world)
    except OSError as error:  # no reason to keep the others waiting
        print(f"ringdp: the timeline could not be written: {error}", file=sys.stderr, flush=True)


def is_initialized() -> bool:
    """True between `init()` and `shutdown()`, in the rank's own process."""
    world = getattr(_local, "world", None) or _world
    return world is not None and world.pid == os.getpid()


def _refuse_singleton(library: str) -> None:
    traces = launch.launcher_traces(os.environ)
    if traces is not None and launch.is_silent_singleton(traces, 1, os.environ):
        raise InitError(launch.singleton_error(traces, library))


# --- what happens at the ends ---------------------------------------------------------------------


def _install_hooks() -> None:
    global _hooks_installed
    if _hooks_installed:
        return
    _hooks_installed = True
    # The engine must be joined before MPI is finalised: by mpi4py after all atexit hooks of Python, or by our hook
    # (ringdp/mpi.py), which was registered before this one and so runs after it.
    atexit.register(shutdown)
    os.register_at_fork(after_in_child=_after_fork)
    previous = sys.excepthook

    def excepthook(kind: type[BaseException], value: BaseException, traceback: TracebackType | None) -> None:
        previous(kind, value, traceback)
        _end_job(kind, value)

    sys.excepthook = excepthook


def _after_fork() -> None:
    """A forked child has no engine thread: it must not join it, and never talk to MPI."""
    global _is_child
    _is_child = True
    if _world is not None:
        _world.engine.forget_after_fork()
    watch.forget_after_fork()


def _end_job(kind: type[BaseException], value: BaseException) -> None:
    """An exception that nobody caught on this rank: the others would wait for it in vain."""
    world = _world or _left
    if world is None or world.pid != os.getpid() or world.place.size == 1 or signals.is_interactive():
        return
    # torch.distributed's hook calls ours, and collects what it writes: nobody would print that after MPI_Abort.
    if isinstance(sys.stderr, io.StringIO) and sys.__stderr__ is not None:
        sys.__stderr__.write(sys.stderr.getvalue())
        sys.stderr = sys.__stderr__
    if recovery.others_go_on(world, kind):
        recovery.end_alone(world, f"{kind.__name__}: {value}")
    print(f"ringdp: rank {world.place.rank} ended by {kind.__name__}: ending the job", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    by_peers = issubclass(kind, HorovodInternalError)
    watch.exception(world.place.rank, f"{kind.__name__}: {value}", by_peers)
    if by_peers and world.place.cross_size > 1:
        cut_off.end_daemon_later()
    world.engine.abort(130 if issubclass(kind, KeyboardInterrupt) else 1)


# --- who and where --------------------------------------------------------------------------------


def rank() -> int:
    """This rank's number, 0 to size() - 1. In a child process: the parent's."""
    return _place().rank


def size() -> int:
    """The number of ranks of the job."""
    return _place().size


def local_rank() -> int:
    """This rank's number among the ranks of its host."""
    return _place().local_rank


def local_size() -> int:
    """The number of ranks on this host."""
    return _place().local_size


def cross_rank() -> int:
    """This host's number among the hosts that have this local rank."""
    return _place().cross_rank


def cross_size() -> int:
    """The number of hosts that have this local rank."""
    return _place().cross_size


def is_homogeneous() -> bool:
    """True if every host has the same number of ranks."""
    return _place().homogeneous
