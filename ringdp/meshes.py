"""The ranks of the job as a mesh of named axes: model and data parallelism side by side (docs/parallel.md).

`mesh(data=2, model=3)` puts six ranks into a table. The last axis runs fastest: its neighbours are neighbours in the
order of ranks, and so on one host, if that has room for them.

                 model →
                 0   1   2
      data   0   0   1   2        rank 4: mesh.coordinates == {"data": 1, "model": 1}
        ↓    1   3   4   5                mesh.data   the process set of ranks 1, 4
                                          mesh.model  the process set of ranks 3, 4, 5

Each rank has, for each axis, the process set of those that have all other coordinates in common with it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np

from ringdp import world
from ringdp.errors import NotInitializedError, UsageError
from ringdp.process_sets import ProcessSet, add_axes, global_process_set, remove_process_set


class Mesh:
    """What `mesh()` makes. `mesh.model`, or `mesh["model"]`, is the process set of this rank's group along that axis.

    `mesh["data", "model"]` is the set along several axes: the ranks that have all other coordinates in common with this
    one. Along all axes, these are all ranks: `global_process_set`.
    """

    def __init__(self, axes: Mapping[str, int]) -> None:
        self._asked = dict(axes)
        self._sizes: dict[str, int] = {}
        self._sets: dict[tuple[str, ...], ProcessSet] = {}

    # --- what users call ---

    def add(self) -> None:
        """Make the mesh usable again: after `shutdown()` and `init()`, or when `elastic.run` goes on without lost
        ranks. Collective over the job. Its process sets stay the objects they were, with the ranks of now; an axis of
        -1 is as long as it must be. Does nothing where it is usable.

        Raises:
            UsageError, MismatchError: as `mesh()`; or it is usable on some ranks alone.
        """
        sizes, problem = _resolved(self._asked, world.size())
        sets: list[tuple[ProcessSet, list[list[int]]]] = []
        if not problem:
            for some in _combinations(sizes):
                groups = _groups(sizes, some)
                if some not in self._sets:
                    self._sets[some] = ProcessSet([])
                    self._sets[some].is_of_a_mesh = True
                sets.append((self._sets[some], groups))
        add_axes(sets, _shown(self._asked), problem)
        self._sizes = sizes

    def remove(self) -> None:
        """Give up its process sets, as `remove_process_set` does. Collective over the job."""
        for one in self._sets.values():
            if one.process_set_id is not None:
                remove_process_set(one)

    @property
    def axes(self) -> dict[str, int]:
        """The length of each axis, in order."""
        return dict(self._sizes)

    @property
    def coordinates(self) -> dict[str, int]:
        """Where this rank is on each axis.

        Raises:
            NotInitializedError: the mesh is of an earlier generation of ranks: see `add()`.
        """
        self._check()
        places = np.unravel_index(world.rank(), tuple(self._sizes.values()))
        return {name: int(place) for name, place in zip(self._sizes, places, strict=True)}

    def rank(self, *axes: str) -> int:
        """This rank's number in its group along these axes, which is the last one's place if it is one.

        Raises:
            UsageError: no such axis.
            NotInitializedError: as `coordinates`.
        """
        number, here = 0, self.coordinates
        for axis in self._in_order(axes):
            number = number * self._sizes[axis] + here[axis]
        return number

    def size(self, *axes: str) -> int:
        """The number of ranks in a group along these axes.

        Raises:
            UsageError: no such axis.
        """
        return math.prod(self._sizes[axis] for axis in self._in_order(axes))

    def __getitem__(self, axes: str | tuple[str, ...]) -> ProcessSet:
        some = self._in_order((axes,) if isinstance(axes, str) else axes)
        return global_process_set if len(some) == len(self._sizes) else self._sets[some]

    def __getattr__(self, name: str) -> ProcessSet:
        if not name.startswith("_") and name in self._sizes:
            return self[name]
        raise AttributeError(
            f"a Mesh has no attribute {name!r}"
            + ("" if name.startswith("_") else f"; {self} has no such axis")
        )

    def __repr__(self) -> str:
        return f"mesh({_shown(self._sizes or self._asked)})"

    def __reduce__(self) -> Any:
        raise UsageError(f"{self} is of this process alone: it cannot be copied or pickled")

    # --- inside ---

    def _in_order(self, axes: Any) -> tuple[str, ...]:
        """The axes as a key, in the order of the mesh."""
        asked = list(axes) if isinstance(axes, (tuple, list)) else [axes]
        for axis in asked:
            if axis not in self._sizes:
                raise UsageError(f"{self} has no axis {axis!r}: its axes are {', '.join(self._sizes)}")
        if not asked or len(set(asked)) < len(asked):
            raise UsageError(f"{self}: name one or several of its axes, each once, not {asked}")
        return tuple(axis for axis in self._sizes if axis in asked)

    def _check(self) -> None:
        usable = all(one.process_set_id is not None for one in self._sets.values())
        if world.size() != math.prod(self._sizes.values()) or not usable:
            raise NotInitializedError(
                f"{self} cannot be used: it was removed, or made for ranks of an earlier generation: call its add() on "
                "all ranks"
            )


def mesh(**axes: int) -> Mesh:
    """Make the job's ranks a mesh of named axes. Collective: every rank of the job calls it, with the same axes.

    The product of the axes is the number of ranks. Ranks that differ by one on the last axis are neighbours: give that
    one to what exchanges most, such as `model` in `mesh(data=-1, model=2)`. Each set of axes but all of them has
    communicators of its own.

    Args:
        axes: names and lengths, in order. One may be -1: as long as the number of ranks demands.

    Returns:
        The mesh: `mesh.data` is this rank's process set along an axis `data`, for the `process_set=` of operations,
        optimizers and layers.

    Raises:
        UsageError: the product is not the number of ranks, or this is no length or no name for an axis; on every rank,
            whichever gave it.
        MismatchError: the ranks give different axes. On every rank; nothing was made.
        NotInitializedError: before `init()`.
    """
    made = Mesh(axes)
    made.add()
    return made


def _resolved(asked: Mapping[str, Any], ranks: int) -> tuple[dict[str, int], str]:
    """The length of each axis; or what is wrong."""
    sizes = {}
    for name, length in asked.items():
        if name.startswith("_") or hasattr(Mesh, name):
            return {}, f"an axis of a mesh cannot be called {name!r}: a Mesh has that itself"
        try:
            sizes[name] = operator.index(length)
        except TypeError:
            return {}, f"axis {name!r} must have an integer as its length, not {length!r}"
        if sizes[name] < 1 and sizes[name] != -1:
            return {}, f"axis {name!r} must be 1 or longer, or -1 for what is left of the ranks, not {length}"
    shown, open_axes = _shown(asked), [name for name, length in sizes.items() if length == -1]
    if not sizes:
        return {}, "a mesh needs an axis: mesh(data=-1) has all ranks on one"
    if len(open_axes) > 1:
        return {}, f"mesh({shown}): only one axis may be -1, not {' and '.join(open_axes)}"
    product = math.prod(length for length in sizes.values() if length != -1)
    if open_axes and ranks % product == 0:
        sizes[open_axes[0]] = ranks // product
    elif open_axes:
        return {}, (
            f"mesh({shown}) needs a multiple of {product} ranks, and the job has {ranks}: start it with "
            f"{-(-ranks // product) * product}, or choose other axes"
        )
    elif product != ranks:
        return {}, (
            f"mesh({shown}) is of {product} ranks, and the job has {ranks}: start it with {product}, or choose other "
            "axes (one may be -1: what is left)"
        )
    return sizes, ""


def _combinations(sizes: Mapping[str, int]) -> list[tuple[str, ...]]:
    """All choices of axes but those of none and of all."""
    return [some for count in range(1, len(sizes)) for some in combinations(sizes, count)]


def _groups(sizes: Mapping[str, int], along: tuple[str, ...]) -> list[list[int]]:
    """The ranks of each group along these axes; each group, and the list of groups, in the order of ranks."""
    table = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
    last = [place for place, axis in enumerate(sizes) if axis in along]
    moved = np.moveaxis(table, last, range(-len(last), 0))
    return moved.reshape(-1, math.prod(sizes[axis] for axis in along)).tolist()  # type: ignore[no-any-return]


def _shown(axes: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={length}" for name, length in axes.items())
