"""The page about torch.distributed: its program runs as it stands there, and a mistake in it is shown."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

Run = Callable[..., tuple[int | None, str]]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "torch-distributed.md"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    found = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found
    script = tmp_path / "script.py"
    script.write_text(found[1])
    return script


def test_the_program_of_the_page(run: Run, program: Path) -> None:
    code, output = run(2, program)
    assert code == 0, output
    assert sorted(re.findall(r"rank \d of \d: loss 0.000\d", output)) == [
        f"rank {r} of 2: loss 0.0000" for r in (0, 1)
    ]


def test_an_exception_on_one_rank_is_shown_before_it_ends_the_job(run: Run, program: Path) -> None:
    """torch.distributed's excepthook holds back what is written until ringdp's has returned, which it never does."""
    text = program.read_text()
    line = "for step in range(100):\n"
    assert line in text
    mistake = '    if step == 3 and dist.get_rank() == 1:\n        raise KeyError("the cause")\n'
    program.write_text(text.replace(line, line + mistake))
    code, output = run(2, program)
    assert code not in (0, None), output
    assert "KeyError: 'the cause'" in output and output.count("Traceback (most recent call last)") == 1
    assert "ringdp: rank 1 ended by KeyError: ending the job" in output
