"""The communicators of a job and of its process sets, and who shares memory with whom: what an engine is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ringdp import mpi, nccl, sharing, watch


class Job(Protocol):
    """Gives the engine of this rank further process sets. Called in the same order on all ranks of the job."""

    def add_set(self, engine: Any, number: int, ranks: Sequence[int]) -> None:
        """Collective over `ranks` (of the job, in order)."""
        ...

    def remove_set(self, number: int) -> None:
        """The engine of this rank, and of all others of the set, has forgotten it. Collective over its ranks."""
        ...


class MpiJob:
    """Over MPI. The engine's threads use communicators of their own, so that calls made here never meet theirs.

    Args:
        base: an mpi4py communicator of all ranks of the job; it is duplicated.
        hosts: the host of each rank, as a number.
    """

    def __init__(self, base: Any, hosts: Sequence[int]) -> None:
        self.MPI = mpi.load()
        self.comm = base.Dup()
        self.hosts = list(hosts)
        self.rank: int = base.Get_rank()
        local = base.Split_type(self.MPI.COMM_TYPE_SHARED, key=self.rank)
        self.neighbours = sharing.find_neighbours(local, self.rank)
        local.Free()
        self._communicators: dict[int, tuple[Any, Any]] = {}
        self._mail: dict[int, int] = {}
        self._lent: list[Any] = []

    @watch.guarded("MPI_Comm_dup")
    def duplicate(self, comm: Any = None) -> Any:
        """A communicator for messages beside the engine's, of the ranks of `comm` (all); freed with the job. Collective
        over them."""
        self._lent.append((comm or self.comm).Dup())
        return self._lent[-1]

    def engine(self, generation: int) -> Any:
        """This rank's engine, with all ranks in process set 0. Collective."""
        from ringdp import _core

        everybody = self._membership(0, range(len(self.hosts)), self.comm.Dup(), self.neighbours)
        _core.gpu.look_for_nccl_in(nccl.files_of_wheels())
        return _core.make_engine(generation, everybody, watch.current())

    def add_set(self, engine: Any, number: int, ranks: Sequence[int]) -> None:
        """See `Job`."""
        self.add_set_over(self.communicator_of(ranks, number), engine, number, ranks)

    @watch.guarded("MPI_Comm_create_group")
    def communicator_of(self, ranks: Sequence[int], tag: int) -> Any:
        """Of these ranks of the job, in order. Collective over them alone, which give the same tag."""
        group = self.comm.Get_group().Incl(list(ranks))
        comm = self.comm.Create_group(group, tag=tag)
        group.Free()
        return comm

    @watch.guarded("MPI_Comm_dup, for a process set,")
    def add_set_over(self, comm: Any, engine: Any, number: int, ranks: Sequence[int]) -> None:
        """As `add_set`, with a communicator of these ranks, which the set then owns."""
        found = self._neighbours_in(number, ranks, comm)
        engine.add_process_set(number, self._membership(number, ranks, comm, found))

    @watch.guarded("MPI_Comm_free, for a process set,")
    def remove_set(self, number: int) -> None:
        """See `Job`."""
        from ringdp import _core

        for one in (number, *_core.numbers_of_levels(number)):
            if one not in self._communicators:
                continue
            data, control = self._communicators.pop(one)
            data.Barrier()  # nobody looks at this rank's mail any more
            if one in self._mail:
                self.neighbours.host.free_mail(self._mail.pop(one))
            data.Free()
            control.Free()

    def communicators(self) -> list[Any]:
        """All that there are."""
        of_sets = [one for pair in self._communicators.values() for one in pair]
        return [self.comm, *self._lent, *of_sets]

    @watch.guarded("MPI_Comm_free in shutdown()")
    def free(self) -> None:
        """Give all communicators back. Collective; only where every engine has ended in peace."""
        for communicator in self._lent:
            communicator.Free()
        for number in sorted(self._communicators):
            for communicator in self._communicators[number]:
                communicator.Free()
        self.comm.Free()

    def _membership(self, number: int, ranks: Sequence[int], comm: Any, found: sharing.Neighbourhood) -> Any:
        from ringdp import _core

        self._communicators[number] = comm, comm.Dup()
        data, control = (int(self.MPI._handleof(c)) for c in self._communicators[number])
        told = comm.allgather((min(found.members, default=self.rank), _core.wants_two_levels()))
        sharing_with = [first for first, _ in told]
        hosts = [self.hosts[rank] for rank in ranks]
        membership = _core.Membership(
            list(ranks), data, control, hosts, found.host, found.members, found.mail, sharing_with
        )
        if all(wants for _, wants in told):
            self._add_levels(membership, number, ranks, comm, sharing_with)
        return membership

    def _add_levels(
        self, membership: Any, number: int, ranks: Sequence[int], comm: Any, sharing_with: list[int]
    ) -> None:
        """The sets of this rank's host and of its place on all hosts, if there are two levels. (They have none
        themselves.)"""
        from ringdp import _core

        levels: Any = _core.levels_of(sharing_with, comm.Get_rank())
        if levels is None:
            return
        made = []
        for level, members in zip(_core.numbers_of_levels(number), levels, strict=True):
            theirs = [ranks[member] for member in members]
            part = comm.Split(color=members[0], key=comm.Get_rank())
            made.append(self._membership(level, theirs, part, self._neighbours_in(level, theirs, part)))
        membership.add_levels(*made)

    def _neighbours_in(self, number: int, ranks: Sequence[int], comm: Any) -> sharing.Neighbourhood:
        """Those of this rank's neighbours that are in the set, with mail of their own."""
        from ringdp import _core

        host = self.neighbours.host
        members = [rank for rank in self.neighbours.members if rank in ranks]
        mail = host.make_mail(len(members)) if len(members) > 1 else _core.NOWHERE
        offsets = dict(comm.allgather((self.rank, mail)))
        if len(members) < 2:
            return sharing.Neighbourhood()
        if mail != _core.NOWHERE:
            self._mail[number] = mail
        if any(offsets[member] == _core.NOWHERE for member in members):
            return sharing.Neighbourhood()
        return sharing.Neighbourhood(
            host, self.neighbours.kind, members, [offsets[member] for member in members]
        )
