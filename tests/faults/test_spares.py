"""`ringdp run --elastic --spares S`: processes that wait, and take the places of lost ranks."""

import contextlib
import os
import re
import signal
import time
from pathlib import Path

import pytest
from driver.environ import MARK
from faults.test_elastic import KILLED, LIMIT, STEPS, Job, lives, sums

from ringdp import mpi
from ringdp.cli.elastic import LOST
from ringdp.spares import NAME

pytestmark = pytest.mark.skipif(mpi.build().MPI_FAMILY != "openmpi", reason="only Open MPI has ULFM")


def start(
    folder: Path, ranks: int, spares: int, *words: str, options: tuple[str, ...] = (), **environ: str
) -> Job:
    return Job(folder, *words, ranks=ranks, options=("--spares", str(spares), *options), **environ)


def wait_until(job: Job, what):
    """What it gives, once that is something."""
    until = time.monotonic() + LIMIT
    while not (found := what()):
        assert job.process.poll() is None and time.monotonic() < until, job.output.read_text()
        time.sleep(0.01)
    return found


def spares_of(job: Job, count: int) -> list[int]:
    """The processes that wait, once there are so many and all ranks train."""

    def look():
        found: list[int] = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                mine = f"{MARK}={job.env[MARK]}".encode() in (path / "environ").read_bytes().split(b"\0")
                if mine and (path / "comm").read_text().strip() == NAME:
                    found.append(int(path.name))
        return found if len(found) == count else []

    wait_until(job, lambda: any(line["what"] == "begin" for lines in job.said() for line in lines))
    return wait_until(job, look)


def pids(job: Job) -> list[int]:
    """Of the ranks that have begun, by rank."""
    begun = [lines[0] for lines in job.said() if lines and lines[-1]["what"] == "begin"]
    return [one["pid"] for one in sorted(begun, key=lambda one: one["rank"])]


def all_went_on(job: Job, ranks: int) -> None:
    """At full size, and with the sums of an undisturbed job."""
    ends = job.ends()
    assert sorted(one["rank"] for one in ends) == list(range(ranks)), ends
    assert all(one["sums"] == sums(ranks, 0, ranks) and one["size"] == ranks for one in ends), ends


def test_a_lost_rank_is_replaced(tmp_path):
    job = start(tmp_path, 3, 1, options=("--min-ranks", "3"), RINGDP_INJECT=KILLED)
    code, text = job.end()
    assert code == LOST, text
    assert "going on without rank 1 (of 3), and with 1 more in its place: 3 left, generation 2" in text
    assert re.search(
        r"1 rank lost, 1 replaced, 1 recovery; .* its end with 3, and its exit code is 10", text
    ), text
    all_went_on(job, 3)
    # The process set of ranks 0 and 2 is there on all, the new one too; that of the lost rank is gone.
    assert all(one["pair"] == [0, 1] for one in job.ends()), job.ends()
    assert [one["together"] for one in sorted(job.ends(), key=lambda one: one["rank"])] == [
        [2.0],
        [2.0],
        None,
    ]
    assert job.lost() == [[1]]


def test_a_replacement_is_replaced(tmp_path):
    """Rank 1 of two is killed, and so is the one in its place: no sum is missing, and none comes twice."""
    job = start(tmp_path, 2, 2, "--kill-at", "10", "20")
    code, text = job.end()
    assert code == LOST, text
    assert "2 ranks lost, 2 replaced, 2 recoveries" in text
    all_went_on(job, 2)


def test_spares_that_nobody_needs(tmp_path):
    job = start(tmp_path, 2, 2, "--pause", "0.1")
    waiting = spares_of(job, 2)

    def ticks() -> int:
        return sum(sum(map(int, Path(f"/proc/{pid}/stat").read_text().split()[13:15])) for pid in waiting)

    before, seconds = ticks(), 1.5
    time.sleep(seconds)
    burnt = (ticks() - before) / os.sysconf("SC_CLK_TCK")
    code, text = job.end()
    assert code == 0, text
    all_went_on(job, 2)
    assert not list(tmp_path.glob("ringdp-report-*")), text
    assert burnt < 0.1 * 2 * seconds, f"two spares that wait have used {burnt} s of CPU in {seconds} s"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "raise", "exit", "exchange"])
def test_a_replacement_that_does_not_come_to_elastic_run(tmp_path, how):
    """The next one takes its place."""
    job = start(tmp_path, 2, 2, "--kill-at", "10", "--new", how)
    code, text = job.end()
    assert code == LOST, text
    said = {
        "raise": "ended by ValueError",
        "exit": "ended by the end of its script",
        "exchange": "an exchange before elastic.run: in a job with spares",
    }
    assert said.get(how, "") in text
    assert "2 ranks lost, 2 replaced, 2 recoveries" in text
    all_went_on(job, 2)


def test_an_exchange_before_elastic_run_is_an_error(tmp_path):
    """On all ranks, at once: not only when one is lost, one day."""
    job = start(tmp_path, 2, 1, "--all", "exchange")
    code, text = job.end()
    assert code == 1, text
    assert (
        "rank 0: an exchange before elastic.run" in text or "rank 1: an exchange before elastic.run" in text
    )
    assert not job.ends()


def test_spares_that_die_while_they_wait(tmp_path):
    """The ranks are not disturbed; when one of them is lost, they go on without it."""
    job = start(tmp_path, 2, 1, "--kill-at", "20", "--pause", "0.05")
    os.kill(spares_of(job, 1)[0], signal.SIGKILL)
    code, text = job.end()
    assert code == LOST, text
    assert "1 spare died before there was need of it" in text and "1 rank lost, 1 recovery" in text
    assert [one["sums"] for one in job.ends()] == [sums(2, 20, 1)], text


@pytest.mark.slow
def test_a_dead_spare_is_no_lost_rank(tmp_path):
    job = start(tmp_path, 2, 1, "--pause", "0.05")
    os.kill(spares_of(job, 1)[0], signal.SIGKILL)
    code, text = job.end()
    assert code == 0, text
    assert "ringdp run: 1 spare died before there was need of it" in text
    all_went_on(job, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", [(), ("--kill-at", "20")])
def test_a_stopped_spare(tmp_path, kill_at):
    """Holds up neither the end of a job nor, for longer than RINGDP_TIMEOUT, a recovery."""
    job = start(tmp_path, 2, 1, "--pause", "0.05", *kill_at, RINGDP_TIMEOUT="3")
    spare = spares_of(job, 1)[0]
    os.kill(spare, signal.SIGSTOP)
    code, text = job.end()
    assert code == (LOST if kill_at else 0), text
    assert not lives(spare)
    assert f"killing a spare (process {spare})" in text
    assert all(one["sums"] == sums(2, 20 if kill_at else STEPS, 1) for one in job.ends()), text


def test_all_ranks_die(tmp_path):
    job = start(tmp_path, 2, 1, "--pause", "0.1")
    spares_of(job, 1)
    for pid in wait_until(job, lambda: two if len(two := pids(job)) == 2 else []):
        os.kill(pid, signal.SIGKILL)
    code, text = job.end()
    assert code not in (0, LOST), text
    assert re.search(r"a spare \(process [0-9]+\): all 2 ranks are (gone|lost), and", text), text


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_job_that_is_asked_to_end(tmp_path, number, code):
    """SIGTERM: the ranks stop after their step, and the spares end with them. Ctrl-C: all end."""
    job = start(tmp_path, 2, 1, "--pause", "0.1")
    spares_of(job, 1)
    wait_until(job, lambda: len(list(tmp_path.glob("looks-*"))) == 2)
    job.process.send_signal(number)
    ended, text = job.end()
    assert ended == code, text
    assert ("all ranks stop" in text) == (number == signal.SIGTERM), text
