"""Processes that wait to take the places of lost ranks: what needs no MPI. The rest: tests/faults/test_spares.py."""

import os
import subprocess
import time

import pytest

from ringdp import recovery, spares
from ringdp.errors import InitError, UsageError
from ringdp.fence import Fence, NotRecovered


@pytest.fixture
def child():
    process = subprocess.Popen(["sleep", "100"])
    yield process
    process.kill()
    process.wait()


def of(process, **other):
    found = spares.processes.find(process.pid)
    values = {"host": spares.Process.mine().host, "pid": process.pid, "born": found.born} | other
    return spares.Process(**values)


def test_a_process_is_known_by_more_than_its_number(child):
    here = spares.Process.mine().host
    assert of(child).seen(here).pid == child.pid and not of(child).has_gone(here)
    another = of(child, born=1)  # that had this number before
    assert another.seen(here) is None and another.has_gone(here)
    another.kill(here)
    elsewhere = of(child, host=("other", 0))  # nothing is known of it
    assert elsewhere.seen(here) is None and not elsewhere.has_gone(here)
    elsewhere.kill(here)
    time.sleep(0.1)
    assert child.poll() is None
    mine = of(child)
    mine.kill(here)
    assert child.wait(10) == -9 and mine.has_gone(here)


def test_a_stopped_spare_is_fenced_when_its_time_is_over(child, monkeypatch):
    monkeypatch.setenv("RINGDP_TIMEOUT", "20")

    class Watch:
        def neighbours(self):
            return []

    fence = Fence(Watch(), False, [of(child)])
    fence.look(fence._began + 30)  # it runs
    os.kill(child.pid, 19)
    while not of(child).seen(spares.Process.mine().host).is_stopped:
        time.sleep(0.01)
    fence.look(fence._began + 10)
    assert child.poll() is None
    fence.look(fence._began + 20)
    assert child.wait(10) == -9


def test_the_bar_lets_all_pass_but_exchanges(monkeypatch):
    class Engine:
        timeout = 7

        def submit(self):
            raise AssertionError

    monkeypatch.setattr(spares, "_rank", lambda: 3)
    barred = spares.Barred(Engine())
    assert barred.timeout == 7 and not barred.open_plan(0, "name", "text").memory_in_use()
    for exchange in ("submit", "allreduce", "vote"):
        with pytest.raises(UsageError, match="rank 3: an exchange before elastic.run"):
            getattr(barred, exchange)


def test_a_communicator_of_ones_own_is_refused(monkeypatch):
    spares.refuse([0, 1])
    monkeypatch.setenv("RINGDP_SPARES", "2")
    monkeypatch.setenv("RINGDP_ELASTIC", "0")
    spares.refuse([0, 1])
    monkeypatch.setenv("RINGDP_ELASTIC", "1")
    spares.refuse(None)
    with pytest.raises(InitError, match=r"init\(comm=...\) cannot be in a job with spares"):
        spares.refuse([0, 1])


def test_who_can_be_replaced(monkeypatch):
    monkeypatch.setattr("ringdp.world.rank", lambda: 2)
    recovery.refuse_unlike([0, 1, -1])
    with pytest.raises(NotRecovered, match="all ranks that had the state were lost"):
        recovery.refuse_unlike([1, 1, -1])
    recovery.refuse_unlike([0, 2, -1])  # a rank that lives goes on, and the new one ends
    monkeypatch.setattr(recovery, "_new", True)
    with pytest.raises(UsageError, match="the others are in their elastic.run number 2"):
        recovery.refuse_unlike([0, 2, -1])
