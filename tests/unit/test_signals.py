"""What a crash does in the process of a rank."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

# As a handler that prints stacks and waits for a lock that malloc holds, which has found its memory broken.
WAITS = """
import ctypes, os, signal, sys, time
from ringdp import _core
handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: time.sleep(1000))
libc = ctypes.CDLL(None)
libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
libc.signal(int(signal.SIGABRT), ctypes.cast(handler, ctypes.c_void_p))
watch = _core.Watch(sys.argv[1], 0, 1, 0, 1, "a job")
watch.place(0, 1, 0, 1, "a job", sys.argv[2])
os.abort()
"""


def test_after_abort_a_process_ends_whatever_other_handlers_do(tmp_path: Path) -> None:
    """To the other ranks it would be alive."""
    words = [sys.executable, "-c", WAITS, str(tmp_path / "one.flight"), str(tmp_path / "report")]
    assert subprocess.run(words, timeout=60).returncode == -signal.SIGALRM
    assert (tmp_path / "report" / "rank-0.flight").exists()
