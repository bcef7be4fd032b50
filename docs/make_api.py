"""Writes docs/api.md, the reference of every public name, from signatures and docstrings: `python docs/make_api.py`."""

from __future__ import annotations

import enum
import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

PAGE = Path(__file__).with_name("api.md")
MODULES = (
    "ringdp.torch",
    "ringdp.torch.data",
    "ringdp.torch.elastic",
    "ringdp.torch.parallel",
    "ringdp",
    "ringdp.compat",
)
# Those with frameworks that are not in every environment, as far as they are there: where one's framework is missing,
# its section stays as it is.
MORE_MODULES = {"ringdp.tensorflow": "tensorflow", "ringdp.jax": "jax", "ringdp.keras": "keras"}
HEAD = """# API reference

Written from the docstrings by `python docs/make_api.py`; do not edit. A name that several modules have stands at the
first.
"""


def page() -> str:
    """The whole page."""
    parts, seen = [HEAD], set[tuple[str, int]]()
    for name in modules():
        parts += section(name, seen) if can_be_imported(name) else [section_there_is(name)]
    return "\n".join(parts)


def modules() -> tuple[str, ...]:
    """Those that the page has sections of, in their order."""
    return MODULES + tuple(
        name for name in MORE_MODULES if (s := importlib.util.find_spec(name)) and s.origin
    )


def can_be_imported(name: str) -> bool:
    return name not in MORE_MODULES or importlib.util.find_spec(MORE_MODULES[name]) is not None


def section(name: str, seen: set[tuple[str, int]]) -> Iterator[str]:
    """Of one module; `seen`: the names that have been shown."""
    module = importlib.import_module(name)
    yield f"## {name}\n\n```text\n{inspect.getdoc(module)}\n```\n"
    for public in public_names(module):
        thing = getattr(module, public)
        known = public, id(inspect.unwrap(thing))
        if known not in seen:
            seen.add(known)
            yield "\n".join(entry(public, thing))


def section_there_is(name: str) -> str:
    """As the page shows it."""
    found = re.search(rf"^## {re.escape(name)}\n.*?(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    if not found:
        return ""
    last = found.end() == len(found.string)
    return found[0] if last else found[0].removesuffix("\n")  # as parts of the page are joined by one


def public_names(module: ModuleType) -> list[str]:
    """What the module exports, but for modules (they have sections of their own) and the version."""
    return [
        name
        for name in sorted(module.__all__)
        if name != "__version__" and not inspect.ismodule(getattr(module, name))
    ]


def entry(name: str, thing: Any) -> Iterator[str]:
    """The lines about one name: how it is called, what it says of itself, and the methods of a class."""
    yield f"### `{name}{signature(thing)}`\n"
    yield described(thing) + "\n"
    if inspect.isclass(thing):
        for method, of_class in methods(thing):
            yield f"#### `{name}.{method}{signature(of_class)}`\n"
            yield described(of_class) + "\n"


def methods(cls: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties with a docstring that ringdp's own classes define."""
    for name in sorted(
        {n for base in cls.__mro__ if base.__module__.startswith("ringdp") for n in vars(base)}
    ):
        found = inspect.getattr_static(cls, name)
        is_method = inspect.isroutine(found) or isinstance(found, property)
        if not name.startswith("_") and is_method and inspect.getdoc(found):
            yield name, found if isinstance(found, property) else getattr(cls, name)


def signature(thing: Any) -> str:
    """As it is written in a call, without types: defaults by their names in ringdp."""
    if not callable(thing) or isinstance(thing, enum.Enum) or (inspect.isclass(thing) and is_plain(thing)):
        return ""
    parameters = inspect.signature(thing).parameters.values()
    shown = [p.replace(annotation=p.empty, default=_Shown.of(p)) for p in parameters if p.name != "self"]
    return str(inspect.Signature(shown))


def is_plain(cls: type) -> bool:
    """Enumerations and exceptions: nobody calls them by hand."""
    return issubclass(cls, (enum.Enum, BaseException))


class _Shown:
    """A default, shown as a reader would write it."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text

    @classmethod
    def of(cls, parameter: inspect.Parameter) -> Any:
        value = parameter.default
        if value is parameter.empty:
            return value
        if isinstance(value, enum.Enum):
            return cls(value.name)
        if inspect.isclass(value):
            return cls(value.__name__)
        if type(value).__module__.startswith("ringdp.process_sets"):
            return cls("global_process_set")
        return cls(repr(value))


def described(thing: Any) -> str:
    """The docstring, with its `Args:`, `Returns:` and `Raises:` as lists."""
    lines, is_list = [], False
    for line in (inspect.getdoc(thing) or "").splitlines():
        if re.fullmatch(r"(Args|Raises|Returns|Yields):", line):
            lines.append(f"**{line[:-1]}**\n")
            is_list = True
        elif is_list and line.startswith("    "):
            text = line[4:]
            lines.append(f"  {text.strip()}" if text.startswith(" ") else f"* {text}")
        else:
            is_list = is_list and not line
            lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page())
