"""The copies of memory: every byte, and none beside it."""

import numpy as np
import pytest

from ringdp._core import kernels

PAD = 80


@pytest.mark.parametrize("copy", [kernels.copy, kernels.stream])
@pytest.mark.parametrize("to_offset", [0, 1, 4, 63])
@pytest.mark.parametrize("from_offset", [0, 3, 4, 62])
def test_copies_exactly(copy, to_offset, from_offset):
    for count in [*range(200), 4095, 4096, 4097, 100_003]:
        source = (np.arange(count + from_offset) * 7 % 251).astype(np.uint8)
        target = np.full(count + to_offset + PAD, 255, dtype=np.uint8)
        copy(target.ctypes.data + to_offset, source.ctypes.data + from_offset, count)
        assert np.array_equal(target[to_offset : to_offset + count], source[from_offset:])
        assert (target[:to_offset] == 255).all() and (target[to_offset + count :] == 255).all()
