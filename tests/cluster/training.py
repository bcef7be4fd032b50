"""The small training that the cluster tests start, and what must be true of what it printed."""

import re
from collections.abc import Callable
from pathlib import Path

TRAIN = Path(__file__).with_name("train_small.py")
LINE = re.compile(r"rank (\d+) of (\d+): loss ([\d.]+) -> ([\d.]+), parameters ([0-9a-f]{16})")

Run = Callable[..., tuple[int | None, str]]


def check_training(output: str, ranks: int) -> None:
    """All ranks of one job reported, the loss fell on each, and all hold the same parameters."""
    found = LINE.findall(output)  # not by lines: launchers may join those of several ranks
    assert sorted(int(rank) for rank, *_ in found) == list(range(ranks)), output
    assert {int(size) for _, size, *_ in found} == {ranks}, output
    assert all(float(after) < float(before) / 2 for _, _, before, after, _ in found), output
    assert len({parameters for *_, parameters in found}) == 1, output
