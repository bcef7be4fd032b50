"""Results that are numbers, arrays, or dicts, lists and tuples of such: taken apart, combined, put together again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ringdp.errors import UsageError

NUMBERS = (bool, int, float, complex)  # Python's, which come back as such


@dataclass(frozen=True)
class Hollow:
    """What there is to know of an array, but for its elements."""

    shape: tuple[int, ...]
    dtype: Any


@dataclass(frozen=True)
class Leaves:
    """A result, taken apart."""

    arrays: Sequence[Any]  # NumPy arrays; Hollow where only the looks are told
    structure: (
        Any  # of the result, with the kind of each leaf in its place: "number", "scalar" (NumPy's) or "array"
    )

    @property
    def looks(self) -> str:
        """The structure with dtypes and shapes."""
        arrays = iter(self.arrays)

        def look(kind: str) -> str:
            array = next(arrays)
            return array.dtype.name if kind == "number" else f"{array.dtype.name}{list(array.shape)}"

        return str(_map(self.structure, look)).replace("'", "")

    def is_like(self, other: Leaves) -> bool:
        """They have the same structure, dtypes and shapes."""
        return self.structure == other.structure and all(
            a.dtype == b.dtype and a.shape == b.shape for a, b in zip(self.arrays, other.arrays, strict=True)
        )

    def combine(self, other: Leaves, function: Callable[[Any, Any], Any]) -> Leaves:
        """Leaf by leaf.

        Raises:
            UsageError: they do not look alike.
        """
        if not self.is_like(other):
            raise UsageError(
                f"the function gave {self.looks} for one part of the data, {other.looks} for another"
            )
        return self.with_arrays([function(a, b) for a, b in zip(self.arrays, other.arrays, strict=True)])

    def map(self, function: Callable[[NDArray[Any]], Any]) -> Leaves:
        """Each leaf changed."""
        return self.with_arrays([function(array) for array in self.arrays])

    def with_arrays(self, arrays: Sequence[Any]) -> Leaves:
        """The same with other leaves."""
        return Leaves([np.asarray(array) for array in arrays], self.structure)

    def without_elements(self) -> Leaves:
        """The same without its elements."""
        return Leaves([Hollow(array.shape, array.dtype) for array in self.arrays], self.structure)

    def put_together(self) -> Any:
        """The result."""
        arrays = iter(self.arrays)

        def leaf(kind: str) -> Any:
            array = next(arrays)
            return array.item() if kind == "number" else array[()] if kind == "scalar" else array

        return _map(self.structure, leaf)


def take_apart(result: Any, adds: bool) -> Leaves:
    """The leaves of a result.

    Args:
        adds: they will be added up: of Python's bools, the number is meant.

    Raises:
        UsageError: a leaf is no number, nor an array of such.
    """
    arrays: list[NDArray[Any]] = []

    def leaf(found: Any) -> str:
        array = np.asarray(found)
        if array.dtype.kind not in "biufc" and not array.dtype.name.startswith(("bfloat", "float")):
            kind = f"{type(found).__module__}.{type(found).__qualname__}"
            raise UsageError(
                f"the function gave a {kind}, which is no number or array: give a function as reduce"
            )
        arrays.append(array.astype(np.int64) if adds and type(found) is bool else array)
        return "number" if type(found) in NUMBERS else "scalar" if isinstance(found, np.generic) else "array"

    structure = _map(result, leaf)
    return Leaves(arrays, structure)


def _map(node: Any, leaf: Callable[[Any], Any]) -> Any:
    """The same structure with other leaves."""
    if isinstance(node, dict):
        return {key: _map(member, leaf) for key, member in node.items()}
    if isinstance(node, list):
        return [_map(member, leaf) for member in node]
    if isinstance(node, tuple):
        members = [_map(member, leaf) for member in node]
        return type(node)(*members) if hasattr(node, "_fields") else tuple(members)
    return leaf(node)
