"""Process sets: which ranks of the job take part in an operation.

Each set has an agreement, names and an order of unnamed calls of its own: what some ranks do in one never disturbs
another, however the sets overlap.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ringdp import world
from ringdp.errors import MismatchError, NotInitializedError, UsageError


class ProcessSet:
    """A set of ranks of the job, for the `process_set=` of operations and optimizers.

    It can be used when it was given to `init(process_sets=[…])` or `add_process_set()`, and until it is removed or
    ringdp is shut down.

    Args:
        ranks_or_comm: ranks of the job; or an mpi4py communicator of ranks of the job, which each of them makes alike
            (on ranks that have none, MPI.COMM_NULL).

    Attributes:
        process_set_id: its number, the same on all ranks; None where it cannot be used.
        ranks: its ranks in order; None for a communicator's until the set can be used.
    """

    process_set_id: int | None
    ranks: list[int] | None

    def __init__(self, ranks_or_comm: Any) -> None:
        self.process_set_id = None
        self.place: int | None = None  # in the list that init() was given
        self.is_of_a_group = False  # of torch.distributed: made by its members, and gone with it
        self.is_of_a_mesh = (
            False  # each rank of the job names its own, and all are one axis: ringdp/meshes.py
        )
        self._comm = ranks_or_comm if hasattr(ranks_or_comm, "Get_group") else None
        self._made_with = range(0)  # the numbers of all sets that the same call has made, on whatever ranks
        self.ranks = None if self._comm is not None else _ranks_from(ranks_or_comm)
        self._rank: int | None = None
        self._size = 0

    def rank(self) -> int | None:
        """This rank's number in the set, 0 to size() - 1; None if it is not one of the set."""
        self._check_usable()
        return self._rank

    def size(self) -> int:
        """The number of ranks in the set."""
        self._check_usable()
        return self._size

    def included(self) -> bool:
        """True if this rank is one of the set."""
        return self.rank() is not None

    def is_apart(self) -> bool:
        """Other ranks have other sets in its place: the axis of a mesh, communicators of different groups."""
        return self.is_of_a_mesh or len(self._made_with) > 1

    def how_to_add(self) -> str:
        """What makes it usable."""
        return (
            "call its mesh's add() on all ranks"
            if self.is_of_a_mesh
            else "give it to init() or to add_process_set()"
        )

    def moved(self, numbers: Mapping[int, int]) -> list[int]:
        """The ranks of the job have other numbers, by those of before, and lost ones none: so it is made of the new
        ones, to be added again. The lost ones among its own; where there are any, it stays as it was.
        """
        members = self.ranks or []
        lost = [rank for rank in members if rank not in numbers]
        if not lost:
            self._comm, self.ranks = None, [numbers[rank] for rank in members]
        return lost

    def _becomes(self, number: int, ranks: Sequence[int], mine: int) -> None:
        """It can be used: this rank is `mine` of the job, and maybe one of these ranks.

        What `rank()` and `size()` give is found here, as numbers: a graph of torch.compile is traced anew when a number
        that it has read is another one, but it does not notice that a list has other elements.
        """
        self.process_set_id, self.ranks = number, list(ranks)
        self._rank = self.ranks.index(mine) if mine in self.ranks else None
        self._size = len(self.ranks)

    def _check_usable(self) -> None:
        if self.process_set_id is None:
            raise NotInitializedError(f"{self!r} cannot be used: {self.how_to_add()}")

    def __repr__(self) -> str:
        ranks = "a communicator's ranks" if self.ranks is None else self.ranks
        return f"ProcessSet({ranks}, process_set_id={self.process_set_id})"


class _Global(ProcessSet):
    """All ranks of the job."""

    def __init__(self) -> None:
        self.process_set_id = 0
        self._comm = None

    @property
    def ranks(self) -> list[int]:  # type: ignore[override]
        return list(range(world.size())) if world.is_initialized() else []

    def rank(self) -> int:
        return world.rank()

    def size(self) -> int:
        return world.size()

    def included(self) -> bool:
        world.current()
        return True

    def __repr__(self) -> str:
        return "global_process_set"


global_process_set: ProcessSet = _Global()


def numbered(number: int) -> ProcessSet:
    """The process set of a number.

    Raises:
        UsageError: it is none, or was removed.
    """
    if number == 0:
        return global_process_set
    found = world.current().process_sets.get(number)
    if found is None:
        raise UsageError(f"process set {number} is not there: it was never added, or was removed")
    return found  # type: ignore[no-any-return]


def add_process_set(process_set: ProcessSet | Iterable[int] | Any) -> ProcessSet:
    """Make a process set usable. Collective: every rank of the job calls it, with the same ranks.

    (With communicators of different groups, such as those of MPI_Comm_split, each of the groups becomes a set, and each
    rank gets its own.)

    Args:
        process_set: a `ProcessSet`, or what one is made of.

    Returns:
        The `ProcessSet` that was given, or a new one.

    Raises:
        UsageError: no ranks, or ranks that the job has not.
        MismatchError: the ranks of the job name different sets. On every rank; nothing was added.
        NotInitializedError: before `init()`.
    """
    added = process_set if isinstance(process_set, ProcessSet) else ProcessSet(process_set)
    _add_all([added])
    return added


def remove_process_set(process_set: ProcessSet) -> bool:
    """Give up a process set. Collective: every rank of the job calls it, with the same set (of communicators of
    different groups, with its own).

    Returns:
        False if it is not there (any more): as on all other ranks.

    Raises:
        UsageError: it is the global one, or some rank has an operation under way in it (on every rank then; the set
            stays).
        MismatchError: the ranks of the job name different sets.
    """
    if process_set is global_process_set:
        raise UsageError("the global process set cannot be removed")
    here = world.current()
    number = process_set.process_set_id
    known = number is not None and here.process_sets.get(number) is process_set
    idle = not known or not process_set.included() or here.engine.is_idle(number)
    answers = _ask_all("remove_process_set", (process_set._made_with if known else None, number, idle))
    if any(made_with != answers[0][0] for made_with, _, _ in answers):
        numbers = [theirs if made_with else None for made_with, theirs, _ in answers]
        raise MismatchError(f"remove_process_set: the ranks name different process sets: {_by_rank(numbers)}")
    busy = [rank for rank, (_, _, is_idle) in enumerate(answers) if not is_idle]
    if busy:
        raise UsageError(f"remove_process_set: rank {busy[0]} has an operation under way in {process_set!r}")
    if not known:
        return False
    assert number is not None
    if process_set.included():
        if not here.engine.remove_process_set(number):
            raise UsageError(f"remove_process_set: an operation began in {process_set!r} just now")
        here.job.remove_set(number)
    here.process_sets.pop(number)
    process_set.process_set_id = None
    return True


def register(process_sets: Any) -> None:
    """What `init()` was given: a list of sets, of what they are made of, or Horovod's "dynamic" (here it always is)."""
    if process_sets is None or process_sets == "dynamic":
        return
    if isinstance(process_sets, (str, bytes)) or not isinstance(process_sets, Iterable):
        raise UsageError(f"process_sets must be a list of ProcessSet, not {process_sets!r}")
    sets = [s if isinstance(s, ProcessSet) else ProcessSet(s) for s in process_sets]
    alive = world.current().alive
    if alive is not None and alive.processes and any(one._comm is not None for one in sets):
        raise UsageError(
            "process sets made of communicators cannot be in a job with spares (`ringdp run --spares`), which are no "
            "part of these: name the ranks"
        )
    for place, one in enumerate(sets):
        one.place = place
    _add_all(sets)


def add_axes(sets: Sequence[tuple[ProcessSet, Sequence[Sequence[int]]]], axes: str, problem: str) -> None:
    """Make the sets of a mesh usable, with one agreement for all, unless they are. Collective over the job.

    Args:
        sets: this rank's, each beside the groups of the job's ranks of which it is one: each rank makes its own.
        axes: what the groups come from; the same on all ranks.
        problem: why this rank has no sets.

    Raises:
        UsageError: some rank has a problem. On every rank; nothing was added.
        MismatchError: axes differ. The same.
    """
    here = world.current()
    usable = {one.process_set_id is not None for one, _ in sets}
    if len(usable) > 1:
        problem = problem or "not all process sets of this mesh were removed: call remove() again"
    _agree("mesh", axes + " (there already)" * (True in usable), [], problem)
    for one, groups in [] if True in usable else sets:
        _put(one, groups, here)


def _add_all(sets: Sequence[ProcessSet]) -> None:
    here = world.current()
    claims, problem = [], ""
    for one in sets:
        try:
            claims.append(_claim(one, here))
        except UsageError as error:  # on this rank alone, maybe: all must hear of it
            problem = problem or str(error)
    of_ranks = _agree("add_process_set", "", claims, problem)
    for place, one in enumerate(sets):
        _add(one, [theirs[place] for theirs in of_ranks], here)


Claim = tuple[bool, tuple[int, ...]]  # whether each rank may name its own, and the ranks that are named


def _agree(call: str, axes: str, claims: Sequence[Claim], problem: str) -> list[Sequence[Claim]]:
    """The claims of all ranks, which add as many sets by the same call. `axes`: of a mesh."""
    answers = _ask_all("add_process_set", (axes, claims, problem))
    for rank, (_, _, theirs) in enumerate(answers):
        if theirs:
            raise UsageError(f"{call}, rank {rank}: {theirs}")
    if len({theirs for theirs, _, _ in answers}) > 1:
        raise MismatchError(
            f"mesh: the ranks give different axes: {_by_rank([theirs or 'no mesh' for theirs, _, _ in answers])}"
        )
    if len({len(theirs) for _, theirs, _ in answers}) > 1:
        raise MismatchError(
            f"the ranks give different numbers of process sets: {_by_rank([len(c) for _, c, _ in answers])}"
        )
    return [theirs for _, theirs, _ in answers]


def _add(one: ProcessSet, claims: Sequence[Claim], here: world.World) -> None:
    """`claims`: by rank of the job."""
    groups = list(dict.fromkeys(ranks for _, ranks in claims if ranks))
    apart = any(
        not may_differ or any(claims[rank][1] != ranks for rank in ranks)
        for may_differ, ranks in claims
        if ranks
    )
    if len(groups) != 1 and (apart or not groups):
        raise MismatchError(
            f"add_process_set: the ranks name different process sets: {_by_rank([list(r) for _, r in claims])}"
        )
    _put(one, groups, here)


def _put(one: ProcessSet, groups: Sequence[Sequence[int]], here: world.World) -> None:
    """All ranks agree: each of the groups becomes a set, and `one` is this rank's, or the only one."""
    one._made_with = range(here.sets_made + 1, here.sets_made + 1 + len(groups))
    here.sets_made += len(groups)
    for number, group in zip(one._made_with, groups, strict=True):
        is_mine = here.place.rank in group
        if is_mine:
            here.job.add_set(here.engine, number, group)
        if is_mine or len(groups) == 1:
            one._becomes(number, group, here.place.rank)
            here.process_sets[number] = one


def _claim(one: ProcessSet, here: world.World) -> Claim:
    if one.process_set_id is not None:
        raise UsageError(f"{one!r} was added before")
    if one._comm is not None:
        return True, here.ranks_of(one._comm)
    ranks = tuple(one.ranks or ())
    if not ranks:
        raise UsageError("a process set needs at least one rank")
    if ranks[0] < 0 or ranks[-1] >= here.place.size:
        raise UsageError(
            f"the job has ranks 0 to {here.place.size - 1}, and the process set names {list(ranks)}"
        )
    return one.is_of_a_mesh, ranks


def _ranks_from(given: Any) -> list[int]:
    ranks = sorted(int(rank) for rank in given)
    if len(set(ranks)) < len(ranks):
        raise UsageError(f"a process set names a rank twice: {ranks}")
    return ranks


def _ask_all(what: str, answer: Any) -> list[Any]:
    from ringdp.state import allgather_object

    return allgather_object(answer, name=f"ringdp.{what}")


def _by_rank(values: Sequence[Any]) -> str:
    shown = "; ".join(f"rank {rank}: {value}" for rank, value in enumerate(values[:8]))
    return shown if len(values) <= 8 else f"{shown}; and {len(values) - 8} ranks more"
