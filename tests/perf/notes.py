"""notes.md: what people wrote about the figures; the document takes it in, each part at its place."""

import re
from pathlib import Path

FILE = Path(__file__).with_name("notes.md")
PLACES = ("how", "targets", "small", "large", "four", "types", "link", "link small", "step", "idle")


def parse(text: str) -> dict[str, str]:
    """The parts by the place that their heading, `## place`, names; what stands before the first is for its readers.

    Raises ValueError for a place that there is not: the text would be lost.
    """
    parts: dict[str, str] = {}
    for piece in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        place, _, body = piece.partition("\n")
        place = place.strip()
        if place not in PLACES or place in parts:
            raise ValueError(f"notes.md: {place!r} is not one of {', '.join(PLACES)}, or comes twice")
        parts[place] = body.strip()
    return parts
