"""examples/images/demo.py finds what is wrong with a result, and the progress line moves on terminals only."""

import contextlib
import fcntl
import os
import pty
import select
import struct
import termios
from collections.abc import Iterator
from typing import Any

import pytest
from driver.phases import ROOT


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "images"))


def result(**changes: Any) -> dict[str, Any]:
    good = {
        "ranks": 2,
        "threads_per_rank": 1,
        "accuracy": 0.97,
        "samples_per_second": 12345.6,
        "exchange_ms_per_step": 0.5,
        "exchange_share": 0.125,
        "parameters_identical": True,
        "exit_code": 0,
    }
    return good | changes


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"accuracy": 0.9699}, "the accuracy on 2 ranks is 0.9699, below 0.97"),
        ({"accuracy": float("nan")}, "the accuracy on 2 ranks is nan, below 0.97"),
        ({"parameters_identical": False, "exit_code": 1}, "the parameters differ on 2 ranks"),
        ({"exit_code": 139}, "training on 2 ranks ended with exit code 139"),
    ],
)
def test_the_demo_finds_what_is_wrong(images: None, changes: dict[str, Any], problem: str) -> None:
    import demo

    assert demo.problems_of(result()) == []
    assert demo.problems_of(result(**changes)) == [problem]


def test_the_table(images: None) -> None:
    import demo

    lines = [line.split() for line in demo.table([result(), result(ranks=1, accuracy=0.98)]).splitlines()]
    assert lines == [
        ["2", "ranks", "1", "rank"],
        ["threads", "a", "rank", "1", "1"],
        ["held-out", "accuracy", "0.9700", "0.9800"],
        ["samples/s", "12,346", "12,346"],
        ["exchange,", "ms/step", "0.50", "0.50"],
        ["exchange,", "share", "12", "%", "12", "%"],
        ["ranks'", "parameters", "identical", "identical"],
    ]


@contextlib.contextmanager
def output_to_terminal(columns: int) -> Iterator[int]:
    """Standard output is a terminal of this width; gives its other end, from which to read what was written."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(theirs, "w") as out, contextlib.redirect_stdout(out):
        yield ours
    os.close(ours)


def read_line(terminal: int) -> str:
    """What was written up to the end of the line, which the kernel may hand over in parts."""
    written = b""
    while not written.endswith(b"\n") and select.select([terminal], [], [], 10)[0]:
        written += os.read(terminal, 4096)
    return written.decode()


@pytest.mark.parametrize("columns", [0, 80])
def test_the_line_moves_where_someone_watches(images: None, columns: int) -> None:
    import progress

    with output_to_terminal(columns) as terminal:
        shown = progress.Progress(epochs=1, steps=2, batch_size=60, shown=True)
        shown.step(1, loss=2.5, seconds=0.5, exchange=0.125)
        shown.epoch(loss=2.0, seconds=1.0, exchange=0.25)
        written = read_line(terminal)
    line = "epoch 1/1  loss 2.0000      120 samples/s  exchange 125.00 ms/step (25 %)\r\n"
    if columns:
        assert "loss 2.5000" in written and "##########.........." in written
        assert written.endswith("\r\x1b[K" + line)
    else:
        assert written == line
    assert shown.result() == {
        "loss": 2.0,
        "samples_per_second": 120.0,
        "exchange_ms_per_step": 125.0,
        "exchange_share": 0.25,
    }
