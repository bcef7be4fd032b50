"""The MPI unit over an MPI whose calls fail."""

from __future__ import annotations

import ctypes
from pathlib import Path

from gpu.test_mpi_says import LIBRARY, unit_for

# As MPI does it: a request that fails is freed, and its handle is that of none.
FAILS = "int MPI_Test(MPI_Request* r, int* f, MPI_Status* s) { *f = 1; *r = MPI_REQUEST_NULL; return MPI_ERR_ARG; }\n"
WORKS = "int MPI_Test(MPI_Request* r, int* f, MPI_Status* s) { return 0; }\n"
OPEN, RECEIVE, TEST, PENDING, WORDS = 2, 8, 9, 17, 18  # of the table


def test_a_request_that_has_failed_is_not_there_any_more_but_its_memory_is_in_use(tmp_path: Path) -> None:
    """MPI may give it out again at once: to test it once more would free another message's."""
    assert WORKS in LIBRARY
    unit = ctypes.CDLL(str(unit_for(tmp_path, LIBRARY.replace(WORKS, FAILS))))
    unit.ringdp_mpi_table.restype = ctypes.POINTER(ctypes.c_void_p * WORDS)
    table = unit.ringdp_mpi_table().contents
    pointer, number, word = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64
    channel = ctypes.CFUNCTYPE(pointer, word)(table[OPEN])(0)
    request, received, memory = word(), ctypes.c_size_t(), ctypes.create_string_buffer(8)
    receive = ctypes.CFUNCTYPE(number, pointer, number, number, pointer, ctypes.c_size_t, pointer)(
        table[RECEIVE]
    )
    assert receive(channel, 0, 0, ctypes.addressof(memory), 8, ctypes.addressof(request)) == 0
    assert request.value != 0
    test = ctypes.CFUNCTYPE(number, pointer, pointer, pointer)(table[TEST])
    assert test(channel, ctypes.addressof(request), ctypes.addressof(received)) < 0
    assert request.value == 0
    assert ctypes.CFUNCTYPE(ctypes.c_int64, pointer)(table[PENDING])(channel) == 1
