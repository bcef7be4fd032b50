"""What of a program's output says why it failed."""

from __future__ import annotations

LINES, MOST = 12, 2000


def why(text: str) -> str:
    """The lines of exceptions, which what launchers say may follow; without one the last lines."""
    lines = ["".join(c for c in line if c.isprintable()).strip() for line in text.splitlines()]
    named = [line for line in lines if line.partition(":")[0].endswith(("Error", "Exception", "Failed"))]
    chosen = list(dict.fromkeys(named)) or [line for line in lines if line]
    return "it said: " + " | ".join(chosen[-LINES:])[-MOST:] if chosen else "it said nothing"
