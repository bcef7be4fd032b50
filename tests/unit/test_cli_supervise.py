"""`ringdp run` with real processes: exit codes, signals, and that nothing is left over.

The jobs run on the MPI of this environment; what concerns cleaning alone uses a small program in the place of mpirun.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from ringdp import processes
from ringdp.cli import mpirun, supervise

LAUNCHER = ("OMPI_COMM_WORLD", "PMI_", "PMIX_", "SLURM_STEP")
LIMIT = 60  # seconds; each takes two or three

# Each rank says its pid, then waits for a signal; SIGUSR1 and SIGUSR2 it survives.
RANK = """
import os, signal, time
for number in (signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda n, _: os.write(1, b"got %d\\n" % n))
os.write(1, b"up %d\\n" % os.getpid())
end = time.monotonic() + 50
while time.monotonic() < end:
    time.sleep(0.05)
"""


def environment():
    return {n: v for n, v in os.environ.items() if not n.startswith(LAUNCHER)}


def family():
    try:
        return mpirun.find_mpirun(os.environ).family
    except mpirun.LaunchError as error:
        pytest.skip(str(error))


@contextmanager
def job(program):
    """A job of two ranks that have said they are up: the process of `ringdp run` and the pids of the ranks."""
    family()

    def defaults():  # a shell that starts the tests in the background ignores SIGINT
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    command = [sys.executable, "-m", "ringdp", "run", "-n", "2", "python", "-c", program]
    process = subprocess.Popen(
        command,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=defaults,
    )
    try:
        ups = [process.stdout.readline().split() for _ in range(2)]
        assert [word for word, _ in ups] == ["up", "up"]
        yield process, [int(pid) for _, pid in ups]
    finally:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=LIMIT)
        process.stdout.close()


def is_running(pid):
    process = processes.find(pid)
    return process is not None and not process.has_ended


def ends(pids, seconds):
    end = time.monotonic() + seconds
    while any(map(is_running, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(is_running, pids))


def test_the_job_exit_code_and_output_come_through():
    family()
    program = "import os, sys; print('threads', os.environ['OMP_NUM_THREADS']); sys.exit(7)"
    command = [sys.executable, "-m", "ringdp", "run", "-n", "2", "python", "-c", program]
    environ = {**environment(), "OMP_NUM_THREADS": "3"}
    answer = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert answer.returncode == 7
    assert answer.stdout.count("threads 3") >= 1
    command[-1] = "pass"
    assert (
        subprocess.run(command, env=environ, capture_output=True, timeout=LIMIT, check=False).returncode == 0
    )


def test_a_rank_killed_by_a_signal_is_seen_in_the_exit_code():
    command = [sys.executable, "-m", "ringdp", "run", "-n", "1", "python", "-c"]
    program = "import os; os.kill(os.getpid(), 9)"
    # MPICH's mpiexec exits with the bare number of the signal, which `ringdp run` cannot tell from an exit(9).
    expected = {"openmpi": 137, "mpich": 9}[family()]
    answer = subprocess.run(
        [*command, program], env=environment(), capture_output=True, timeout=LIMIT, check=False
    )
    assert answer.returncode == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_ending_signals_end_the_job(number):
    with job(RANK) as (process, ranks):
        process.send_signal(number)
        process.communicate(timeout=20)
        assert process.returncode == 128 + number
        assert not any(map(is_running, ranks))


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_other_signals_reach_every_rank(number):
    with job(RANK) as (process, ranks):
        process.send_signal(number)
        # The two ranks write at the same time, and MPICH may join their lines.
        said = process.stdout.readline() + process.stdout.readline()
        assert said.replace("\n", "").count(f"got {int(number)}") == 2
        assert process.poll() is None and all(map(is_running, ranks))


def test_a_killed_launcher_takes_the_job_with_it():
    with job(RANK) as (process, ranks):
        process.kill()
        process.wait(timeout=LIMIT)
        assert ends(ranks, 20)


def supervised(program, seconds=30, over="False"):
    """The exit code of a program in the place of mpirun, under the supervisor, and what both said. `over`: whether a
    rank has said why the job ends."""
    code = (
        "import os, sys; from ringdp.cli import supervise;"
        "supervise._LOOK, supervise._ENDS, supervise._FORCED = 0.1, 1.0, 0.5;"
        "say = lambda text: print('said', text, flush=True);"
        f"command = [sys.executable, '-c', {program!r}];"
        f"ended = supervise.run_and_tell(command, os.environ, 'openmpi', say, is_over=lambda: {over});"
        "sys.exit(ended[0])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=seconds, check=False
    )
    return answer.returncode, answer.stdout


def test_what_mpirun_leaves_behind_is_ended():
    left = (
        "import os, signal, time; signal.signal(15, signal.SIG_IGN);"
        "print('pid', os.getpid(), flush=True); time.sleep(60)"
    )
    program = (
        "import subprocess, sys;"
        f"p = subprocess.Popen([sys.executable, '-c', {left!r}], stdout=subprocess.PIPE, start_new_session=True);"
        "print(p.stdout.readline().decode(), flush=True);"
        "sys.exit(3)"
    )
    code, text = supervised(program)
    pid = int(text.split()[1])
    assert code == 3
    assert f"said ending 1 processes that the job left behind (SIGTERM): {pid}" in text
    assert f"(SIGKILL): {pid}" in text  # it ignored SIGTERM
    assert not is_running(pid)


def test_what_ends_by_itself_is_left_alone():
    short = "import time; time.sleep(0.5)"
    code, text = supervised(f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {short!r}])")
    assert (code, text) == (0, "")


def mpirun_with_a_rank(seconds, more):
    """Which lives for so many seconds."""
    rank = f"import time; time.sleep({seconds})"
    return (
        "import os, signal, subprocess, sys, time; environ = {**os.environ, 'OMPI_COMM_WORLD_RANK': '0'};"
        f"{more}; subprocess.run([sys.executable, '-c', {rank!r}], env=environ); time.sleep(3)"
    )


OUTLASTS = "said all ranks here have ended, and mpirun waits for hosts that do not answer: ending it\n"


def test_an_mpirun_that_outlasts_its_ranks_after_a_fault_is_ended():
    assert supervised(mpirun_with_a_rank(1, "pass"), over="True") == (143, OUTLASTS)


def test_an_mpirun_that_outlasts_its_ranks_and_does_not_listen_is_killed():
    stubborn = mpirun_with_a_rank(1, "signal.signal(15, signal.SIG_IGN)")
    assert supervised(stubborn, over="True") == (137, OUTLASTS)


def test_an_mpirun_that_is_ended_after_a_fault_has_not_succeeded():
    polite = mpirun_with_a_rank(1, "signal.signal(15, lambda *_: sys.exit(0))")
    assert supervised(polite, over="True") == (1, OUTLASTS)


def test_an_mpirun_may_outlast_its_ranks_where_none_has_failed():
    assert supervised(mpirun_with_a_rank(0.5, "pass")) == (0, "")


def test_an_mpirun_whose_ranks_still_do_something_after_a_fault_is_left_alone():
    assert supervised(mpirun_with_a_rank(3, "time.sleep = lambda seconds: None"), over="True") == (0, "")


def test_an_mpirun_without_ranks_here_is_left_alone():
    """Its ranks are on other hosts, and may still save what they have."""
    assert supervised("import time; time.sleep(3)", over="True") == (0, "")


def test_a_killed_mpirun_is_told_by_the_exit_code():
    assert supervised("import os; os.kill(os.getpid(), 9)") == (137, "")


@pytest.mark.parametrize(
    ("status", "ending", "expected"),
    [
        (0, 0, 0),
        (7, 0, 7),
        (-9, 0, 137),
        (137, 0, 137),
        (1, 15, 143),
        (15, 15, 143),
        (15, 1, 129),
        (0, 15, 0),
        (75, 15, 75),
    ],
)
def test_exit_codes(status, ending, expected):
    assert supervise._exit_code(status, ending) == expected
