"""A steady step sends one vote, its buckets and no table, whatever the number of tensors and ranks."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from frameworks.torch import steady

from ringdp import _core, world


@pytest.mark.parametrize("ranks", [2, 4])
def test_as_processes(ranks):
    command = [sys.executable, "-m", "ringdp", "run", "-n", str(ranks), str(Path(steady.__file__))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"of {ranks}: steady") == ranks


@pytest.mark.parametrize("ranks", [8, 32])
@pytest.mark.parametrize("way", ["plain", "weighed", "sharded"])
def test_as_threads(ranks, way):
    torch.set_num_threads(1)
    engines = _core.local_engines(ranks, 0)
    results = [None] * ranks

    def run(rank):
        with world.use(world.World(engines[rank], world.Place(rank, ranks))):
            try:
                results[rank] = [steady.count(way, tensors, 2) for tensors in (1, 60)]
            except BaseException as failure:
                results[rank] = repr(failure)
            engines[rank].shutdown(10)  # waits for the others'

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(isinstance(of_rank, list) and all(steady for steady, _ in of_rank) for of_rank in results), (
        results
    )
