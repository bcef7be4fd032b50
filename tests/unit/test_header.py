"""The 64-byte header (csrc/agree/header.h): its layout on the wire, and each difference in words."""

from __future__ import annotations

import struct

import pytest

from ringdp import _core
from ringdp.constants import Dtype, ReduceOp

a = _core.agreement

FIELDS = {  # as they lie on the wire, with a value for each that no other has
    "magic": ("H", 0x5244),
    "version": ("H", 1),
    "generation": ("I", 3),
    "process_set": ("I", 4),
    "root": ("i", 5),
    "digest": ("Q", 2**64 - 6),
    "sequence": ("Q", 2**63 + 7),
    "count": ("Q", 2**40 + 8),
    "scale": ("Q", 9),
    "bucket": ("I", 10),
    "part": ("I", 1),
    "kind": ("B", 2),
    "dtype": ("B", Dtype.float32),
    "op": ("B", ReduceOp.Sum),
    "flags": ("B", 2),
}


def header(**changed: int) -> a.Header:
    h = a.Header()
    for field, (_, value) in FIELDS.items():
        setattr(h, field, changed.get(field, value))
    return h


def test_it_is_64_bytes_and_its_layout_is_fixed() -> None:
    layout = "<" + "".join(code for code, _ in FIELDS.values()) + "I"
    wire = header().wire()
    assert len(wire) == struct.calcsize(layout) == 64
    assert struct.unpack(layout, wire) == (*(value for _, value in FIELDS.values()), 0)


def test_equal_headers_do_not_differ() -> None:
    assert a.difference(header(), header(), 3) == ""


@pytest.mark.parametrize(
    ("field", "theirs", "text"),
    [
        ("version", 2, "wire version 1 here, 2 on rank 6"),
        ("generation", 4, "generation 3 here, 4 on rank 6"),
        ("process_set", 0, "process set 4 here, 0 on rank 6"),
        ("root", -1, "root 5 here, -1 on rank 6"),
        ("digest", 12, f"digest {2**64 - 6} here, 12 on rank 6"),
        ("sequence", 2**63 + 8, f"sequence {2**63 + 7} here, {2**63 + 8} on rank 6"),
        ("count", 2**40 + 9, f"count {2**40 + 8} here, {2**40 + 9} on rank 6"),
        ("scale", 10, "scale 9 here, 10 on rank 6"),
        ("bucket", 11, "bucket 10 here, 11 on rank 6"),
        ("part", 0, "part 1 here, 0 on rank 6"),
        ("kind", 0, "kind 2 here, 0 on rank 6"),
        ("dtype", Dtype.bfloat16, "dtype float32 here, bfloat16 on rank 6"),
        ("dtype", 200, "dtype float32 here, unknown 200 on rank 6"),
        ("op", ReduceOp.Max, "operation Sum here, Max on rank 6"),
        ("op", 99, "operation Sum here, unknown 99 on rank 6"),
        ("flags", 0, "checksums (RINGDP_CHECKSUM) on here, off on rank 6"),
        ("flags", 6, "place in host memory here, on a GPU on rank 6"),
    ],
)
def test_a_difference_in_any_field_is_said_in_words(field: str, theirs: int, text: str) -> None:
    assert a.difference(header(), header(**{field: theirs}), 6) == text


def test_several_differences_are_all_said() -> None:
    text = a.difference(header(), header(count=1, root=0), 2)
    assert text == f"count {2**40 + 8} here, 1 on rank 2; root 5 here, 0 on rank 2"


def test_what_is_no_header_is_said_to_be_none() -> None:
    assert a.difference(header(), header(magic=0), 7) == "the message from rank 7 is no header"


def test_poison_is_a_flag_and_no_difference() -> None:
    poison = header(flags=3)
    assert poison.poisoned() and not header().poisoned()
    assert a.difference(header(), poison, 1) == ""
