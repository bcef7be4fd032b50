"""Blocks of signed bytes with a scale, as functions of the host: what ringdp.torch.comm_hooks.int8 makes of them."""

from __future__ import annotations

import numpy as np
import pytest
from gpu import on_host
from gpu.int8_values import values

torch = pytest.importorskip("torch")
int8 = pytest.importorskip("ringdp.torch.comm_hooks.int8")

BLOCKS = (1, 3, 4, 31, 32, 100, 256, 1024)
COUNTS = (0, 1, 2, 3, 127, 256, 257, 10_240, 100_003)


def reference(x: np.ndarray, block: int) -> np.ndarray:
    blocks = -(-x.size // block)
    whole = torch.zeros(blocks, block)
    whole.view(-1)[: x.size] = torch.from_numpy(x)
    return int8.quantise(whole).numpy()


def values_of(wire: np.ndarray) -> np.ndarray:
    # With two blocks more: the hook's function takes no fewer.
    more = np.concatenate([wire, np.zeros((2, wire.shape[1]), np.uint8)])
    return int8.dequantise(torch.from_numpy(more)).numpy().ravel()[: wire.shape[0] * (wire.shape[1] - 4)]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("shift, wire_shift", [(0, 0), (1, 0), (0, 1), (3, 7)])
def test_as_the_hook_does(block: int, count: int, shift: int, wire_shift: int) -> None:
    x = on_host.placed(values(count, block), shift)
    wanted = reference(x, block)
    for grid in (1, 3, 40):
        room = on_host.placed(np.full(wanted.size + 32, 0x55, np.uint8), wire_shift)
        wire = room[16 : 16 + wanted.size]
        on_host.run("quantise", grid, "QQQQ", wire, x, count, block)
        assert np.array_equal(wire, wanted.ravel())
        assert (room[:16] == 0x55).all() and (room[-16:] == 0x55).all()
        back = on_host.placed(np.full(count + 8, 77, np.float32), shift)
        on_host.run("dequantise", grid, "QQQQ", back[4 : 4 + count], wire, count, block)
        expected = values_of(wanted)[:count]
        assert np.array_equal(back[4 : 4 + count].view(np.uint32), expected.view(np.uint32))
        assert (back[:4] == 77).all() and (back[-4:] == 77).all()


def test_ties_and_the_least_scales_are_among_the_values() -> None:
    x = values(100_003)
    blocks = np.abs(x[: x.size // 4 * 4].reshape(-1, 4))
    scales = blocks.max(axis=1) / np.float32(127)
    assert ((scales > 0) & (scales < np.finfo(np.float32).tiny)).any() and (scales == 0).any()
    codes = blocks[scales == 1]
    assert (codes % 1 == 0.5).any()


def test_what_is_not_finite_stays_in_its_block() -> None:
    x = values(256 * 5)
    for bad in (np.inf, -np.inf, np.nan):
        broken = x.copy()
        broken[256 * 2 + 5] = bad
        wire = np.zeros(5 * 260, np.uint8)
        on_host.run("quantise", 1, "QQQQ", wire, broken, broken.size, 256)
        mine, wanted = wire.reshape(5, 260), reference(x, 256)
        keep = [0, 1, 3, 4]
        assert np.array_equal(mine[keep], wanted[keep])
