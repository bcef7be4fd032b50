"""The process that a rank leaves behind on a host that is cut off, to end the launcher's daemon (ringdp/cut_off.py)."""

import os
import subprocess
import sys
import time

import pytest

from ringdp import watch

LIMIT = 30  # seconds; each takes one or two

# A daemon of this name, whose one rank leaves something behind; says what its rank is called, then lives for `seconds`.
DAEMON = """
import ctypes, subprocess, sys, time
ctypes.CDLL(None).prctl(15, {name!r}.encode(), 0, 0, 0)
rank = "from ringdp import cut_off; cut_off.GRACE = 1.0; cut_off.end_daemon_later()"
began = time.monotonic()
subprocess.run([sys.executable, "-c", rank], check=True)
time.sleep({seconds})
"""


def outcome(name, seconds, job="a-job"):
    """Its exit code, and how long it took until it and all that it has started had ended."""
    environ = {**os.environ, watch.JOB: job}
    began = time.monotonic()
    reading, writing = os.pipe()
    with open(reading, "rb") as theirs:
        daemon = subprocess.Popen(
            [sys.executable, "-c", DAEMON.format(name=name, seconds=seconds)],
            env=environ,
            pass_fds=(writing,),
        )
        os.close(writing)
        code = daemon.wait(LIMIT)
        theirs.read()  # until nobody holds it any more
    return code, time.monotonic() - began


def test_a_daemon_that_is_still_there_is_ended():
    assert outcome("prted", 20)[0] == -15


@pytest.mark.parametrize(("name", "job"), [("prterun", "a-job"), ("bash", "a-job"), ("prted", "")])
def test_nobody_else_is_ended(name, job):
    """The launcher itself, a shell; or a daemon that is not known to be of one job alone."""
    assert outcome(name, 3, job)[0] == 0
