"""Memory shared in a host: where there is little of it, where ranks cannot map each other's, where a rank is killed."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from cluster.training import Run
from driver.environ import environment, mpirun

from ringdp import _build, flight

LIMIT = 60  # seconds, for a job that should take two
MIB = 1 << 20
RECORDER = -(-flight.FILE_BYTES // 4096) * 4096  # bytes of a rank's flight recorder
SPACES = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]
# $0: the size of the /dev/shm that the job alone sees. What it leaves there is told at the end.
IN_SHM = """
mount -t tmpfs -o size=$0 shm /dev/shm && "$@"
code=$?
echo "left in /dev/shm: [$(ls -A /dev/shm)]"
exit $code
"""
# Open MPI's own shared memory would not work either, or use up what there is.
MESSAGES_BY_TCP = {"OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "self,tcp"}

PRELUDE = """
import os, signal, subprocess, sys, threading, time
import numpy as np
import ringdp

COUNT = 16 << 20  # float32: 64 MiB
INDEX = np.resize(np.arange(1021, dtype=np.float32), COUNT)

def fill(x, salt=0):
    '''Integers that encode rank and index, and whose sums float32 holds exactly.'''
    return np.add(INDEX[:x.size], 2048 * (ringdp.rank() + 1) + salt, out=x)

def mine(count, salt=0):
    return fill(np.empty(count, np.float32), salt)

def is_sum(total, salt=0):
    ranks = ringdp.size()
    want = ranks * INDEX[:total.size] + (1024 * ranks * (ranks + 1) + ranks * salt)
    return np.array_equal(total, want)

def sums_are_exact(count=COUNT):
    '''By letter, staged, in place.'''
    fine = [is_sum(ringdp.allreduce(mine(n), op=ringdp.Sum)) for n in (5, count)]
    return all(fine) and is_sum(ringdp.allreduce_(mine(count), op=ringdp.Sum))

def kinds():
    '''Which kinds of heap this process has mapped: this rank's, and those of others.'''
    paths = [line.split()[5] for line in open('/proc/self/maps') if 'ringdp' in line and line.count(' rw-s ')]
    files = sorted({path for path in paths if path.startswith(('/memfd:ringdp', '/dev/shm/ringdp-'))})
    maps = sum(path in files for path in paths)
    return f"{maps} {'memfd' if 'memfd' in str(files) else 'file' if files else 'none'}"

def free():
    status = os.statvfs('/dev/shm')
    return status.f_bavail * status.f_frsize
"""


def why_not() -> str | None:
    """Why a job with a /dev/shm of its own, and ranks that do not see each other, cannot be had here; or None."""
    if _build.MPI_FAMILY != "openmpi":
        return "how to keep another MPI than Open MPI off shared memory is not known here"
    if os.geteuid() != 0:
        return "a /dev/shm of a job's own needs root"
    try:
        trial = [*SPACES, "mount", "-t", "tmpfs", "shm", "/dev/shm"]
        tried = subprocess.run(trial, capture_output=True, text=True, timeout=20)
    except FileNotFoundError:
        return "a /dev/shm of a job's own needs unshare (Debian, Ubuntu: apt install util-linux)"
    return f"namespaces are not allowed here: {tried.stderr.strip()}" if tried.returncode else None


REASON = why_not()
with_namespaces = pytest.mark.skipif(REASON is not None, reason=REASON or "")


@dataclass
class Ended:
    code: int | None
    output: str
    left: str  # in the job's /dev/shm, by name


def in_shm(run: Run, size: str, words: list[str], **environ: str) -> Ended:
    """Run two ranks of `words` where /dev/shm is a file system of this size, seen by them alone."""
    command = ["unshare", "--mount", "sh", "-c", IN_SHM, size, mpirun(), "-n", "2", *words]
    code, output = run(command, environment() | MESSAGES_BY_TCP | environ, LIMIT)
    output = output.removeprefix(f"$ {shlex.join(command)}\n")
    assert output.count("left in /dev/shm: [") == 1, output
    return Ended(code, output, output.partition("left in /dev/shm: [")[2].partition("]")[0])


def rank(program: str, *words: object) -> list[str]:
    return [sys.executable, "-c", PRELUDE + program, *map(str, words)]


# --- little of it -------------------------------------------------------------------------------------------------

EVERY_WAY = """
ringdp.init()
fine = sums_are_exact()
tensors = [mine(1 << 20, k) for k in range(10)]
waiting = [ringdp.allreduce_async(tensor, op=ringdp.Sum) for tensor in tensors]
fine &= all(is_sum(handle.wait(), k) for k, handle in enumerate(waiting))
print(f"rank {ringdp.rank()}: {fine}, {kinds()}, {free()} bytes free.", flush=True)
ringdp.shutdown()
"""


@with_namespaces
@pytest.mark.parametrize("kind", ["file", "auto"])
def test_a_small_dev_shm(run: Run, kind: str) -> None:
    job = in_shm(run, "16m", rank(EVERY_WAY), RINGDP_SHARED_MEMORY=kind)
    assert job.code == 0, job.output
    found = {"file": "2 file", "auto": "2 memfd"}[kind]
    for r in (0, 1):
        assert f"rank {r}: True, {found}, " in job.output, job.output
    assert job.left == ""
    if kind == "auto":
        free = [int(found) for found in re.findall(r"(\d+) bytes free", job.output)]
        assert free == [16 * MIB - 2 * RECORDER] * 2, job.output  # untouched but for the flight recorders


@with_namespaces
def test_areas_for_some_of_what_is_in_flight(run: Run) -> None:
    area = 6 * MIB  # of a large tensor, with these segments: three turns of a segment for each rank
    job = in_shm(
        run, "16m", rank(EVERY_WAY), RINGDP_SHARED_MEMORY="file", RINGDP_SHARED_SEGMENT_BYTES=str(MIB)
    )
    assert job.code == 0, job.output
    for r in (0, 1):
        _, _, told = job.output.partition(f"rank {r}: True, 2 file, ")
        assert told and int(told.split()[0]) < area, job.output  # each has one area, and cannot get another
    assert job.left == ""


@with_namespaces
def test_no_room_for_areas(run: Run) -> None:
    room = 2 * MIB + 2 * RECORDER
    job = in_shm(run, str(room), rank(EVERY_WAY), RINGDP_SHARED_MEMORY="file")
    assert job.code == 0, job.output
    for r in (0, 1):
        assert f"rank {r}: True, 2 file, 0 bytes free." in job.output, job.output
    assert job.left == ""


@with_namespaces
def test_room_for_one_heap_of_two(run: Run) -> None:
    room = MIB + 2 * RECORDER
    job = in_shm(run, str(room), rank(EVERY_WAY), RINGDP_SHARED_MEMORY="file")
    assert job.code == 0, job.output
    assert job.output.count(": True, ") == 2, job.output
    # Both lack it where both reached for it at once.
    assert job.output.count("No space left on device; its host's ranks exchange through MPI") in (1, 2), (
        job.output
    )
    assert job.left == ""


WANTED = "bytes of shared memory wanted"
EMPTY = """
ringdp.init()
count = int(sys.argv[1])
arrays = [ringdp.empty((count,), np.float32) for _ in range(2)]
fine = all(is_sum(ringdp.allreduce_(fill(array), op=ringdp.Sum)) for array in arrays)
print(f"rank {ringdp.rank()}: {fine}, {kinds()}", flush=True)
ringdp.shutdown()
"""


@with_namespaces
@pytest.mark.parametrize("mib", [64, 10])
def test_arrays_for_which_there_is_no_room(run: Run, mib: int) -> None:
    """64 MiB are there for no rank; 10 MiB for one array of one rank, so that arrays of both kinds meet."""
    job = in_shm(run, "16m", rank(EMPTY, mib * MIB // 4), RINGDP_SHARED_MEMORY="file")
    assert job.code == 0, job.output
    for r in (0, 1):
        assert f"rank {r}: True, 2 file" in job.output, job.output
        assert job.output.count(f"ringdp: rank {r}: {mib * MIB} {WANTED}") == 1, job.output
    assert job.left == ""


# --- ranks that cannot map each other's ---------------------------------------------------------------------------

APART = """
ringdp.init()
print(f"rank {ringdp.rank()}: {sums_are_exact(4 << 20)}, {kinds()}, {os.uname().nodename}", flush=True)
ringdp.shutdown()
"""


@with_namespaces
def test_ranks_of_one_host_that_share_nothing(run: Run) -> None:
    own = [*SPACES, "sh", "-c", 'mount -t tmpfs shm /dev/shm && exec "$0" "$@"']
    job = in_shm(run, "64m", [*own, *rank(APART)])
    assert job.code == 0, job.output
    for r in (0, 1):
        assert f"rank {r}: True, 1 memfd, {os.uname().nodename}" in job.output, job.output
    assert job.left == ""


@with_namespaces
def test_ranks_that_see_each_others_files_but_not_processes(run: Run) -> None:
    job = in_shm(run, "64m", [*SPACES, *rank(APART)])
    assert job.code == 0, job.output
    for r in (0, 1):
        assert f"rank {r}: True, 2 file, {os.uname().nodename}" in job.output, job.output
    assert job.left == ""


# Rank 0 is process 2 where it lives; process 2 where rank 1 lives is somebody else.
STRANGER = """
stranger = None if os.getpid() == 2 else subprocess.Popen(['sleep', '60'])
assert stranger is None or stranger.pid == 2, stranger.pid
ringdp.init()
fine = sums_are_exact(1 << 20)
if stranger:
    stranger.kill()
    stranger.wait()
    time.sleep(0.5)  # time for the engine to look who is alive
else:
    time.sleep(1)
print(f"rank {ringdp.rank()}: {fine and sums_are_exact(1 << 20)}, {kinds()}", flush=True)
ringdp.shutdown()
"""


@with_namespaces
def test_a_stranger_of_the_same_process_number(run: Run) -> None:
    """In another process namespace a number means another process: that one's end is not the rank's."""
    as_2 = ["sh", "-c", 'if [ $OMPI_COMM_WORLD_RANK = 0 ]; then "$0" "$@"; exit $?; else exec "$0" "$@"; fi']
    job = in_shm(run, "64m", [*SPACES, *as_2, *rank(STRANGER)])
    assert job.code == 0, job.output
    for r in (0, 1):
        assert f"rank {r}: True, 2 file" in job.output, job.output


# --- a rank that is killed ----------------------------------------------------------------------------------------

KILLED = """
folder, what = sys.argv[1:]
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of mpirun, which has seen it too

def write(name, text):
    with open(os.path.join(folder, name), 'w') as file:
        print(time.monotonic_ns(), text, file=file, flush=True)
        os.fsync(file.fileno())

def end():
    file = os.open(os.path.join(folder, 'killed'), os.O_CREAT | os.O_WRONLY)
    os.write(file, b'%d %d' % (time.monotonic_ns(), os.getpid()))
    os.kill(os.getpid(), signal.SIGKILL)

ringdp.init()
x = np.ones(1 if what == 'small' else COUNT, np.float32)
call = ringdp.barrier if what == 'barrier' else lambda: ringdp.allreduce_(x, op=ringdp.Max)
call()
if ringdp.rank() == 1 and what != 'halfway':
    time.sleep(0.4)  # the other comes to rest
    end()
if ringdp.rank() == 1:
    threading.Timer(0.4, end).start()
try:
    call()
    while what == 'halfway':
        call()
except ringdp.PeerError as error:
    write('survivor', error)
    os._exit(0)
"""


@pytest.mark.parametrize("what", ["large", "small", "barrier", "halfway"])
def test_a_rank_that_is_killed_is_named_at_once(run: Run, tmp_path: Path, what: str) -> None:
    delays: list[float] = []
    while len(delays) < 3 and min(delays, default=1) >= 0.1:
        run([mpirun(), "-n", "2", *rank(KILLED, tmp_path, what)], environment() | MESSAGES_BY_TCP, LIMIT)
        killed, pid = (tmp_path / "killed").read_text().split()
        told, _, text = (tmp_path / "survivor").read_text().partition(" ")
        assert re.match(rf"rank 0: rank 1 \(host \S+, process {pid}\) is dead \(killed from outside", text), (
            text
        )
        delays.append((int(told) - int(killed)) / 1e9)
        assert 0 < delays[-1] < 1, delays
        (tmp_path / "survivor").unlink()
    assert min(delays) < 0.1, delays


# --- nothing is left ----------------------------------------------------------------------------------------------

# Does the job succeed, and how each rank ends.
ENDS = {
    "shutdown": (True, "ringdp.shutdown()"),
    "no shutdown": (True, ""),
    "exception": (False, "if ringdp.rank() == 1: raise ValueError\nringdp.barrier()"),
    "one is killed": (False, "if ringdp.rank() == 1: os.kill(os.getpid(), signal.SIGKILL)\nringdp.barrier()"),
    "all are killed": (False, "os.kill(os.getpid(), signal.SIGKILL)"),
}


@with_namespaces
@pytest.mark.parametrize("end", ENDS)
def test_no_file_is_left(run: Run, end: str) -> None:
    succeeds, last = ENDS[end]
    program = f"ringdp.init()\nprint(kinds(), sums_are_exact(1 << 20), flush=True)\nringdp.barrier()\n{last}"
    job = in_shm(run, "64m", rank(program), RINGDP_SHARED_MEMORY="file")
    assert (job.code == 0) == succeeds, job.output
    assert job.output.count("2 file True") == 2, job.output
    assert job.left == ""
