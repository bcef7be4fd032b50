"""The flight recorder: what the core writes, and what is read of files that are whole, torn or made up."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from ringdp import _core, flight
from ringdp.cli import doctor
from ringdp.errors import UsageError


@pytest.fixture
def recorder(tmp_path):
    path = tmp_path / "one.flight"
    watch = _core.Watch(str(path), 3, 8, 1, 4, "a job")
    yield watch
    watch.close()


def test_the_layout_is_the_core_s(recorder, tmp_path):
    assert flight.FILE_BYTES == _core.FLIGHT_BYTES == os.path.getsize(recorder.path)
    recorder.failed_by("ValueError: it broke")
    for _ in range(5):
        recorder.stepped()
    call = recorder.enter("MPI_Comm_dup", 100, 100)
    one = flight.read(tmp_path / "one.flight")
    assert (one.rank, one.size, one.local_rank, one.local_size, one.job) == (3, 8, 1, 4, "a job")
    assert (one.pid, one.standing, one.step, one.failure) == (
        os.getpid(),
        "starting",
        5,
        "ValueError: it broke",
    )
    assert one.host == os.uname().nodename[:63] and one.is_alive()
    assert [what for _, what in one.calls] == ["MPI_Comm_dup"] and one.records == []
    assert abs((one.failed_at + one.wall_offset) / 1e9 - time.time()) < 5
    recorder.leave(call)
    assert flight.read(tmp_path / "one.flight").calls == []


def test_only_its_owner_reads_it_and_it_goes_when_its_owner_goes(recorder, tmp_path):
    assert os.stat(recorder.path).st_mode & 0o777 == 0o600
    recorder.close()
    assert list(tmp_path.iterdir()) == []


PROGRAM = """
import os, signal, sys
import numpy as np
import ringdp
from ringdp import watch
ringdp.init()
for i in range(int(sys.argv[1])):
    ringdp.allreduce(np.ones(3, np.float32), name=f"tensor {i}")
print(watch.current().path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("operations", [7, 5000])
def test_what_a_killed_rank_did_can_be_read(operations):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(operations)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    path = flight.Path(done.stdout.split()[-1])
    try:
        one = flight.read(path)
    finally:
        path.unlink()
    assert not one.is_alive() and one.standing == "running" and one.submitted == operations
    kept = min(operations, flight.RECORDS)
    assert [r.name for r in one.records] == [f"tensor {i}" for i in range(operations - kept, operations)]
    assert {(r.kind, r.stage, r.bytes) for r in one.records} == {("allreduce", "DONE", 12)}
    assert [r.number for r in one.records] == list(range(operations - kept + 1, operations + 1))


def test_files_that_are_none(recorder, tmp_path):
    whole = (tmp_path / "one.flight").read_bytes()
    bad = tmp_path / "bad.flight"
    for content in (b"", whole[:-1], whole + b"\0", b"x" * len(whole), whole[:8] + b"\2" + whole[9:]):
        bad.write_bytes(content)
        with pytest.raises(UsageError, match="no flight recorder"):
            flight.read(bad)


def test_whatever_is_in_a_file_reading_it_is_safe(recorder, tmp_path):
    """Bytes at random places, but for those that say what it is: nothing but a page comes of it."""
    raw = bytearray((tmp_path / "one.flight").read_bytes())
    chance = random.Random(5)
    folder = tmp_path / "report"
    folder.mkdir()
    for trial in range(50):
        spoiled = bytearray(raw)
        for _ in range(2000):
            spoiled[chance.randrange(36, len(spoiled))] = chance.randrange(256)
        spoiled[36:4096] = chance.randbytes(4096 - 36) if trial % 2 else spoiled[36:4096]
        (folder / "rank-3.flight").write_bytes(spoiled)
        try:
            text = "\n".join(doctor.page(folder, all_stacks=True))
        except UsageError:
            assert trial % 2, "numbers of ranks that cannot be"
            continue
        assert "culprit" in text and all(c.isprintable() or c == "\n" for c in text)


def test_a_name_that_is_too_long_is_cut():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace('f"tensor {i}"', '"ä" * 100'), "1"], capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    path = flight.Path(done.stdout.split()[-1])
    try:
        (record,) = flight.read(path).records
    finally:
        path.unlink()
    assert record.name.startswith("ä" * 27) and len(record.name) <= 28


def test_recorders_of_the_dead_are_removed(tmp_path):
    from ringdp import watch

    program = "import sys, os\nfrom ringdp import _core\nkept = _core.Watch(sys.argv[1], 0, 1, 0, 1, 'x')\nos._exit(0)"
    dead, recent, living, other = (
        tmp_path / f"{watch.PREFIX}{n}{flight.SUFFIX}" for n in ("dead", "recent", "living", "other")
    )
    for path in (dead, recent):
        subprocess.run([sys.executable, "-c", program, str(path)], check=True, timeout=60)
    kept = _core.Watch(str(living), 0, 1, 0, 1, "x")
    other.write_bytes(b"something else")
    hour_ago = time.time() - 3600
    for path in (dead, living, other):
        os.utime(path, (hour_ago, hour_ago))
    watch.clear_away(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {recent.name, living.name, other.name}
    kept.close()


def test_those_of_ranks_that_have_left_nobody_on_their_host_go_into_the_report_of_their_job(
    tmp_path, monkeypatch
):
    """Nobody else there could bring them. Others are their neighbours' business, and reports are not made of them."""
    from ringdp import watch

    program = (
        "import sys, os\nfrom ringdp import _core\n"
        "kept = _core.Watch(sys.argv[1], int(sys.argv[2]), 4, 0, 2, sys.argv[3])\nos._exit(0)"
    )
    recorders, reports = tmp_path / "recorders", tmp_path / "reports"
    recorders.mkdir()
    report, with_survivors = (reports / f"ringdp-report-{job}" for job in ("all-dead", "one-lives"))
    report.mkdir(parents=True)
    with_survivors.mkdir()
    monkeypatch.setenv(watch.FOLDER, str(reports))
    survivor = _core.Watch(str(recorders / f"{watch.PREFIX}survivor{flight.SUFFIX}"), 0, 4, 0, 2, "one lives")
    dead = [
        ("first", 2, "all dead"),
        ("second", 3, "all dead"),
        ("beside", 1, "one lives"),
        ("silent", 1, "alone"),
    ]
    for name, rank, job in dead:
        path = recorders / f"{watch.PREFIX}{name}{flight.SUFFIX}"
        subprocess.run([sys.executable, "-c", program, str(path), str(rank), job], check=True, timeout=60)
    watch.clear_away(recorders)
    assert {p.name.split(".")[1] for p in recorders.iterdir()} == {"survivor", "beside", "silent"}
    assert {p.name for p in report.iterdir()} == {"rank-2.flight", "rank-3.flight"}
    assert not list(with_survivors.iterdir()) and set(reports.iterdir()) == {report, with_survivors}
    survivor.close()


def test_numbers_of_processes_that_come_again(recorder, tmp_path):
    """As after a restart of the machine: the process has this number, and is another one."""
    one = flight.read(tmp_path / "one.flight")
    one.born += 1
    assert not one.is_alive()


FORKS = """
import os, sys
import ringdp
from ringdp import watch
ringdp.init()
path = watch.current().path
child = os.fork()
if child == 0:
    assert watch.current() is None
    sys.exit(7)  # as programs end, with all that is done then
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert os.path.exists(path)
ringdp.shutdown()
assert not os.path.exists(path)
"""


def test_a_forked_child_leaves_its_parent_s_recorder_alone():
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


RANK = """
import sys, time
from ringdp import _core
rank, folder = int(sys.argv[1]), sys.argv[2]
watch = _core.Watch(f"{folder}/{rank}.flight", rank, 3, rank, 3, "job")
watch.place(rank, 3, rank, 3, "job", folder + "/report")
print(watch.path, watch.token, flush=True)
for line in sys.stdin:
    exec(line.replace("; ", "\\n"))
    print(flush=True)
"""


@pytest.fixture
def three_ranks(tmp_path):
    """Processes with a watch each, that do what they are told; rank 2 knows the others."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]  # fmt: skip
    recorders = [rank.stdout.readline().split() for rank in ranks]
    for rank in (0, 1):
        path, token = recorders[rank]
        assert tell(ranks[2], f"watch.attach({rank}, '{path}', {token})") == ""
    yield ranks
    for rank in ranks:
        rank.kill()
        rank.communicate()


def tell(rank, line):
    print(line, file=rank.stdin, flush=True)
    return rank.stdout.readline().rstrip("\n")


VERDICT = "while not watch.verdict: time.sleep(0.01)\nprint(watch.verdict, end='')".replace("\n", "; ")


def test_a_rank_that_is_killed_is_dead(three_ranks):
    tell(three_ranks[2], "watch.start(0)")
    three_ranks[1].kill()
    assert "rank 1" in (said := tell(three_ranks[2], VERDICT)) and "is dead (killed from outside" in said


def test_who_is_killed_after_the_job_has_ended_is_not_to_blame(three_ranks):
    """A rank is stopped; the first that has waited for it too long ends the job, and the launcher kills the others."""
    tell(three_ranks[2], "watch.start(0)")
    tell(three_ranks[0], "watch.failed_by('DeadlineError'); watch.report('rank 1 is stopped', False)")
    three_ranks[1].kill()
    assert tell(three_ranks[2], VERDICT) == "rank 1 is stopped"


def test_who_hears_only_that_another_has_left_blames_whom_that_one_blames(three_ranks):
    """A rank has waited too long, and has left to begin anew; the others hear of that alone, and end as well."""
    tell(three_ranks[0], "watch.report('rank 1 has not come', False)")
    ended = "w.exception(2, 'PeerError: rank 0 has shut ringdp down', True); print(watch.verdict, end='')"
    said = tell(three_ranks[2], "from ringdp import watch as w; w._current = watch; " + ended)
    assert said == "rank 1 has not come"


def test_who_was_asked_to_end_comes_after_who_was_not(three_ranks):
    """As launchers ask the others when one has died."""
    three_ranks[0].terminate()
    three_ranks[0].wait()
    three_ranks[1].kill()
    three_ranks[1].wait()
    assert tell(three_ranks[2], "print(watch.dead(), end='')") == "[1, 0]"


def test_the_first_word_counts_that_has_ended_a_job(recorder, tmp_path):
    one = flight.read(tmp_path / "one.flight")
    said = [
        (0, False, "got over"),
        (9, True, "later"),
        (9, True, "later"),
        (5, True, "first"),
        (1, False, "got over"),
    ]
    flights = [
        dataclasses.replace(one, blamed_at=at, fault=fault, verdict=verdict) for at, fault, verdict in said
    ]
    assert doctor.verdict_of(flights) == "first"
    assert doctor.verdict_of(flights[:1] + flights[4:]) == "got over" and doctor.verdict_of([]) == ""


ASKED_TO_END = """
import os, signal, sys, time
from ringdp import _core
recorder, folder, kind = sys.argv[1:]
if kind == "a handler of the user":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(5))
watch = _core.Watch(recorder, 3, 8, 1, 4, "a job")
watch.start(0)
watch.place(3, 8, 1, 4, "a job", folder)
if kind != "no fault":
    watch.report("rank 2 is dead", False)
    os.unlink(os.path.join(folder, "rank-3.flight"))  # what was known then
    for _ in range(7):
        watch.stepped()
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(20)
"""


@pytest.mark.parametrize("kind", ["no fault", "a fault", "a handler of the user"])
def test_sigterm_after_a_fault_saves_what_is_known_then(tmp_path, kind):
    """As launchers send it to those that have survived; before a fault it is somebody's wish, and leaves nothing."""
    path, folder = tmp_path / "one.flight", tmp_path / "report"
    done = subprocess.run([sys.executable, "-c", ASKED_TO_END, path, folder, kind], timeout=60)
    assert done.returncode == -signal.SIGTERM
    assert not path.exists()
    if kind == "no fault":
        assert not folder.exists()
        return
    assert [p.name for p in folder.iterdir()] == ["rank-3.flight"]
    one = flight.read(folder / "rank-3.flight")
    assert (one.verdict, one.signal, one.step, one.fault) == ("rank 2 is dead", signal.SIGTERM, 7, True)


NO_ROOM = """
import os, sys
import numpy as np
import ringdp
from ringdp import watch
ringdp.init()
assert watch.current().path == "", watch.current().path
for i in range(9000):  # each place twice
    assert ringdp.allreduce(np.ones(3), op=ringdp.Sum, name=f"tensor {i}")[0] == ringdp.size()
watch.current().failed_by("nobody can read it")
ringdp.shutdown()
print("done", os.listdir("/dev/shm"))
"""


@pytest.mark.parametrize("kilobytes", [4, 300])
def test_without_room_for_it_only_this_process_has_it(kilobytes):
    """A container's /dev/shm that is full: no SIGBUS, and nothing left that was begun."""
    private = ["unshare", "--mount", "sh", "-c"]
    room = f"mount -t tmpfs -o size={kilobytes}k none /dev/shm"
    if subprocess.run([*private, room], capture_output=True).returncode:
        pytest.skip("no /dev/shm of its own can be mounted here: that takes root, or its capability")
    command = f'{room} && exec "$0" -c "$1"'
    done = subprocess.run(
        [*private, command, sys.executable, NO_ROOM], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0 and "ringdp." not in done.stdout and "done" in done.stdout, (
        done.stdout + done.stderr
    )


@pytest.mark.parametrize(
    ("elastic", "code"),
    [(None, 1), ("", 1), ("0", 1), ("1", -signal.SIGKILL)],
    ids=["none", "empty", "0", "1"],
)
def test_a_call_that_does_not_end_is_the_end_of_the_process(elastic, code):
    """Where others go on without this rank they hear of no other end than by a signal."""
    program = (
        "import time; from ringdp import _core\n"
        "watch = _core.Watch('', 0, 1, 0, 1, ''); watch.start(0); watch.enter('MPI_Comm_dup', 100, 0.1)\n"
        "time.sleep(60)"
    )
    env = {k: v for k, v in os.environ.items() if k != "RINGDP_ELASTIC"}
    if elastic is not None:
        env["RINGDP_ELASTIC"] = elastic
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == code, done.stderr
    assert "has been in MPI_Comm_dup for" in done.stderr
