"""docs/frameworks.md: each "yes" of its table has a test that shows it, and each mark of a test has its "yes"."""

from pathlib import Path

import pytest
from frameworks import shown
from frameworks.shown import Cell

HOW = "python tests/frameworks/shown.py writes the table anew"


def text_of_page() -> str:
    return shown.PAGE.read_text(encoding="utf-8")


def test_what_the_page_says_is_what_tests_show() -> None:
    said, found = shown.read(text_of_page()), shown.shown()
    assert not said - set(found), f"a yes without a test; {HOW}"
    assert not set(found) - said, f"a test without its yes; {HOW}"
    assert said, "the page has no table"


def test_every_row_is_there_once() -> None:
    lines = text_of_page().splitlines()
    assert {row: sum(line.startswith(f"| {row} |") for line in lines) for row in shown.ROWS} == dict.fromkeys(
        shown.ROWS, 1
    )
    assert shown.table(shown.read(text_of_page())).strip() in text_of_page()


def test_marks_are_in_files_that_run() -> None:
    places = {place for places in shown.shown().values() for place in places}
    names = {Path(place.rpartition(":")[0]).name for place in places}
    assert [name for name in names if not name.startswith(("test_", "ranks_"))] == []


def page_with(row: str) -> str:
    head = f"| Collectives | {' | '.join(shown.HEADINGS[c] for c in shown.COLUMNS)} |"
    return f"{shown.BEGIN}\n{head}\n|---|\n{row}\n{shown.END}"


def test_reading() -> None:
    others = ["–"] * len(shown.COLUMNS)
    others[3] = "yes"
    row = f"| broadcast | {' | '.join(others)} |"
    assert shown.read(page_with(row)) == {Cell("broadcast", "torch", "compiled")}
    for wrong in (
        row.replace("yes", "partly"),
        row.replace("broadcast", "broadcasts"),
        row + " yes |",
        "| broadcast |",
    ):
        with pytest.raises(ValueError, match="not a row of the table"):
            shown.read(page_with(wrong))
    everything = {Cell(row, *column) for row in shown.ROWS for column in shown.COLUMNS}
    for cells in (set(), everything, {Cell("join", "jax", "eager")}):
        assert shown.read(f"{shown.BEGIN}{shown.table(cells)}{shown.END}") == cells


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("allreduces", "torch", "eager"), "no such operation: allreduces"),
        ((["allreduce", "y"], "torch", "eager"), "no such operation: y"),
        (("allreduce", "pytorch", "eager"), "no such framework: pytorch"),
        (("allreduce", "torch"), "these ways: eager, compiled"),
        (("allreduce", "keras", "eager"), "these ways: tensorflow, jax, torch"),
        (([], "torch", "eager"), "these ways"),
    ],
)
def test_marks_that_say_nothing(arguments: tuple, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        shown.cells(*arguments)


def test_marks_are_found_wherever_pytest_finds_them(tmp_path: Path) -> None:
    file = tmp_path / "ranks_some.py"
    file.write_text(
        "import pytest\n"
        "@pytest.mark.slow\n"
        '@pytest.mark.shows(["join", "barrier"], "jax", "eager", "compiled")\n'
        "def test_a(): ...\n"
        'CASES = [pytest.param(1, marks=pytest.mark.shows("join", "torch", "eager"))]\n'
    )
    assert list(shown.marks(file)) == [
        (3, [["join", "barrier"], "jax", "eager", "compiled"]),
        (5, ["join", "torch", "eager"]),
    ]
    file.write_text(
        "import pytest\nALL = 'jax', 'eager'\n@pytest.mark.shows('join', *ALL)\ndef test(): ...\nWAY = ALL[1]\n"
    )
    assert list(shown.marks(file)) == [(3, ["join", "jax", "eager"])]
    file.write_text(file.read_text() + "@pytest.mark.shows('join', 'torch', WAY)\ndef test(): ...\n")
    with pytest.raises(ValueError, match="ranks_some.py:6: shows: its arguments are read, not run"):
        list(shown.marks(file))
