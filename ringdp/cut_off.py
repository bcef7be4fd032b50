"""The launcher's daemon on a host that is cut off from the launcher.

Open MPI's daemon (prted) ends when the launcher says so, or when it loses its connection to it. Where the link is cut,
TCP takes a quarter of an hour to find that out, and who has started the daemon cannot reach it. So a rank that ends
the job there leaves a process behind, which ends the daemon if it is still there when the launcher should long have
ended it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from ringdp import watch

GRACE = (
    10.0  # seconds that a launcher has for ending the job when MPI_Abort has told it to: it takes one or two
)

_DAEMON = "prted"
_ENDER = """
import select, signal, sys
daemon, grace = int(sys.argv[1]), float(sys.argv[2])
has_ended = select.poll()
has_ended.register(daemon, select.POLLIN)
for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 2)):
    if has_ended.poll(seconds * 1000):
        break
    signal.pidfd_send_signal(daemon, number)
"""


def end_daemon_later() -> None:
    """This rank is about to end the job, as others do not answer. Only under `ringdp run`, where the daemon serves this
    job alone, and where the launcher's own process is not on this host."""
    if not os.environ.get(watch.JOB) or not sys.executable:
        return
    with contextlib.suppress(OSError):  # nothing more can be done here
        parent = os.getppid()
        daemon = os.pidfd_open(parent)
        if os.getppid() == parent and _name(parent) == _DAEMON:
            subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _ENDER, str(daemon), str(GRACE)],
                pass_fds=(daemon,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,  # the daemon kills the groups of its ranks
            )
        os.close(daemon)


def _name(process: int) -> str:
    return Path(f"/proc/{process}/comm").read_text(errors="replace").strip()
