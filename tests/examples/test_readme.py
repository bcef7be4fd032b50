"""What README.md and the documents say can be done."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from driver.phases import ROOT

DOCUMENTS = [
    "README.md",
    "examples/README.md",
    "csrc/README.md",
    *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")),
]


def test_the_ten_lines_run(run: Callable[..., tuple[int | None, str]], tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    script = tmp_path / "script.py"
    script.write_text(example)
    code, output = run(2, script)
    assert code == 0, output
    losses = dict(re.findall(r"rank (\d) of 2: loss ([\d.]+)", output))
    assert losses.keys() == {"0", "1"}, output
    assert all(float(loss) < 1e-4 for loss in losses.values()), output


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    file = ROOT / document
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", file.read_text())
    assert [link for link in links if not (file.parent / link).exists()] == []
