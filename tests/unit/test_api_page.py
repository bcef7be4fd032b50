"""docs/api.md is what the docstrings say."""

import importlib
import inspect
import runpy
from pathlib import Path

import pytest

pytest.importorskip("torch")

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "make_api.py"
MAKE = runpy.run_path(str(SCRIPT))


def test_the_page_is_up_to_date() -> None:
    assert MAKE["PAGE"].read_text() == MAKE["page"](), "run `python docs/make_api.py`"


@pytest.mark.parametrize("module", [*filter(MAKE["can_be_imported"], MAKE["modules"]())])
def test_every_public_name_says_what_it_is(module: str) -> None:
    found = importlib.import_module(module)
    assert inspect.getdoc(found)
    for name in MAKE["public_names"](found):
        thing = getattr(found, name)
        text = inspect.getdoc(thing)
        assert text, name
        # An instance of a built-in type would show that type's docstring.
        assert inspect.isclass(thing) or inspect.isroutine(thing) or type(thing).__module__ != "builtins", (
            name
        )


def test_a_name_that_is_new_changes_the_page() -> None:
    def newcomer(tensor: int, op: object = None) -> None:
        """Says so.

        Args:
            tensor: of any shape,
                and any dtype.
        """

    text = "\n".join(MAKE["entry"]("newcomer", newcomer))
    assert text.startswith("### `newcomer(tensor, op=None)`\n\nSays so.\n")
    assert text.rstrip().endswith("**Args**\n\n* tensor: of any shape,\n  and any dtype.")


@pytest.mark.parametrize("module", ["ringdp.torch.data", "ringdp.compat"])
def test_a_section_whose_framework_is_missing_stays(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there = MAKE["can_be_imported"]
    monkeypatch.setitem(
        MAKE["page"].__globals__, "can_be_imported", lambda name: name != module and there(name)
    )
    monkeypatch.setitem(MAKE["page"].__globals__, "section", section_without(module))
    assert f"\n## {module}\n" in MAKE["page"]() and MAKE["page"]() == MAKE["PAGE"].read_text()


def section_without(missing: str):
    section = MAKE["page"].__globals__["section"]

    def checked(name: str, seen: set):
        assert name != missing
        return section(name, seen)

    return checked
