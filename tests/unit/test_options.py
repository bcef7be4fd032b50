"""docs/running.md lists the options of the core as the core knows them."""

import re
from pathlib import Path

from ringdp import _core, buckets

RUNNING = Path(__file__).resolve().parents[2] / "docs" / "running.md"


def test_the_documented_options_are_the_real_ones():
    section = RUNNING.read_text().split("## Options of the engine")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \| (.*) \|$", section, re.MULTILINE)
    assert rows == [tuple(row) for row in _core.option_table()]


def test_the_documented_size_of_a_bucket_is_the_real_one():
    assert {row[0]: row[1] for row in _core.option_table()}["RINGDP_BUCKET_BYTES"] == str(
        buckets.BUCKET_BYTES
    )
