"""What is said of processes: strange names, processes that stop, end and vanish."""

import os
import signal
import subprocess
import sys
import time

import pytest

from ringdp import processes

NAMES = ["plain", "two words", "a) S 1 (b", ")", "((", "end\nof line", "SigCgt:\tff"]
NAMED = """
import ctypes, signal, sys, time
ctypes.CDLL(None).prctl(15, sys.argv[1].encode())  # PR_SET_NAME
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.signal(signal.SIGUSR2, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
print("up", flush=True)
time.sleep(100)
"""


def until(what):
    end = time.monotonic() + 30
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("name", NAMES)
def test_whatever_its_name_is(name):
    child = subprocess.Popen([sys.executable, "-c", NAMED, name], stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"up\n"
        until(lambda: processes.find(child.pid).state == "S")
        one = processes.find(child.pid)
        assert (one.pid, one.parent) == (child.pid, os.getpid())
        assert not one.has_ended and not one.is_stopped
        assert one.born >= processes.find(os.getpid()).born > 0
        assert child.pid in processes.children(os.getpid())
        found = processes.signals(child.pid)
        bits = [1 << (number - 1) for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)]
        assert found.caught & bits[0] and found.ignored & bits[1] and found.blocked == bits[2]
        assert found.catches(signal.SIGUSR1) and not found.catches(signal.SIGUSR2)

        child.send_signal(signal.SIGSTOP)
        until(lambda: processes.find(child.pid).is_stopped)
        assert processes.find(child.pid).born == one.born
        child.kill()
        until(lambda: processes.find(child.pid).has_ended)  # and nobody has collected it
        assert child.pid not in processes.children(os.getpid())
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    assert processes.find(child.pid) is None
    assert processes.signals(child.pid) == processes.Signals()


def test_itself():
    assert processes.find(os.getpid()).parent == os.getppid()
    assert processes.signals("self") == processes.signals(os.getpid())
    assert processes.space() == os.stat("/proc/self/ns/pid").st_ino


@pytest.mark.parametrize(
    "text", [b"", b"17", b"17 (x", b"17 (x) S 1 2", b"17 (x) SS " + b"1 " * 30, b"17 (x) S " + b"one " * 30]
)
def test_what_is_no_state_of_a_process(text):
    assert processes.parse_stat(text) is None


def test_a_name_that_looks_like_signals_is_a_name():
    assert processes.parse_status(b"Name:\tSigCgt:\\nff\nSigCgt:\t0000000000000001\n").caught == 1
    assert processes.parse_status(b"Name:\tx\nSigCgt:\tmany\n") == processes.Signals()
