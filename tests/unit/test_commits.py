"""Files and folders of commits: what is torn, changed, foreign or missing is refused with its reason."""

import os
import stat
import subprocess
import sys
import threading
import time
import zlib
from random import Random

import pytest

from ringdp.commits import files, folder
from ringdp.commits.files import HEADER, Contents, Kind, Label, Refused
from ringdp.commits.folder import Commit, Folder, Manifest
from ringdp.commits.writer import Task, Writer

LABEL = Label(7, 0x1234, Kind.part, 3)
PAYLOAD = bytes(range(60))


@pytest.fixture
def written(tmp_path):
    contents = files.write(tmp_path, LABEL, lambda sink: [sink.write(PAYLOAD[:20]), sink.write(PAYLOAD[20:])])
    assert contents == Contents(len(PAYLOAD), contents.crc)
    return tmp_path, contents


def refused(path, label=LABEL, expected=None, **options):
    """The reason, which reading and checking agree on."""
    reasons = []
    for look in (
        lambda: files.check(path, label, expected),
        lambda: files.read(path, label, expected, **options),
    ):
        with pytest.raises(Refused) as caught:
            look()
        reasons.append(str(caught.value))
    assert reasons[0] == reasons[1]
    return reasons[0]


# --- one file -------------------------------------------------------------------------------------


def test_what_was_written_is_read(written):
    path, contents = written
    assert files.read(path, LABEL) == PAYLOAD
    assert files.contents_of(path, LABEL) == contents
    files.check(path, LABEL, contents)
    assert os.listdir(path) == ["part-3"]
    assert stat.S_IMODE((path / "part-3").stat().st_mode) == 0o600


@pytest.mark.parametrize("size", [0, 1, files.PIECE - 1, files.PIECE, files.PIECE + 1, 3 * files.PIECE])
def test_sizes(tmp_path, size):
    payload = os.urandom(size)
    files.write(tmp_path, LABEL, lambda sink: sink.write(payload))
    files.check(tmp_path, LABEL)
    assert files.read(tmp_path, LABEL) == payload


def test_a_file_that_ends_at_any_place_is_refused(written):
    path, _ = written
    whole = (path / "part-3").read_bytes()
    assert len(whole) == HEADER.size + len(PAYLOAD)
    for length in range(len(whole)):
        (path / "part-3").write_bytes(whole[:length])
        reason = refused(path)
        assert (
            f"ends after {length} bytes, inside the header" in reason
            if length < HEADER.size
            else f"{len(whole)} bytes were written, {length} are there" in reason
        )
    (path / "part-3").write_bytes(whole + b"\0")
    assert f"{len(whole)} bytes were written, {len(whole) + 1} are there" in refused(path)


def test_a_bit_that_changes_at_any_place_is_refused(written):
    path, _ = written
    whole = (path / "part-3").read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            (path / "part-3").write_bytes(changed)
            with pytest.raises(Refused, match="checksum|does not begin"):
                files.check(path, LABEL)
    assert "payload" in refused(path)
    (path / "part-3").write_bytes(whole)
    files.check(path, LABEL)


def test_sizes_that_lie_take_no_memory(written):
    path, _ = written
    whole = (path / "part-3").read_bytes()
    huge = files.header(LABEL, Contents(1 << 62, 0))  # its own checksum is right
    (path / "part-3").write_bytes(huge + whole[HEADER.size :])
    assert f"{(1 << 62) + HEADER.size} bytes were written, {len(whole)} are there" in refused(path)
    (path / "part-3").write_bytes(whole)
    with pytest.raises(Refused, match="60 bytes are more than such a file can have .59"):
        files.read(path, LABEL, at_most=59)


@pytest.mark.parametrize(
    "label",
    [
        Label(8, LABEL.token, Kind.part, 3),
        Label(7, LABEL.token + 1, Kind.part, 3),
        Label(7, LABEL.token, Kind.state, 3),
        Label(7, LABEL.token, Kind.part, 4),
    ],
)
def test_a_file_in_the_place_of_another(written, label):
    path, _ = written
    os.rename(path / "part-3", path / "elsewhere")
    os.rename(path / "elsewhere", path / label.name)
    assert "it belongs to another commit, rank or job" in refused(path, label)


def test_a_whole_file_that_is_not_the_one_in_the_manifest(written):
    path, contents = written
    assert "not the file that the manifest names" in refused(
        path, expected=Contents(contents.size, contents.crc ^ 1)
    )


def test_what_is_no_file_of_ours(written, monkeypatch):
    path, _ = written
    os.symlink(path / "part-3", path / "part-4")
    assert "symbolic links" in refused(path, Label(7, LABEL.token, Kind.part, 4))
    os.mkfifo(path / "part-5")
    assert "it is no regular file" in refused(path, Label(7, LABEL.token, Kind.part, 5))
    assert "No such file" in refused(path, Label(7, LABEL.token, Kind.part, 6))
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    assert f"it belongs to another user ({mine}, not {mine + 1})" in refused(path)


def test_a_write_that_fails_leaves_nothing(tmp_path):
    def put(sink):
        sink.write(b"half")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        files.write(tmp_path, LABEL, put)
    assert os.listdir(tmp_path) == []


def test_the_disk_has_the_file_before_its_name_and_then_the_name(tmp_path, monkeypatch):
    """In this order, so that no crash leaves a name without all of the payload."""
    did = []
    fsync, rename = os.fsync, os.rename

    def noting_fsync(handle):
        did.append(
            "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else f"file of {os.fstat(handle).st_size}"
        )
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "rename", lambda a, b: (did.append("rename"), rename(a, b)))
    files.write(tmp_path, LABEL, lambda sink: sink.write(PAYLOAD))
    assert did == [f"file of {HEADER.size + len(PAYLOAD)}", "rename", "folder"]


# --- a folder -------------------------------------------------------------------------------------


def commit(path, number, ranks=2, sharded=False, token=5, first=0, members=None):
    """A whole one, as `first` would write it for `members`."""
    here = Folder(path)
    here.make()
    made = Manifest(Commit(number, token), ranks, sharded, {"ranks": str(ranks)})
    place = here.begin(made.commit)
    for rank in range(ranks) if members is None else members:
        made.files[Kind.part, rank] = files.write(
            place, made.label(Kind.part, rank), lambda sink, rank=rank: sink.write(b"part %d" % rank)
        )
    made.files[Kind.state, first] = files.write(
        place, made.label(Kind.state, first), lambda sink: sink.write(b"state %d" % number)
    )
    here.write_manifest(made, first)
    return made


def test_commits_are_found_the_newest_first(tmp_path):
    made = [commit(tmp_path / "new" / "deep", number) for number in (9, 10, 100)]
    here = Folder(tmp_path / "new" / "deep")
    assert here.manifests() == made[::-1] and all(m.is_whole for m in made)
    assert folder.newest(here.path) == made[-1]
    assert stat.S_IMODE(here.path.stat().st_mode) == 0o700
    assert stat.S_IMODE((here.path / made[0].commit.name).stat().st_mode) == 0o700
    assert folder.newest(tmp_path / "nowhere") is None


def test_a_commit_without_manifest_does_not_count(tmp_path):
    older, newer = commit(tmp_path, 1), commit(tmp_path, 2)
    os.unlink(tmp_path / newer.commit.name / "manifest-0")
    assert Folder(tmp_path).manifests() == [older]
    assert Folder(tmp_path).commits() == [newer.commit, older.commit]  # its number is used up all the same


@pytest.mark.parametrize("name", ["state-0", "part-0", "part-1"])
@pytest.mark.parametrize("harm", ["gone", "shorter"])
@pytest.mark.parametrize("sharded", [False, True])
def test_a_commit_that_lacks_a_file(tmp_path, name, harm, sharded):
    made = commit(tmp_path, 3, sharded=sharded)
    file = tmp_path / made.commit.name / name
    os.unlink(file) if harm == "gone" else os.truncate(file, HEADER.size + 1)
    said = []
    (found,) = Folder(tmp_path).manifests(said.append)
    assert not found.is_whole and len(said) == 1 and str(file) in said[0]
    # Without the part of a rank the state is all there, unless each part is a shard of it.
    assert found.is_usable == (name != "state-0" and not sharded)


def test_manifests_of_two_hosts_make_one_commit(tmp_path):
    commit(tmp_path, 4, ranks=3, sharded=True, first=0, members=[0, 1])
    (half,) = Folder(tmp_path).manifests()
    assert not half.is_usable
    commit(tmp_path, 4, ranks=3, sharded=True, first=2, members=[2])
    (whole,) = Folder(tmp_path).manifests()
    assert whole.is_whole and {rank for kind, rank in whole.files if kind == Kind.state} == {0, 2}


def test_a_folder_of_another_user(tmp_path, monkeypatch):
    commit(tmp_path, 5)
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    with pytest.raises(Refused, match="it belongs to another user"):
        Folder(tmp_path).make()
    said = []
    assert Folder(tmp_path).manifests(said.append) == []
    assert len(said) == 1 and "it belongs to another user" in said[0]


GOOD = {"ranks": 2, "sharded": False, "about": {"a": "b"}, "files": [[1, 0, 5, 6]]}


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        {"ranks": 0},
        {"ranks": True},
        {"ranks": "2"},
        {"sharded": 1},
        {"about": []},
        {"about": {"a": 1}},
        {"files": {}},
        {"files": [[1, 0, 5]]},
        {"files": [[4, 0, 5, 6]]},
        {"files": [[1, 2, 5, 6]]},
        {"files": [[1, -1, 5, 6]]},
        {"files": [[1, 0, -5, 6]]},
        {"files": [[1, 0, 5, 1 << 32]]},
        {"files": [[1, 0, 5.0, 6]]},
        {"files": None},
    ],
)
def test_what_no_manifest_says(wrong):
    assert folder.parse_manifest(Commit(1, 1), GOOD).files == {(Kind.state, 0): Contents(5, 6)}
    with pytest.raises((ValueError, TypeError, KeyError)):
        folder.parse_manifest(Commit(1, 1), {**GOOD, **wrong} if isinstance(wrong, dict) else wrong)
    for name in GOOD:
        with pytest.raises(KeyError):
            folder.parse_manifest(Commit(1, 1), {k: v for k, v in GOOD.items() if k != name})


@pytest.mark.parametrize("text", [b"", b"\xff", b"[" * 100_000, b"{}", b"null"])
def test_a_manifest_that_is_none(tmp_path, text):
    made = commit(tmp_path, 6)
    place = tmp_path / made.commit.name
    os.unlink(place / "manifest-0")
    files.write(place, made.label(Kind.manifest, 0), lambda sink: sink.write(text))
    said = []
    assert Folder(tmp_path).manifests(said.append) == []
    assert len(said) == 1 and "it is no manifest" in said[0]


def test_seeded_nonsense_is_refused_or_read(tmp_path):
    """Manifests whose checksums are right, and whose text is nearly so: nothing else than Refused comes out."""
    made = commit(tmp_path, 7)
    path = tmp_path / made.commit.name / "manifest-0"
    text = path.read_bytes()[HEADER.size :]
    pieces = [
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b'"',
        b"-1",
        b"1e400",
        b"NaN",
        b"null",
        b"true",
        b"9" * 5000,
        b"\xc3",
    ]
    random, read = Random(3), 0
    for _ in range(500):
        changed = bytearray(text)
        for _ in range(random.randint(1, 4)):
            begin = random.randrange(len(changed))
            changed[begin : begin + random.randint(0, 4)] = random.choice(pieces)
        contents = Contents(len(changed), zlib.crc32(changed))
        path.write_bytes(files.header(made.label(Kind.manifest, 0), contents) + changed)
        said = []
        found = Folder(tmp_path).manifests(said.append)
        assert found or said
        read += bool(found)
    assert 0 < read < 250


def test_those_of_lower_numbers_are_deleted(tmp_path):
    made = [commit(tmp_path, number) for number in (1, 2, 3, 4)]
    (tmp_path / "mine").write_text("not a commit")
    Folder(tmp_path).keep({made[3].commit, made[1].commit}, below=4)
    assert Folder(tmp_path).commits() == [made[3].commit, made[1].commit]
    assert (tmp_path / "mine").exists()


# --- the thread -----------------------------------------------------------------------------------


def writer(path, rank, members, say=lambda text: None, previous=None, patience=30.0):
    here = Folder(path)
    here.make()
    return Writer(here, rank, members, previous, say, patience)


def task(number, ranks=2, part=b"part", state=b"state"):
    manifest = Manifest(Commit(number, 9), ranks)
    put_state = None if state is None else lambda sink: sink.write(state)
    put_part = part if callable(part) else lambda sink: sink.write(part)
    return Task(manifest, put_part, put_state)


def test_a_commit_counts_when_the_last_rank_has_written(tmp_path):
    first, second = writer(tmp_path, 0, [0, 1]), writer(tmp_path, 1, [])
    first.start(task(1))
    assert not first.flush(0.2) and not first.is_ready()
    assert Folder(tmp_path).manifests() == []
    second.start(task(1, state=None))
    assert first.flush() and second.flush()
    (found,) = Folder(tmp_path).manifests()
    assert found.is_whole and found.commit == first.written == Commit(1, 9)
    first.close()
    second.close()


def test_the_last_two_are_kept(tmp_path):
    old = commit(tmp_path, 1)
    commit(tmp_path, 2)
    alone = writer(tmp_path, 0, [0], previous=old.commit)  # which it went on from: number 2 was refused
    for number, expected in ((3, [3, 1]), (4, [4, 3]), (5, [5, 4])):
        alone.start(task(number, ranks=1))
        assert alone.flush()
        assert [found.number for found in Folder(tmp_path).commits()] == expected
    alone.close()


def test_a_rank_that_cannot_write_keeps_nobody_waiting(tmp_path):
    def full(sink):
        raise OSError(28, "No space left on device")

    said = [], []
    first, second = writer(tmp_path, 0, [0, 1], said[0].append), writer(tmp_path, 1, [], said[1].append)
    began = time.monotonic()
    first.start(task(1))
    second.start(task(1, part=full, state=None))
    assert first.flush() and second.flush() and time.monotonic() - began < 20
    assert said[0] == ["commit 1 does not count: rank 1 could not write its part"]
    assert said[1] == ["commit 1 does not count: OSError: [Errno 28] No space left on device"]
    assert Folder(tmp_path).manifests() == [] and first.written is None
    first.start(task(2))
    second.start(task(2, state=None))
    assert first.flush() and second.flush()
    assert [found.number for found in Folder(tmp_path).commits()] == [2]
    first.close()
    second.close()


def test_a_rank_that_does_not_write(tmp_path):
    said = []
    first = writer(tmp_path, 0, [0, 1], said.append, patience=0.2)
    first.start(task(1))
    assert first.flush(10)
    assert said == ["commit 1 does not count: rank 1 has not written its part in 0.2 s"]
    first.close()


def test_the_end_does_not_wait_for_others(tmp_path):
    said = []
    first = writer(tmp_path, 0, [0, 1], said.append)
    first.start(task(1))
    began = time.monotonic()
    first.close(0.1)
    assert time.monotonic() - began < 10 and said == []


def test_the_caller_does_not_wait_for_the_disk(tmp_path):
    go = threading.Event()
    alone = writer(tmp_path, 0, [0])
    alone.start(task(1, ranks=1, part=lambda sink: (go.wait(30), sink.write(b"late"))))
    assert not alone.is_ready()  # and here we are
    go.set()
    assert alone.flush() and alone.is_ready()
    alone.close()


COMMITS = """
import os, sys
from pathlib import Path
from ringdp.commits.folder import Commit, Folder, Manifest
from ringdp.commits.writer import Task, Writer
here = Folder(Path(sys.argv[1]))
here.make()
found = here.manifests(print)
last = found[0].commit if found else None
number = here.commits()[0].number if here.commits() else 0
writer = Writer(here, 0, [0], last, print)
print("up", flush=True)
while True:
    number += 1
    data = number.to_bytes(8, "little") * 20000
    put = lambda sink, data=data: [sink.write(data[:70000]), sink.write(data[70000:])]
    writer.start(Task(Manifest(Commit(number, os.getpid()), 1), put, put))
    writer.flush()
    print(number, flush=True)
"""


def test_a_process_that_is_killed_while_it_writes(tmp_path):
    """Whenever that is: the newest commit with a manifest is whole, and at most two older ones are there."""
    random, numbers = Random(5), []
    for trial in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", COMMITS, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "up\n"  # nothing was refused
        written = [int(process.stdout.readline()) for _ in range(trial % 4)]  # however slow the disk is
        time.sleep(random.uniform(0, 0.02))
        process.kill()
        process.communicate(timeout=30)
        said = []
        found = Folder(tmp_path).manifests(said.append)
        assert said == [] and len(found) <= 3 and all(manifest.is_whole for manifest in found)
        assert not written or found[0].commit.number >= written[-1]
        for manifest in found[:1]:
            numbers.append(manifest.commit.number)
            for (kind, rank), contents in manifest.files.items():
                data = files.read(tmp_path / manifest.commit.name, manifest.label(kind, rank), contents)
                assert data == manifest.commit.number.to_bytes(8, "little") * 20000
    assert numbers == sorted(numbers) and numbers[-1] > numbers[0]
