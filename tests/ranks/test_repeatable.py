"""Contracts 1, 2 and 4: the same ranks give the same bits, on all ranks, whatever the times at which calls arrive."""

import hashlib
import random
import time

import numpy as np
import pytest

import ringdp

ROUNDS = 20


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_random_floats_under_random_delays_give_one_hash(dtype):
    source = np.random.default_rng(ringdp.rank())
    x = source.standard_normal(200_003).astype(dtype)
    delays = random.Random(1000 + ringdp.rank())
    hashes = set()
    for i in range(ROUNDS):
        time.sleep(delays.random() * 0.005)
        if i % 5 == ringdp.rank() % 5:  # load: keep a core busy while the others exchange
            end = time.monotonic() + 0.01
            while time.monotonic() < end:
                pass
        hashes.add(hashlib.sha256(ringdp.allreduce(x, name=f"x.{i % 3}").tobytes()).hexdigest())
    everywhere = set().union(*ringdp.allgather_object(hashes))
    assert len(everywhere) == 1
