"""What docs/security.md says: no socket listens, memory is the owner's alone, no shell, pickle where it is meant."""

from __future__ import annotations

import ast
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from driver.environ import environment, mpirun
from driver.phases import ROOT

from ringdp import _core

PACKAGE = sorted((ROOT / "ringdp").rglob("*.py"))
# Where objects travel, because a call means them: module → what it may call.
UNPICKLES = {
    "ringdp/state.py": {"pickle.loads"},
    "ringdp/elastic.py": {"pickle.loads"},  # commits in a folder of the user's own
    "ringdp/tensorflow/elastic.py": {"pickle.loads"},  # the same: variables and objects in one pickle
    "ringdp/torch/elastic/payload.py": {"pickle.loads", "torch.load"},  # torch.load(weights_only=True)
}
LIMIT = 120

LISTENING = r"""
import json, os, sys
from pathlib import Path

def own_inodes():
    for fd in os.listdir("/proc/self/fd"):
        try:
            to = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if to.startswith("socket:["):
            yield to[8:-1]

def listening():
    mine, found = set(own_inodes()), []
    for table in ("tcp", "tcp6"):
        path = Path("/proc/self/net", table)
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            words = line.split()
            if words[3] == "0A" and words[9] in mine:  # LISTEN
                found.append(f"{table} {words[1]}")
    for line in Path("/proc/self/net/unix").read_text().splitlines()[1:]:
        words = line.split()
        if int(words[3], 16) & 0x10000 and words[6] in mine:  # SO_ACCEPTCON
            found.append(f"unix {words[7:]}")
    return sorted(found)
"""
JOB = (
    LISTENING
    + r"""
from mpi4py import MPI
MPI.COMM_WORLD.Barrier()
before = listening()
import numpy
import ringdp as hvd
hvd.init()
for count in (3, 100_000):
    assert (hvd.allreduce(numpy.ones(count, "float32"), op=hvd.Sum) == hvd.size()).all()
after = listening()
Path(sys.argv[1], f"{hvd.rank()}.json").write_text(json.dumps([before, after]))
hvd.shutdown()
"""
)


def run_script(script: str, *words: str, prefix: tuple[str, ...] = ()) -> str:
    done = subprocess.run(
        [*prefix, sys.executable, "-c", script, *words],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- sockets --------------------------------------------------------------------------------------------------------


def test_no_socket_of_ours_listens(tmp_path: Path) -> None:
    run_script(JOB, str(tmp_path), prefix=(mpirun(), "-n", "2"))
    for rank in range(2):
        before, after = json.loads((tmp_path / f"{rank}.json").read_text())
        assert set(after) <= set(before), f"rank {rank} listens at {set(after) - set(before)}"


def test_the_look_for_sockets_sees_those_that_listen(tmp_path: Path) -> None:
    script = LISTENING + (
        "import socket\n"
        "at = socket.create_server(('127.0.0.1', 0))\n"
        "here = socket.socket(socket.AF_UNIX); here.bind(sys.argv[1] + '/s'); here.listen()\n"
        "print(json.dumps([at.getsockname()[1], listening()]))"
    )
    port, found = json.loads(run_script(script, str(tmp_path)))
    assert len(found) == 2
    assert any(one.startswith("tcp ") and int(one.rpartition(":")[2], 16) == port for one in found)
    assert any(one.startswith("unix ") for one in found)


# --- memory ---------------------------------------------------------------------------------------------------------


def heap_files() -> Iterator[tuple[str, int]]:
    """Of this process: what each is, and its mode."""
    for fd in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{fd}"
        try:
            name, mode = os.readlink(path), os.stat(path).st_mode
        except OSError:
            continue
        if "ringdp" in name and ("memfd:" in name or name.startswith("/dev/shm")):
            yield name, stat.S_IMODE(mode)


@pytest.mark.parametrize("kind", ["memfd", "file"])
def test_shared_memory_is_the_owners_alone(kind: str) -> None:
    before = set(heap_files())
    umask = os.umask(0)
    try:
        host = _core.Host(0, kind)
    finally:
        os.umask(umask)
    made = set(heap_files()) - before
    assert len(made) == 1
    ((name, mode),) = made
    assert mode == 0o600 and ("memfd:" in name) == (kind == "memfd")
    if kind == "file":
        assert stat.S_IMODE(os.stat(name).st_mode) == 0o600
        host.unlink()
        assert not os.path.exists(name)


# --- what the package calls -----------------------------------------------------------------------------------------


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Each call in a module: "os.system", and the call."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def shells_in(path: Path) -> list[str]:
    found = []
    for name, call in calls(path):
        shell = next((k.value for k in call.keywords if k.arg == "shell"), None)
        has_shell = shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False)
        if has_shell or re.fullmatch(
            r"os\.(system|popen)|(subprocess\.)?get(status)?output|pty\.spawn", name
        ):
            found.append(f"{path}:{call.lineno}: {name}")
        first = call.args[0] if call.args else None
        words = [e.value for e in getattr(first, "elts", []) if isinstance(e, ast.Constant)]
        if words[:1] and str(words[0]).rpartition("/")[2] in ("sh", "bash") and "-c" in words:
            found.append(f"{path}:{call.lineno}: a shell by name")
    return found


def test_no_command_line_goes_through_a_shell(tmp_path: Path) -> None:
    assert PACKAGE
    assert [line for path in PACKAGE for line in shells_in(path)] == []
    bad = tmp_path / "bad.py"
    bad.write_text(
        "os.system(a)\nsubprocess.run(b, shell=True)\nsubprocess.run(['/bin/sh', '-c', c])\nrun(d, shell=False)\n"
    )
    assert len(shells_in(bad)) == 3


def test_objects_are_unpickled_where_a_call_means_them_only(tmp_path: Path) -> None:
    unpickles = re.compile(
        r"((pickle|cloudpickle|dill|marshal|shelve)\.(load|loads|Unpickler|open))|eval|exec|torch\.load"
    )

    def found(path: Path) -> set[str]:
        return {name for name, _ in calls(path) if unpickles.fullmatch(name)}

    for path in PACKAGE:
        assert found(path) <= UNPICKLES.get(str(path.relative_to(ROOT)), set()), path
    bad = tmp_path / "bad.py"
    bad.write_text("pickle.loads(a)\nexec(b)\ntorch.load(c)\nmarshal.load(d)\n")
    assert len(found(bad)) == 4


def test_the_core_opens_no_socket_and_starts_no_program() -> None:
    forbidden = re.compile(r"\b(socket|accept4?|system|popen|fork|execv[pe]*|posix_spawnp?)\s*\(")
    sources = [p for p in sorted((ROOT / "csrc").rglob("*")) if p.suffix in (".h", ".cc")]
    assert sources
    for path in sources:
        text = re.sub(r"//.*|\"(\\.|[^\"\\])*\"", "", path.read_text(encoding="utf-8"))
        assert not forbidden.search(text), (path, forbidden.search(text))
    assert forbidden.search("const int fd = socket(AF_INET, SOCK_STREAM, 0);")
