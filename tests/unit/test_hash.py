"""The hash by which ranks compare bits: XXH64, beside one written to be read."""

import numpy as np
import pytest

from ringdp._core import kernels

MASK = (1 << 64) - 1
P = (
    0x9E3779B185EBCA87,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0x85EBCA77C2B2AE63,
    0x27D4EB2F165667C5,
)


def rotated(x: int, left: int) -> int:
    return (x << left | x >> (64 - left)) & MASK


def one_round(lane: int, word: int) -> int:
    return rotated((lane + word * P[1]) & MASK, 31) * P[0] & MASK


def reference(data: bytes, seed: int) -> int:
    at, h = 0, (seed + P[4]) & MASK
    if len(data) >= 32:
        lanes = [(seed + start) & MASK for start in (P[0] + P[1], P[1], 0, -P[0])]
        for at in range(0, len(data) // 32 * 32, 32):
            words = [int.from_bytes(data[at + 8 * i : at + 8 * i + 8], "little") for i in range(4)]
            lanes = [one_round(lane, word) for lane, word in zip(lanes, words, strict=True)]
        at += 32
        h = sum(rotated(lane, by) for lane, by in zip(lanes, (1, 7, 12, 18), strict=True)) & MASK
        for lane in lanes:
            h = ((h ^ one_round(0, lane)) * P[0] + P[3]) & MASK
    h = (h + len(data)) & MASK
    while len(data) - at >= 8:
        h ^= one_round(0, int.from_bytes(data[at : at + 8], "little"))
        h, at = (rotated(h, 27) * P[0] + P[3]) & MASK, at + 8
    if len(data) - at >= 4:
        h ^= int.from_bytes(data[at : at + 4], "little") * P[0] & MASK
        h, at = (rotated(h, 23) * P[1] + P[2]) & MASK, at + 4
    for byte in data[at:]:
        h = rotated(h ^ byte * P[4] & MASK, 11) * P[0] & MASK
    h = (h ^ h >> 33) * P[1] & MASK
    h = (h ^ h >> 29) * P[2] & MASK
    return h ^ h >> 32


def of(data: bytes, seed: int = 0, shift: int = 0) -> int:
    memory = np.frombuffer(bytes(shift) + data, np.uint8)
    return kernels.hash(memory.ctypes.data + shift, len(data), seed)


def test_known_values() -> None:
    """Of the algorithm's author."""
    assert of(b"") == 0xEF46DB3751D8E999
    assert of(b"a") == 0xD24EC4F1A98C6E5B
    assert of(b"abc") == 0x44BC2CF5AD770999


@pytest.mark.parametrize("shift", [0, 1, 7])
def test_as_the_reference(shift: int) -> None:
    data = np.random.default_rng(shift).integers(0, 256, 4100, np.uint8).tobytes()
    for count in [*range(100), 1000, 4096, 4099]:
        for seed in (0, 1, MASK):
            assert of(data[:count], seed, shift) == reference(data[:count], seed)


def test_every_bit_counts() -> None:
    data = np.arange(75, dtype=np.uint8)
    hashes = {of(data.tobytes())}
    for bit in range(8 * len(data)):
        other = data.copy()
        other[bit // 8] ^= 1 << bit % 8
        hashes.add(of(other.tobytes()))
    assert len(hashes) == 8 * len(data) + 1
