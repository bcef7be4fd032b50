"""How jobs end: asked to stop, by Ctrl-C, by an exception, and ranks that leave while others work. Real processes.
What `ringdp run` makes of the plain cases is in cases.py.

After each job no process and no file in /dev/shm may be left.
"""

import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import textwrap
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import pytest
from driver.environ import environment, mpirun
from driver.leftovers import new_shared_files, shared_files
from driver.limit import default_signals

LIMIT = 100  # seconds, for jobs that take one to ten on a machine that does nothing else
OURS = "TEST_OF_ENDS"  # in the environment of all that a job starts

START = """
import os, signal, sys, threading, time
import numpy as np, ringdp

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
"""
# Trains until somebody stops it. What the hooks say must be the same on all ranks.
TRAIN = """
import torch, ringdp.torch as hvd
torch.set_num_threads(1)
hvd.init()
net = torch.nn.Linear(4, 2)
optimizer = hvd.DistributedOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), model=net)
steps = 0

@hvd.on_preempt
def save():
    say("saved", steps, net.weight.double().sum().item())

@hvd.on_preempt
def exchange():
    say("then", int(hvd.allreduce(torch.ones(1), op=hvd.Sum)))

def step():
    global steps
    optimizer.zero_grad()
    net(torch.ones(3, 4) * (1 + hvd.rank())).sum().backward()
    steps += 1
    optimizer.step()

step()
say("up", os.getpid())
"""
# Looks for requests once an iteration, without an optimizer.
LOOK = """
ringdp.init()
ringdp.on_preempt(lambda: say("saved", n))
n = 0
ringdp.should_stop()
say("up", os.getpid())
"""


class Job:
    """A job that runs, what it has said so far, and the process ids that its ranks have told."""

    def __init__(self, command, environ, folder, in_terminal=False):
        self.terminal, stdin = pty.openpty() if in_terminal else (None, subprocess.DEVNULL)
        self.mark = uuid.uuid4().hex
        self.output = folder / f"{self.mark}.log"
        env = {**environment(), OURS: self.mark, "RINGDP_REPORT_DIR": str(folder), **environ}
        with self.output.open("wb") as out:
            self.process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
                preexec_fn=to_terminal if in_terminal else default_signals,
            )
        if in_terminal:
            os.close(stdin)

    def said(self):
        return self.output.read_text(errors="replace")

    def wait_for(self, text, times=1):
        """All matches of a pattern, once there are so many."""
        end = time.monotonic() + LIMIT
        while len(found := re.findall(text, self.said())) < times:
            if time.monotonic() > end or self.process.poll() is not None:
                pytest.fail(f"{times} × {text!r} has not come:\n{self.said()}")
            time.sleep(0.02)
        return found

    def up(self, ranks):
        """The process ids of the ranks, when they have come so far."""
        return [int(pid) for pid in self.wait_for(r"up (\d+)", ranks)]

    def end(self, seconds=LIMIT):
        """The exit code and all that was said."""
        try:
            return self.process.wait(seconds), self.said()
        except subprocess.TimeoutExpired:
            pytest.fail(f"no end after {seconds} s:\n{self.said()}")

    def processes(self):
        """Those of the job that still run."""
        word = f"{OURS}={self.mark}".encode()
        return [int(f.name) for f in Path("/proc").iterdir() if f.name.isdigit() and has(f / "environ", word)]


def has(file, word):
    try:
        return word in file.read_bytes().split(b"\0")
    except OSError:
        return False


def to_terminal():  # standard input becomes the terminal that controls the new session
    default_signals()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


LAUNCHERS = ("ringdp run", "mpirun")


@pytest.fixture
def start(tmp_path):
    """`with start(program, ranks, launcher, options) as job`: what it leaves behind is a failure."""

    @contextmanager
    def started(program, ranks=2, launcher="ringdp run", options=(), environ=None, in_terminal=False):
        files = shared_files()
        first = [sys.executable, "-m", "ringdp", "run"] if launcher == "ringdp run" else [mpirun()]
        source = START + textwrap.dedent(program)
        command = [*first, "-n", str(ranks), *options, sys.executable, "-u", "-c", source]
        job = Job(command, environ or {}, tmp_path, in_terminal)
        try:
            yield job
            job.process.wait(LIMIT)
            end = time.monotonic() + 5
            while job.processes() and time.monotonic() < end:
                time.sleep(0.05)
            assert not job.processes(), job.said()
            left = [
                line for line in new_shared_files(files) if "ringdp" in line
            ]  # not of what runs beside it
            assert not left
        finally:
            for pid in [*job.processes(), job.process.pid] if job.process.poll() is None else job.processes():
                os.kill(pid, signal.SIGKILL)
            job.process.wait(LIMIT)
            if in_terminal:
                os.close(job.terminal)

    return started


def run(start, program, ranks=2, **options):
    with start(program, ranks, **options) as job:
        return job.end()


# --- preemption -----------------------------------------------------------------------------------


def check_stopped(text, ranks, saved=r"saved (\d+ \S+)"):
    """Every rank has saved once, and all the same."""
    found = re.findall(saved, text)
    assert len(found) == ranks and len(set(found)) == 1, text
    return found[0]


def test_one_rank_that_is_asked_stops_all(start):
    program = """
    signal.signal(signal.SIGUSR1, lambda number, frame: say("mine too", number))
    """
    with start(textwrap.dedent(program) + TRAIN + "while True: step()", 2, launcher="mpirun") as job:
        pids = job.up(2)
        os.kill(pids[1], signal.SIGUSR1)
        code, text = job.end()
        assert code == 143, text
        check_stopped(text, 2)
        assert text.count("then 2") == 2 and text.count(f"mine too {int(signal.SIGUSR1)}") == 1


def test_mpirun_passes_sigusr1_on(start):
    with start(LOOK + "while not ringdp.should_stop(): n += 1\nringdp.stop()", 2, launcher="mpirun") as job:
        job.up(2)
        job.process.send_signal(signal.SIGUSR1)
        code, text = job.end()
        assert code == 143, text
        check_stopped(text, 2, r"saved (\d+)")


def test_a_loop_may_stop_as_it_likes(start):
    program = LOOK + "while not ringdp.should_stop(): n += 1\nsay('done', n); sys.exit(0)"
    with start(program) as job:
        job.up(2)
        job.process.send_signal(signal.SIGTERM)
        code, text = job.end()
        assert code == 0, text
        check_stopped(text, 2, r"done (\d+)")
        assert "saved" not in text


def test_ranks_that_do_not_stop_in_time_are_ended(start):
    with start(LOOK + "time.sleep(60)", options=["--grace", "1"]) as job:
        job.up(2)
        job.process.send_signal(signal.SIGTERM)
        code, text = job.end()
        assert code == 143, text
        assert "the ranks have not stopped in time: ending them" in text and "saved" not in text


def test_a_second_sigterm_does_not_wait(start):
    with start(LOOK + "time.sleep(60)", options=["--grace", "50"]) as job:
        job.up(2)
        job.process.send_signal(signal.SIGTERM)
        job.wait_for("asking the ranks to stop")
        job.process.send_signal(signal.SIGTERM)
        assert job.end(40)[0] == 143


def test_a_job_that_nobody_looks_for_ends_at_once(start):
    with start("ringdp.init(); say('up', os.getpid()); time.sleep(60)", options=["--grace", "50"]) as job:
        job.up(2)
        job.process.send_signal(signal.SIGTERM)
        assert job.end(40)[0] == 143


def test_plain_mpirun_ends_all_on_sigterm(start):
    """Its half second may be enough for a step and the hooks, or not."""
    with start(LOOK + "while not ringdp.should_stop(): n += 1\nringdp.stop()", launcher="mpirun") as job:
        job.up(2)
        job.process.send_signal(signal.SIGTERM)
        code, text = job.end()
        assert code != 0
        assert len(set(re.findall(r"saved (\d+)", text))) <= 1, text


def test_signals_that_are_none_are_refused_and_none_are_taken(start):
    program = """
    try:
        ringdp.init()
    except ringdp.UsageError as error:
        say(error)
    else:
        say("default", *(signal.getsignal(n) == signal.SIG_DFL for n in (signal.SIGTERM, signal.SIGUSR1)))
    """
    code, text = run(start, program, 1, environ={"RINGDP_PREEMPT_SIGNALS": "TERM,HUB"})
    assert code == 0 and "RINGDP_PREEMPT_SIGNALS=TERM,HUB: 'HUB' is no signal" in text
    code, text = run(start, program, 1, environ={"RINGDP_PREEMPT_SIGNALS": "SIGKILL"})
    assert code == 0 and "SIGKILL cannot be caught" in text
    code, text = run(start, program, 1, environ={"RINGDP_PREEMPT_SIGNALS": "none"})
    assert code == 0 and "default True True" in text


def test_handlers_belong_to_the_user(start):
    """Ours is chained to what was there, gives way to what comes, and is gone after shutdown and in children."""
    code, text = run(
        start,
        """
        import faulthandler, multiprocessing
        faulthandler.register(signal.SIGUSR1, file=sys.stdout)  # in C: Python knows nothing of it
        before = signal.getsignal(signal.SIGTERM)
        ringdp.init()
        assert signal.getsignal(signal.SIGTERM) is not before
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
        os.kill(os.getpid(), signal.SIGUSR1)  # writes a stack, as the user wants
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        child.terminate()
        child.join(20)
        say("child", child.exitcode)
        theirs = lambda number, frame: None
        ours = signal.signal(signal.SIGTERM, theirs)
        ringdp.shutdown()
        assert signal.getsignal(signal.SIGTERM) is theirs
        signal.signal(signal.SIGTERM, before)
        ringdp.init()
        ringdp.shutdown()
        assert signal.getsignal(signal.SIGTERM) == before
        thread = threading.Thread(target=ringdp.init)
        thread.start(), thread.join()
        assert signal.getsignal(signal.SIGTERM) == before
        say("done")
        """,
    )
    assert code == 0 and text.count("done") == 2, text
    assert text.count(f"child {-signal.SIGTERM}") == 2 and text.count("Current thread") == 2


# --- Ctrl-C ---------------------------------------------------------------------------------------

BUSY = {
    "in collectives": "x = ringdp.empty(1 << 20, np.float32); x[:] = 0\nwhile True: ringdp.allreduce_(x)",
    "waiting": "time.sleep(60) if ringdp.rank() else ringdp.allreduce(np.ones(3))",
}


@pytest.mark.parametrize("busy", BUSY)
def test_ctrl_c_leaves_nothing(start, busy):
    program = "ringdp.init(); ringdp.allreduce(np.ones(3)); say('up', os.getpid())\n" + BUSY[busy]
    with start(program, 3, launcher="mpirun", environ={"RINGDP_SHARED_MEMORY": "file"}) as job:
        job.up(3)
        time.sleep(0.2)
        job.process.send_signal(signal.SIGINT)
        assert job.end(40)[0] != 0


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ctrl_c_in_a_terminal(start, launcher):
    """It reaches all processes that share the terminal at once."""
    program = "ringdp.init(); ringdp.allreduce(np.ones(3)); say('up', os.getpid())\n" + BUSY["waiting"]
    with start(program, 3, launcher=launcher, in_terminal=True) as job:
        job.up(3)
        os.write(job.terminal, b"\x03")
        code, text = job.end(40)
        assert code == 130 if launcher == "ringdp run" else code != 0, text


# --- ranks that leave -----------------------------------------------------------------------------

ENDS = {
    "the end of the script": "pass",
    "an exception at exit": "import atexit; atexit.register(lambda: 1 / 0)",
}


@pytest.mark.parametrize("how", ENDS)
def test_a_rank_that_ends_tells_the_others(start, how):
    program = f"""
    ringdp.init()
    ringdp.allreduce(np.ones(3))
    if ringdp.rank() == 1:
        {ENDS[how]}
    else:
        try:
            ringdp.allreduce(np.ones(3), name="loss")
        except ringdp.PeerError as error:
            say(error)
    """
    code, text = run(start, program)
    assert "rank 0: allreduce 'loss' cannot complete: rank 1 has shut ringdp down" in text
    assert code == 0, text


def test_a_rank_that_has_left_is_named_with_its_last_step(start):
    program = """
    for _ in range(2): step()
    if hvd.rank() == 1:
        sys.exit(0)
    for work in (step, lambda: hvd.allreduce(torch.ones(3), name="loss")):
        try:
            work()
        except hvd.PeerError as error:
            say(error)
    """
    code, text = run(start, TRAIN + textwrap.dedent(program), 3)
    for rank in (0, 2):
        assert re.search(
            rf"rank {rank}: (this step|plan|bucket).*: rank 1 has shut ringdp down after step 3", text
        )
        assert (
            f"rank {rank}: allreduce 'loss' cannot complete: rank 1 has shut ringdp down after step 3" in text
        )
    assert code == 0, text


def test_a_rank_whose_engine_does_not_end_a_turn_ends_nevertheless(start):
    """As where a call of MPI or of a driver hangs: the engine's thread cannot be joined, and the watch ends the
    process."""
    program = """
    ringdp.init()
    handle = ringdp.allreduce_async(np.ones(3), name="loss")
    time.sleep(0.5)  # the engine's thread takes it
    sys.exit(0)
    """
    inject = {"RINGDP_INJECT": "rank=1,name=loss,stage=AGREE,do=sleep:1000", "RINGDP_TIMEOUT": "4"}
    code, text = run(start, program, 2, environ=inject)
    assert code == 1, text
    assert re.search(r"rank 1 \(host \S+, process \d+\) is stuck in a call of its engine", text), text


# --- exceptions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_an_exception_ends_the_job_with_one_traceback(start, launcher):
    program = """
    hook = sys.excepthook
    sys.excepthook = lambda *what: (say("before"), hook(*what))
    ringdp.init()
    ringdp.allreduce(np.ones(3))
    if ringdp.rank() == 1:
        raise KeyError("the cause")
    ringdp.allreduce(np.ones(3))
    """
    code, text = run(start, program, 2, launcher=launcher)
    assert code == 1, text
    assert text.count("Traceback (most recent call last)") == text.count("\nKeyError: 'the cause'") == 1
    last_line = text.rstrip().splitlines()[-1]
    assert (launcher == "mpirun") or "was ended by KeyError: 'the cause'" in last_line
    assert text.count("before") == 1 and "ringdp: rank 1 ended by KeyError: ending the job" in text


def test_an_interactive_session_goes_on_after_an_exception(start):
    program = """
    sys.ps1 = ">>> "  # as where there is a prompt
    ringdp.init()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    say("rank", ringdp.rank(), ringdp.size())
    raise KeyError("the cause")
    """
    code, text = run(start, program)
    assert text.count("KeyError: 'the cause'") == 2 and "ending the job" not in text, text
    assert code == 1, text  # as Python's own


def test_an_exception_in_a_thread_of_the_user_ends_nothing(start):
    program = """
    ringdp.init()
    if ringdp.rank() == 1:
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start(), thread.join()
    say("sum", int(ringdp.allreduce(np.ones(1), op=ringdp.Sum)[0]))
    """
    code, text = run(start, program)
    assert code == 0 and text.count("sum 2") == 2 and "ZeroDivisionError" in text
