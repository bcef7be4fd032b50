"""What the system says of the memory at an address."""

from __future__ import annotations

from pathlib import Path

import pytest

needs_huge_pages = pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(),
    reason="this system has no huge pages to ask for",
)


def flags_at(address: int) -> set[str]:
    """Those of the mapping that has this address, as the system tells them."""
    with open("/proc/self/smaps") as lines:
        inside = False
        for line in lines:
            if line[0].isdigit() or line[0] in "abcdef":
                begin, _, end = line.split()[0].partition("-")
                inside = int(begin, 16) <= address < int(end, 16)
            elif inside and line.startswith("VmFlags:"):
                return set(line.split()[1:])
    return set()
