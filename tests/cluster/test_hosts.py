"""Hosts made of namespaces: links that can be slowed and cut, ranks that share nothing, and nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import hosts as cluster_hosts
from cluster.hosts import Hosts
from cluster.training import Run

REASON = cluster_hosts.missing()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 1), timeout=0.5)"
SUM = """
import os, numpy, ringdp
ringdp.init()
total = ringdp.allreduce(numpy.float32([10 ** ringdp.rank()]), op=ringdp.Sum)
print(f"{os.uname().nodename} rank {ringdp.rank()} of {ringdp.size()}: {total[0]:.0f}", flush=True)
ringdp.shutdown()
"""
HOLD = """
import sys, time
sys.path.insert(0, sys.argv[1])
from cluster.hosts import Hosts
with Hosts(1) as hosts:
    print(hosts.on(0, ["true"])[2], flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def two() -> Iterator[Hosts]:
    with Hosts(2) as hosts:
        yield hosts


def connects(hosts: Hosts) -> str:
    """What happens to a connection to the other host's port 1, where nobody listens."""
    words = hosts.on(0, [sys.executable, "-c", CONNECT, hosts.addresses[1]])
    return subprocess.run(words, capture_output=True, text=True).stderr.splitlines()[-1].split(":")[0]


def test_a_link_is_as_fast_as_it_was_made(two: Hosts) -> None:
    for rate, gigabits in (("40mbit", 0.04), ("160mbit", 0.16)):
        two.set_rate(rate)
        assert (
            gigabits * 0.5 < two.raw_limit(4 << 20) < gigabits * 1.3
        )  # the burst of the limit goes unhindered
    two.set_rate(None)
    assert two.raw_limit(16 << 20) > 0.5


def test_a_link_that_is_cut_carries_nothing_until_it_is_healed(two: Hosts) -> None:
    assert connects(two) == "ConnectionRefusedError"
    two.cut(1)
    assert connects(two) == "TimeoutError"
    two.heal(1)
    assert connects(two) == "ConnectionRefusedError"


def test_hosts_share_neither_names_nor_processes_nor_files(two: Hosts) -> None:
    look = ["sh", "-c", "hostname; ls /proc | grep -c '^[0-9]'; touch /dev/shm/$(hostname); ls /dev/shm"]
    seen = [subprocess.run(two.on(i, look), capture_output=True, text=True).stdout.split() for i in (0, 1)]
    for i in (0, 1):
        name, processes, *files = seen[i]
        assert name == f"host{i + 1}"
        assert int(processes) < 10
        assert files == [name]


@pytest.mark.parametrize("per_host", [1, 2])
def test_an_mpi_job_runs_across_them(two: Hosts, run: Run, per_host: int) -> None:
    command, env = two.job([sys.executable, "-c", SUM], per_host)
    code, output = run(command, env)
    assert code == 0, output
    ranks = 2 * per_host
    total = sum(10**rank for rank in range(ranks))
    for rank in range(ranks):
        assert f"host{rank // per_host + 1} rank {rank} of {ranks}: {total}" in output


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_they_die_with_their_maker(end: signal.Signals) -> None:
    tests = str(Path(__file__).parent.parent)
    maker = subprocess.Popen([sys.executable, "-c", HOLD, tests], stdout=subprocess.PIPE, text=True)
    assert maker.stdout
    init = int(maker.stdout.readline())
    os.kill(init, 0)  # it is there
    maker.send_signal(end)
    maker.communicate()
    deadline = time.monotonic() + 5
    while Path(f"/proc/{init}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{init}").exists()
