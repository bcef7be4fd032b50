"""What is said of ranks that are lost: to people, and to `ringdp run`, which mpirun tells nothing of them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringdp import spares, watch

if TYPE_CHECKING:
    from ringdp.world import World

FILE = "lost.jsonl"  # in the report's folder: a line of JSON for each recovery


def tell(before: World, lost: Sequence[int], dead: int, here: World, seconds: float) -> None:
    """By rank 0: a line, and one for `ringdp run`. `dead`: spares that were lost."""
    size = here.place.size
    joined = size - (before.place.size - len(lost))
    if lost:
        who = (
            f", and with {joined} more in {'its place' if len(lost) == 1 else 'their places'}"
            if joined
            else ""
        )
        spares.say(
            f"rank 0: going on without {named(lost)} (of {before.place.size}){who}: {size} left, generation "
            f"{here.generation}, after {seconds:.2f} s"
        )
    if dead:
        spares.say(f"rank 0: {_spares(dead)} died before there was need of it")
    numbers = {"generation": here.generation, "of": before.place.size, "left": size}
    write({"lost": list(lost), **numbers, "joined": joined, "spares": dead})


def write(line: dict[str, Any]) -> None:
    try:
        folder = report_folder()
        folder.mkdir(mode=0o700, exist_ok=True)
        with (folder / FILE).open("a") as file:
            print(json.dumps(line), file=file)
    except OSError as error:
        spares.say(f"rank 0: `ringdp run` will not hear of it: {error}")


def report_folder() -> Path:
    """Of the job, whatever its generation."""
    return watch.report_folder(watch.name_of_job(os.environ), os.environ.get(watch.FOLDER) or os.getcwd())


def _spares(count: int) -> str:
    return f"{count} spare{'s' * (count > 1)}"


def named(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
