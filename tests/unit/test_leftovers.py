"""What tests/run.py and tests find of processes that are left over: by the mark of a run, or of a part of it."""

import os
import subprocess
import sys
import uuid

from driver.environ import MARK
from driver.leftovers import end_processes


def test_a_run_has_all_that_its_workers_have_left_and_a_worker_only_its_own():
    run = uuid.uuid4().hex
    code = "import time; print(flush=True); time.sleep(100)"
    marks = [run, f"{run}-gw1", f"{run}-gw10"]
    left = [
        subprocess.Popen([sys.executable, "-c", code], env={**os.environ, MARK: mark}, stdout=subprocess.PIPE)
        for mark in marks
    ]
    try:
        for process in left:
            assert process.stdout.readline() == b"\n"
        assert not end_processes(f"{run}-gw0") and not end_processes(f"{run}-gw")
        (line,) = end_processes(f"{run}-gw1")
        assert f"process {left[1].pid} left over: " in line
        lines = end_processes(run)
        assert len(lines) == 2 and all(any(f" {left[n].pid} " in line for line in lines) for n in (0, 2))
    finally:
        for process in left:
            process.kill()
            process.wait()
            process.stdout.close()
