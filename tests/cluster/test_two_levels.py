"""All-reduce in two levels, on hosts that share nothing: the same bits in every way it can go inside a host."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import hosts as cluster_hosts
from cluster.hosts import Hosts
from cluster.training import Run

TESTS = Path(__file__).resolve().parent.parent
REASON = cluster_hosts.missing()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

USE_UP = """
import os, subprocess
from ringdp import world

def use_up():
    '''What is left of this host's shared memory, all but a little.'''
    used = os.statvfs('/dev/shm')
    used = (used.f_blocks - used.f_bfree) * used.f_frsize
    subprocess.run(['mount', '-o', f'remount,size={used + (1 << 20)}', '/dev/shm'], check=True)
    held = []
    for size in (1 << 18, 1 << 14):
        while (block := world.current().lender.bytes(size)) is not None:
            held.append(block)
    return held
"""

# Random numbers, whose sum depends on the order of addition; 0.4 to 12 MB, as chunks of equal and unequal lengths.
EVERY_WAY = (
    USE_UP
    + """
import hashlib
import numpy as np
import ringdp

def mine(count):
    return np.random.default_rng([ringdp.rank(), count]).standard_normal(count, np.float32)

def sums(make):
    digest = hashlib.sha256()
    for count in (100_000, 100_003, 3_000_001):
        x = make(count)
        x[...] = mine(count)
        digest.update(ringdp.allreduce_(x, op=ringdp.Average, prescale_factor=0.5))
    return digest.hexdigest()

ringdp.init()
algorithm = world.current().engine.algorithm(400_000, 8)
say = lambda way, what: print(f'{way}: {algorithm} {what}.', flush=True)
say('staged', sums(lambda count: np.empty(count, np.float32)))
say('direct', sums(lambda count: ringdp.empty(count, np.float32)))
mixed = lambda count: (np if ringdp.rank() == 1 else ringdp).empty(count, np.float32)
say('mixed', sums(mixed))
held = use_up() if ringdp.rank() == 0 else None
ringdp.barrier()
say('messages', sums(lambda count: np.empty(count, np.float32)))
del held
ringdp.shutdown()
"""
)

# float32 as bfloat16, cast under way, or by a rank itself: in memory of its own, or in shared memory.
CASTS = (
    USE_UP
    + """
import hashlib
import torch
import ringdp.torch as hvd
from ringdp.torch.compression import wire_for

bf16 = hvd.Compression.bf16

def under_way(x):
    assert wire_for(x, bf16, hvd.global_process_set) is not None
    return hvd.allreduce(x, compression=bf16)

def by_itself(empty):
    return lambda x: hvd.allreduce_(empty(x.numel(), dtype=torch.bfloat16).copy_(x)).float()

def sums(reduced):
    digest = hashlib.sha256()
    for count in (100_000, 100_003, 3_000_001):
        x = torch.randn(count, generator=torch.Generator().manual_seed(hvd.rank()))
        digest.update(reduced(x).numpy())
    return digest.hexdigest()

hvd.init()
algorithm = world.current().engine.algorithm(200_000, 7)
say = lambda way, what: print(f'{way}: {algorithm} {what}.', flush=True)
say('under_way', sums(under_way))
say('staged', sums(by_itself(torch.empty)))
say('direct', sums(by_itself(hvd.empty)))
say('mixed', sums(by_itself(hvd.empty) if hvd.rank() == 1 else under_way))
held = use_up() if hvd.rank() == 0 else None
hvd.barrier()
say('messages', sums(under_way))
del held
hvd.shutdown()
"""
)


@pytest.fixture(scope="module")
def two() -> Iterator[Hosts]:
    with Hosts(2) as hosts:
        yield hosts


WAYS = {"plain": (EVERY_WAY, ()), "cast": (CASTS, ("under_way",))}


@pytest.mark.parametrize("kind", WAYS)
def test_every_way_inside_a_host_gives_the_same_bits(two: Hosts, run: Run, kind: str) -> None:
    script, more = WAYS[kind]
    command, env = two.job([sys.executable, "-c", script], 2)
    # Open MPI's own shared memory grows as it goes, without asking whether any is left: a bus error once there is none.
    command = ["tcp,self" if word == "tcp,self,sm" else word for word in command]
    code, output = run(command, env | {"RINGDP_SHARED_MEMORY": "file", "RINGDP_TIMEOUT": "20"})
    assert code == 0, output
    found = re.findall(r"(\w+): (\w+) ([0-9a-f]{64})\.", output)
    ways = [way for way, _, _ in found]
    assert sorted(ways) == sorted(4 * ["staged", "direct", "mixed", "messages", *more]), output
    assert {algorithm for _, algorithm, _ in found} == {"two_level"}, output
    assert len({digest for _, _, digest in found}) == 1, output
    assert re.search(r"rank 0: \d+ bytes of shared memory wanted, \d+ bytes free", output), output


# Arrays on GPUs, those of the stand-in: NCCL inside a host, MPI between.
ON_GPUS = """
import numpy as np
import standin
standin.use(devices=2)
import cupy
import ringdp.cupy as rdp
from ringdp import world

def by():
    return {name: n for name, n in world.current().engine.counters().items() if name.startswith('by_')}

def sums(process_set, ranks):
    for count in (1, 1000, 3_000_001):
        x = np.arange(count, dtype=np.float32) % 1000
        got = rdp.allreduce(cupy.array(x * (rdp.rank() + 1)), op=rdp.Sum, process_set=process_set).get()
        assert (got == x * sum(rank + 1 for rank in ranks)).all(), count

for _ in range(2):
    rdp.init()
    with cupy.cuda.Device(rdp.local_rank()), cupy.cuda.Stream():
        sums(rdp.global_process_set, range(4))
        again, alone = rdp.add_process_set(range(4)), rdp.add_process_set([0, 3])
        before = by()
        sums(again, range(4))
        found = {name: n - before[name] for name, n in by().items()}
        if alone.included():
            sums(alone, [0, 3])
        assert rdp.remove_process_set(again) and rdp.remove_process_set(alone)
        sums(rdp.global_process_set, range(4))
    rdp.shutdown()
print(f"two levels: {found['by_two_levels']}, NCCL in the host: {found['by_nccl'] > 0}", flush=True)
"""


def test_arrays_on_gpus(two: Hosts, run: Run) -> None:
    command, env = two.job([sys.executable, "-c", ON_GPUS], 2)
    env = {**env, "RINGDP_GPU_TRANSPORT": "two_level", "RINGDP_TIMEOUT": "20", "PYTHONPATH": str(TESTS)}
    code, output = run(command, env)
    # Three, and the two with which the way is checked; none for the set that has one rank on each host.
    assert code == 0 and output.count("two levels: 5, NCCL in the host: True") == 4, output
    assert output.count("through host memory") == 2, output  # that set's, in each of the two jobs
