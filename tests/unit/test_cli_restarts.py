"""`ringdp run --restarts`: when a job is started again, what is said, and what is left in the folder."""

import os
import signal
import subprocess
import sys
import time

import pytest

from ringdp.cli import mpirun, run
from ringdp.cli.restarts import Ended, Restarts
from ringdp.commits import files
from ringdp.commits.files import Kind
from ringdp.commits.folder import Commit, Folder, Manifest

LIMIT = 60  # seconds
LAUNCHER = ("OMPI_COMM_WORLD", "PMI_", "PMIX_", "SLURM_STEP")


def commit(path, number, token=1, state=None):
    """A whole one, of one rank. What it is of: the number."""
    here = Folder(path)
    here.make()
    made = Manifest(Commit(number, token), 1)
    place = here.begin(made.commit)
    for kind in (Kind.state, Kind.part):
        payload = b"%d" % (number if state is None else state)
        put = lambda sink, payload=payload: sink.write(payload)  # noqa: E731
        made.files[kind, 0] = files.write(place, made.label(kind, 0), put)
    here.write_manifest(made, 0)


class Story:
    """What a job does in each attempt: a list of (code, number of the commit that it makes or None)."""

    def __init__(self, folder, *attempts, asked=False):
        self.folder, self.attempts, self.asked = folder, attempts, asked
        self.said, self.pauses, self.numbers = [], [], []

    def attempt(self, number):
        self.numbers.append(number)
        code, made = self.attempts[number]
        if made is not None:
            commit(self.folder, made)
        return None if code is None else Ended(code, self.asked)

    def run(self, most):
        return Restarts(self.folder, most, self.said.append, self.pauses.append).run(self.attempt)


def test_a_job_that_succeeds_leaves_no_commits(tmp_path):
    folder = tmp_path / "ringdp-commits" / "train-1"
    story = Story(folder, (0, 1))
    assert story.run(3) == 0 and story.said == [] and story.numbers == [0]
    assert not (tmp_path / "ringdp-commits").exists()


def test_what_is_no_commit_is_not_deleted(tmp_path):
    commit(tmp_path / "state-1", 1)
    (tmp_path / "mine").write_text("")
    assert Story(tmp_path, (0, 1)).run(0) == 0
    assert os.listdir(tmp_path) == ["mine"]


def test_a_failed_job_is_started_again(tmp_path):
    story = Story(tmp_path, (137, 4), (0, None))
    assert story.run(3) == 0
    assert story.numbers == [0, 1] and story.pauses == [0.5]
    assert story.said == [
        "the job ended with exit code 137 (SIGKILL): restart 1 (1 of 3 without a new commit) in 0.5 s, from commit 4 "
        f"of 1 rank in {tmp_path}"
    ]


def test_it_gives_up_without_a_new_commit(tmp_path):
    story = Story(tmp_path, (1, None), (2, None), (3, None), (4, None), (0, None))
    assert story.run(3) == 4
    assert story.numbers == [0, 1, 2, 3] and story.pauses == [0.5, 1, 2]
    assert story.said[0].endswith(f"from the beginning, as there is no commit in {tmp_path}")
    assert "restart 3 (3 of 3 without a new commit)" in story.said[2]
    assert story.said[3].startswith(
        "the job ended with exit code 4: giving up, as 3 restarts have brought no new commit; the last is the beginning"
    )


def test_a_new_commit_is_progress(tmp_path):
    story = Story(tmp_path, (1, 1), (1, None), (1, 2), (1, None), (6, None), (0, None))
    assert story.run(2) == 6
    assert story.numbers == [0, 1, 2, 3, 4] and story.pauses == [0.5, 1, 0.5, 1]
    assert "restart 4 (2 of 2 without a new commit)" in story.said[3] and "giving up" in story.said[4]


def test_a_commit_of_the_same_state_is_no_progress(tmp_path):
    """Of a script that commits as soon as it begins."""
    commit(tmp_path, 3)

    def attempt(number):
        commit(tmp_path, 4 + number, token=2, state=3)
        return Ended(1, False)

    said = []
    assert Restarts(tmp_path, 1, said.append, lambda seconds: None).run(attempt) == 1
    assert said[0].startswith("going on from commit 3") and "to begin anew, delete the folder" in said[0]
    assert [("restart 1" in text, "giving up" in text) for text in said[1:]] == [(True, False), (False, True)]


def test_the_same_number_by_another_job_is_a_new_commit(tmp_path):
    commit(tmp_path, 3, token=1)

    def attempt(number):
        if number == 0:
            Folder(tmp_path).delete(Commit(3, 1))
            commit(tmp_path, 3, token=2, state=4)
        return Ended(1, False)

    said = []
    assert Restarts(tmp_path, 1, said.append, lambda seconds: None).run(attempt) == 1
    assert ["restart 1 (1 of 1" in text for text in said[1:]] == [True, False]


@pytest.mark.parametrize(("code", "asked"), [(143, False), (130, False), (1, True), (137, True), (129, True)])
def test_a_job_that_was_asked_to_end_is_not_started_again(tmp_path, code, asked):
    story = Story(tmp_path, (code, 1), (0, None), asked=asked)
    assert story.run(3) == code and story.numbers == [0] and story.said == []
    assert Folder(tmp_path).commits() == [Commit(1, 1)]  # it goes on when the same command is given


def test_a_job_that_cannot_be_started_again_keeps_its_exit_code(tmp_path):
    assert Story(tmp_path, (9, None), (None, None)).run(3) == 9


def test_pauses_grow_to_a_limit(tmp_path):
    story = Story(tmp_path, *[(1, None)] * 11)
    assert story.run(10) == 1
    assert story.pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30]


def test_ctrl_c_in_a_pause(tmp_path):
    def interrupted(seconds):
        raise KeyboardInterrupt

    assert Restarts(tmp_path, 3, lambda text: None, interrupted).run(lambda number: Ended(1, False)) == 130


# --- options --------------------------------------------------------------------------------------


def planned(*words, environ=None, again=False):
    options = run.parser().parse_args([*words])
    return run.plan(options, {"PATH": os.environ["PATH"], **(environ or {})}, again)


@pytest.fixture
def fake(tmp_path):
    program = tmp_path / "bin" / "mpirun"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'mpirun (Open MPI) 5.0.11'\n")
    program.chmod(0o755)
    return str(program)


def test_the_ranks_are_told(fake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("")
    start = ["-n", "2", "--mpirun", fake]
    job = planned(*start, "--restarts", "3", "train.py", "--lr", "1")
    folder = job.changes["RINGDP_COMMIT_DIR"]
    assert job.changes["RINGDP_RESTART"] == "0"
    assert folder.startswith(str(tmp_path / "ringdp-commits" / "train-"))
    assert {"RINGDP_COMMIT_DIR", "RINGDP_RESTART"} <= set(job.command)
    # The same command goes on, another begins anew.
    assert planned(*start, "--restarts", "1", "train.py", "--lr", "1").changes["RINGDP_COMMIT_DIR"] == folder
    assert planned(*start, "--restarts", "3", "train.py", "--lr", "2").changes["RINGDP_COMMIT_DIR"] != folder
    job = planned(*start, "--commit-dir", "here", "train.py")
    assert job.changes["RINGDP_COMMIT_DIR"] == str(tmp_path / "here") and "RINGDP_RESTART" not in job.changes
    given = {"RINGDP_COMMIT_DIR": "/given"}
    assert (
        planned(*start, "--restarts", "3", "train.py", environ=given).changes["RINGDP_COMMIT_DIR"] == "/given"
    )
    assert "RINGDP_COMMIT_DIR" not in planned(*start, "train.py").changes


def test_a_restart_takes_the_slots_that_are_left(fake, tmp_path):
    (tmp_path / "train.py").write_text("")
    hosts = tmp_path / "hosts"
    hosts.write_text("a slots=2\nb slots=2\n")
    words = [
        "-n",
        "4",
        "--hostfile",
        str(hosts),
        "--mpirun",
        fake,
        "--restarts",
        "1",
        str(tmp_path / "train.py"),
    ]
    assert planned(*words).command[1:3] == ["-n", "4"]
    hosts.write_text("a slots=2\n")
    with pytest.raises(mpirun.LaunchError, match="-n 4 is more than the 2 slots"):
        planned(*words)
    assert planned(*words, again=True).command[1:3] == ["-n", "2"]


def test_numbers_of_restarts(capsys):
    for wrong in ("-1", "x", "1.5"):
        with pytest.raises(SystemExit):
            run.parser().parse_args(["--restarts", wrong, "train.py"])
        assert f"'{wrong}' is no number of restarts: give 0 or more" in capsys.readouterr().err


# --- real jobs ------------------------------------------------------------------------------------


def environment():
    try:
        mpirun.find_mpirun(os.environ)
    except mpirun.LaunchError as error:
        pytest.skip(str(error))
    return {n: v for n, v in os.environ.items() if not n.startswith((*LAUNCHER, "RINGDP_"))}


def start(tmp_path, program, *options):
    return subprocess.Popen(
        [sys.executable, "-m", "ringdp", "run", "-n", "1", *options, "python", "-c", program],
        env=environment(),
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_attempts_of_a_real_job(tmp_path):
    program = "import os, sys; n = int(os.environ['RINGDP_RESTART']); print('attempt', n, flush=True); sys.exit(7 - n)"
    process = start(tmp_path, program, "--restarts", "1")
    output, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 6
    assert [line for line in output.splitlines() if "attempt" in line] == ["attempt 0", "attempt 1"]
    assert (
        "ringdp run: the job ended with exit code 7: restart 1 (1 of 1 without a new commit) in 0.5 s"
        in errors
    )
    assert (
        "ringdp run: the job ended with exit code 6: giving up, as a restart has brought no new commit"
        in errors
    )


def test_sigterm_is_no_failure(tmp_path):
    program = "import time; print('up', flush=True); time.sleep(50)"
    process = start(tmp_path, program, "--restarts", "3")
    assert process.stdout.readline().strip() == "up"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 143 and "restart" not in errors


def test_the_pause_can_be_ended(tmp_path):
    process = start(tmp_path, "import sys; sys.exit(1)", "--restarts", "9")
    end = time.monotonic() + LIMIT
    while "restart 3" not in (line := process.stderr.readline()):
        assert line and time.monotonic() < end
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=LIMIT)
    assert process.returncode in (-signal.SIGTERM, 143)
