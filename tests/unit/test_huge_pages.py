"""Large memory that is about to be written is in huge pages, where the system leaves that to programs."""

import mmap

import numpy as np
import pytest
from memory_flags import flags_at, needs_huge_pages

from ringdp import _core

MIB = 1 << 20


@needs_huge_pages
@pytest.mark.parametrize(("bytes_", "wanted"), [(16 * MIB, True), (5 * MIB, True), (3 * MIB, False)])
def test_the_whole_huge_pages_of_a_large_piece_are_asked_for(bytes_: int, wanted: bool) -> None:
    memory = np.frombuffer(mmap.mmap(-1, bytes_ + 6 * MIB), np.uint8)
    first = memory.ctypes.data
    begin = -(-first // (2 * MIB)) * 2 * MIB + 64  # not where a huge page begins
    if "hg" in flags_at(first):
        pytest.skip("all memory is in huge pages here")
    _core.expect_writes(begin, bytes_)
    assert ("hg" in flags_at(begin + 2 * MIB)) == wanted
    assert "hg" not in flags_at(begin)  # the page that it shares with other memory
    assert not memory.any()
    memory[:] = 1
