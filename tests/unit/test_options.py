"""docs/running.md lists the options of the core as the core knows them."""

import re
from pathlib import Path

from ringdp import _core

RUNNING = Path(__file__).resolve().parents[2] / "docs" / "running.md"


def test_the_documented_options_are_the_real_ones():
    section = RUNNING.read_text().split("## Options of the engine")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \| (.*) \|$", section, re.MULTILINE)
    assert rows == [tuple(row) for row in _core.option_table()]
