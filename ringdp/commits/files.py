"""One file of a commit: a header, then the payload. It is whole on the disk under its name, or not there at all.

    offset  bytes
         0      8  "ringdpC1"
         8      8  number of the commit
        16      8  token of the job that wrote it
        24      4  kind
        28      4  the rank that wrote it
        32      8  bytes of the payload
        40      4  CRC-32 of the payload
        44     16  zeros
        60      4  CRC-32 of the 60 bytes before

Who reads one believes nothing: not the owner, not the size, not the place. All that is checked before memory is taken
for the payload.
"""

from __future__ import annotations

import contextlib
import enum
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

MAGIC = b"ringdpC1"
HEADER = struct.Struct("<8sQQIIQI16xI")
PIECE = 1 << 20


class Refused(Exception):
    """A file is not what was written, or not ours; the text names it and says why."""


class Kind(enum.IntEnum):
    """What is in a file."""

    state = 1  # what all ranks have alike
    part = 2  # what one rank has for itself: random numbers, its shard of an optimizer's state
    manifest = 3  # which files belong to the commit; written last


@dataclass(frozen=True)
class Label:
    """What a header says of whose file it is."""

    number: int
    token: int
    kind: Kind
    rank: int

    @property
    def name(self) -> str:
        """The file's, in the folder of its commit."""
        return f"{self.kind.name}-{self.rank}"


@dataclass(frozen=True)
class Contents:
    """What a header says of the payload."""

    size: int
    crc: int


class Sink(Protocol):
    """What payloads are written to."""

    def write(self, data: bytes, /) -> int:
        """All of it."""
        ...

    def flush(self) -> None:
        """Does nothing: whoever has the file does that."""
        ...


Put = Callable[[Sink], object]  # writes a payload


class _Counted:
    """A file that knows how much was written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = self.crc = 0

    def write(self, data: bytes) -> int:
        count = memoryview(data).nbytes
        self.crc = zlib.crc32(data, self.crc)
        self.size += count
        self._file.write(data)
        return count

    def flush(self) -> None:
        pass


# --- writing --------------------------------------------------------------------------------------


def write(folder: Path, label: Label, put: Put) -> Contents:
    """Write what `put` does under the label's name; when this returns, it is on the disk.

    Raises:
        OSError: it could not be written; then nothing is left of it. What `put` raises, likewise.
    """
    path = folder / label.name
    temporary = folder / f".{label.name}.{os.getpid()}"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(bytes(HEADER.size))
            payload = _Counted(file)
            put(payload)
            contents = Contents(payload.size, payload.crc)
            file.seek(0)
            file.write(header(label, contents))
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(folder)
    return contents


def header(label: Label, contents: Contents) -> bytes:
    """The 64 bytes."""
    fields = (MAGIC, label.number, label.token, int(label.kind), label.rank)
    packed = HEADER.pack(*fields, contents.size, contents.crc, 0)
    return packed[:-4] + zlib.crc32(packed[:-4]).to_bytes(4, "little")


def sync_folder(folder: Path) -> None:
    """Names that were made or removed in it are on the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- reading --------------------------------------------------------------------------------------


def contents_of(folder: Path, label: Label, expected: Contents | None = None) -> Contents:
    """What the header says; the payload is not read.

    Raises:
        Refused: there is no such file, it belongs to another user, its header or size is not what was written, or it
            does not say what is `expected`.
    """
    with _opened(folder / label.name) as file:
        return _contents(file, label, expected)


def check(folder: Path, label: Label, expected: Contents | None = None) -> None:
    """Read all of it, in little memory.

    Raises:
        Refused: as `contents_of`; or the payload is not what was written, or not what is `expected`.
    """
    with _opened(folder / label.name) as file:
        contents = _contents(file, label, expected)
        buffer = memoryview(bytearray(min(PIECE, contents.size)))
        _fill(file, (buffer[:n] for n in _pieces(contents.size)), contents)


def read(
    folder: Path, label: Label, expected: Contents | None = None, at_most: int | None = None
) -> bytearray:
    """The payload.

    Raises:
        Refused: as `check`; or it is larger than `at_most` bytes.
    """
    with _opened(folder / label.name) as file:
        contents = _contents(file, label, expected)
        if at_most is not None and contents.size > at_most:
            raise Refused(
                f"{file.name}: {contents.size} bytes are more than such a file can have ({at_most})"
            )
        data = bytearray(contents.size)
        rest, pieces = memoryview(data), []
        for n in _pieces(contents.size):
            pieces.append(rest[:n])
            rest = rest[n:]
        _fill(file, pieces, contents)
        return data


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A regular file of ours. Another kind of file would not be opened by mistake, and a link is not followed."""
    try:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
            yield file
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}") from None


def _contents(file: BinaryIO, label: Label, expected: Contents | None) -> Contents:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise Refused(f"{file.name}: it is no regular file")
    refuse_others(status, file.name)
    packed = file.read(HEADER.size)
    if len(packed) < HEADER.size:
        raise Refused(f"{file.name}: it ends after {len(packed)} bytes, inside the header")
    magic, number, token, kind, rank, size, crc, own_crc = HEADER.unpack(packed)
    if magic != MAGIC:
        raise Refused(f"{file.name}: it does not begin as a file of a commit does")
    if zlib.crc32(packed[:-4]) != own_crc:
        raise Refused(f"{file.name}: its header is not what was written (checksum)")
    if (number, token, kind, rank) != (label.number, label.token, label.kind, label.rank):
        raise Refused(f"{file.name}: it belongs to another commit, rank or job")
    if status.st_size != HEADER.size + size:
        raise Refused(f"{file.name}: {HEADER.size + size} bytes were written, {status.st_size} are there")
    contents = Contents(size, crc)
    if expected is not None and contents != expected:
        raise Refused(f"{file.name}: it is not the file that the manifest names")
    return contents


def refuse_others(status: os.stat_result, name: str) -> None:
    """Raise Refused unless it belongs to the user of this process: objects are unpickled from files."""
    if status.st_uid != os.geteuid():
        raise Refused(f"{name}: it belongs to another user ({status.st_uid}, not {os.geteuid()})")


def _pieces(size: int) -> Iterator[int]:
    for begin in range(0, size, PIECE):
        yield min(PIECE, size - begin)


def _fill(file: BinaryIO, pieces: Iterable[memoryview], contents: Contents) -> None:
    crc = 0
    for piece in pieces:
        if file.readinto(piece) != len(piece):  # type: ignore[attr-defined]
            raise Refused(f"{file.name}: it became shorter while it was read")
        crc = zlib.crc32(piece, crc)
    if crc != contents.crc:
        raise Refused(f"{file.name}: its payload is not what was written (checksum)")
