"""What Python parses of files, launchers and other ranks: whatever comes, it is taken or refused in its own words.

The inputs are made of right ones, the same each time. (What C++ parses: tests/fuzz.)
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ringdp import flight, processes
from ringdp.cli import doctor, hosts, mpirun
from ringdp.errors import MismatchError, TransportError, UsageError
from ringdp.plan.cluster import Cluster

INPUTS = 1500  # for each parser
FEW_INPUTS = {"a flight recorder": 300}  # half a megabyte each
PIECES = [
    b"",
    b"-1",
    b"0",
    b"9" * 5000,
    b"1e999",
    b"nan",
    b"\xff",
    b"\0",
    b"\n",
    b" ",
    b"=",
    b":",
    b"(x",
    b"[",
    b'"',
]

Parser = Callable[[bytes, Path], Any]


def mutated(corpus: list[bytes], number: int) -> bytes:
    """Input `number`: one of the corpus with some changes; the first ones without."""
    if number < len(corpus):
        return corpus[number]
    draw = random.Random(number)
    text = bytearray(draw.choice(corpus))
    for _ in range(draw.randint(1, 5)):
        at = draw.randint(0, len(text))
        how = draw.randrange(5)
        if how == 0 and at < len(text):
            text[at] = draw.randrange(256)
        elif how == 1:
            text[at:at] = draw.choice(PIECES)
        elif how == 2:
            del text[at : at + draw.randint(1, 9)]
        elif how == 3:
            text[at:] = draw.choice(corpus)[draw.randint(0, at) :]
        else:
            text[at:at] = text[at : at + draw.randint(1, 20)]
    return bytes(text)


def hostfile(text: bytes, folder: Path) -> Any:
    path = folder / "hosts"
    path.write_bytes(text)
    return hosts.parse_hostfile(path)


def as_text(parse: Callable[[str], Any]) -> Parser:
    return lambda text, _: parse(text.decode(errors="surrogateescape"))


def cluster(text: bytes, folder: Path) -> Any:
    path = folder / "cluster.toml"
    path.write_bytes(text)
    return Cluster.from_toml(path)


def nodefile(text: bytes, folder: Path) -> Any:
    path = folder / "nodes"
    path.write_bytes(text)
    return hosts.allocated_hosts({"PBS_NODEFILE": str(path)})


def vote(text: bytes, _: Path) -> Any:
    from ringdp.torch.vote import WORDS, Vote

    padded = text.ljust(8 * WORDS, b"\0")
    return Vote.decode(
        [int.from_bytes(padded[8 * i : 8 * i + 8], "little") for i in range(WORDS)], "optimizer"
    )


def votes() -> list[bytes]:
    vote_of = pytest.importorskip("ringdp.torch.vote").Vote
    said = [vote_of(1, 2, 3, 4), vote_of(1, 2, 3, 4, replica=7, joined=True, finite=False)]
    return [b"".join(word.to_bytes(8, "little") for word in one.encode()) for one in said]


def store(call: str) -> Parser:
    def parse(text: bytes, _: Path) -> Any:
        server = pytest.importorskip("ringdp.torch.distributed.server")
        return server.unpack(text) if call == "unpack" else server.Waiting.parsed(text, 1)

    return parse


def store_messages() -> list[bytes]:
    pack = pytest.importorskip("ringdp.torch.distributed.server").pack
    return [
        pack([b"7", b"set", b"30.0", b"1", b"key", b"value"]),
        pack([b"0", b"get", b"1e3", b"0"]),
        pack([b"x"] * 5),
    ]


# Of a recorder's file what says most: its head, its first records, its stacks. Zeros between them.
SOME_RECORDS = 3
HEAD_OF_RECORDER = 2400


def page_of_recorder(text: bytes, folder: Path) -> Any:
    """What `ringdp doctor` makes of it."""
    head, records = text[:HEAD_OF_RECORDER], text[HEAD_OF_RECORDER:][: SOME_RECORDS * flight.RECORD_BYTES]
    stacks = text[HEAD_OF_RECORDER + SOME_RECORDS * flight.RECORD_BYTES :][: flight.STACKS]
    raw = (head.ljust(flight.HEAD_BYTES, b"\0") + records).ljust(flight.STACKS_AT, b"\0") + stacks
    (folder / f"rank-0{flight.SUFFIX}").write_bytes(raw.ljust(flight.FILE_BYTES, b"\0"))
    page = "\n".join(doctor.page(folder, all_stacks=True))
    assert "culprit" in page and all(c.isprintable() or c == "\n" for c in page)
    return flight.read(folder / f"rank-0{flight.SUFFIX}").is_alive()


def recorders() -> list[bytes]:
    return [recorder(3, 8, "ValueError: it broke"), recorder(0, 1, "")]


def recorder(rank: int, size: int, failure: str) -> bytes:
    """Of a rank that was in its third operation."""
    from ringdp import _core

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "one.flight")
        watch = _core.Watch(str(path), rank, size, 0, 1, "a job")
        watch.enter("MPI_Comm_dup", 100, 100)
        if failure:
            watch.failed_by(failure)
        head = bytearray(path.read_bytes()[:HEAD_OF_RECORDER])
        watch.close()
    flight.HOW.pack_into(head, flight.HOW_AT, 1, SOME_RECORDS, 2, 0, 0)
    records = [
        flight.RECORD.pack(n, 5, n, 64, n * 10**9, n * 10**9 + 5, 2, 0, lane, kind, stage, name)
        for n, lane, kind, stage, name in (
            (1, 0, 0, 5, b"loss"),
            (2, 1, 255, 3, b"plan 1"),
            (3, 1, 0, 255, b"bucket 0"),
        )
    ]
    return bytes(head) + b"".join(records) + b'Thread 0x1 (most recent call first):\n  File "a.py", line 3\n'


CLUSTER = b"""
name = "small"
ranks_per_host = 4
control = 1e-5
inside = {latency = 1e-6, bandwidth = 1e10}
between = {latency = 1e-5, bandwidth = 1e9}
"""

PARSERS: dict[str, tuple[Parser, Callable[[], list[bytes]], tuple[type[Exception], ...]]] = {
    "hostfile": (
        hostfile,
        lambda: [b"node1 slots=4\nnode2 slots=2 # two\n", b"[fe80::1]:3\n# none\nnode-3:1 max_slots=9\n"],
        (hosts.HostError,),
    ),
    "hosts": (as_text(hosts.parse_hosts), lambda: [b"node1:4,node2:4", b"a,b:1,[::1]:2"], (hosts.HostError,)),
    "Slurm's tasks": (
        as_text(lambda text: hosts.allocated_hosts({"SLURM_TASKS_PER_NODE": text})),
        lambda: [b"2(x3),1", b"16"],
        (),
    ),
    "PBS's nodes": (nodefile, lambda: [b"node1\nnode1\nnode2\n"], ()),
    "an mpirun's version": (
        as_text(mpirun.recognise),
        lambda: [b"mpirun (Open MPI) 5.0.11\n", b"HYDRA build details:\n    Version:   5.0.2\n"],
        (),
    ),
    "a cluster": (cluster, lambda: [CLUSTER], (UsageError,)),
    "a flight recorder": (page_of_recorder, recorders, (UsageError,)),
    "a process's state": (
        lambda text, _: processes.parse_stat(text),
        lambda: [Path("/proc/self/stat").read_bytes(), b"17 (a) S (b) T 1" + b" 5" * 48],
        (),
    ),
    "a process's signals": (
        lambda text, _: processes.parse_status(text),
        lambda: [Path("/proc/self/status").read_bytes()],
        (),
    ),
    "a vote": (vote, votes, (MismatchError,)),
    "a message of the store": (store("unpack"), store_messages, (TransportError,)),
    "a request to the store": (store("request"), lambda: store_messages()[:2], (TransportError,)),
}


@pytest.mark.parametrize("what", PARSERS)
def test_it_takes_or_refuses_whatever_comes(what: str, tmp_path: Path) -> None:
    parse, corpus_of, refusals = PARSERS[what]
    corpus = corpus_of()
    for right in corpus:
        parse(right, tmp_path)
    for number in range(FEW_INPUTS.get(what, INPUTS)):
        text = mutated(corpus, number)
        try:
            parse(text, tmp_path)
        except refusals:
            pass
        except Exception as error:
            pytest.fail(f"input {number}, {text[:200]!r}: {type(error).__name__}: {error}")


def test_what_is_packed_for_the_store_is_unpacked() -> None:
    server = pytest.importorskip("ringdp.torch.distributed.server")
    for fields in ([], [b""], [b"a", b"", b"b" * 1000]):
        assert server.unpack(server.pack(fields)) == fields
    with pytest.raises(TransportError, match="no message of it"):
        server.unpack(server.pack([b"abc"])[:-1])


def test_the_store_has_no_other_calls_than_its_own() -> None:
    server = pytest.importorskip("ringdp.torch.distributed.server")
    table = server.Table()
    for what in server.CALLS:
        assert callable(getattr(table, f"_{what}"))
    for what in ("values", "changed", "_init__", ""):
        with pytest.raises(UsageError, match="there is no"):
            table.perform(what, [])
