"""What the MPI unit makes of what an MPI says of GPUs: it is compiled against MPIs that have nothing else to say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from standin.build import ROOT, compiler

UNIT = ROOT / "csrc" / "transport" / "mpi" / "unit.cc"
YES, NO, NO_WORD = 1, 0, -1

# All that the unit calls; none of it is called here but the version.
HEADER = """
#define MPI_MAX_ERROR_STRING 512
#define MPI_MAX_LIBRARY_VERSION_STRING 8192
typedef int MPI_Comm, MPI_Group, MPI_Request, MPI_Datatype;
typedef struct { int MPI_SOURCE; } MPI_Status;
enum { MPI_SUCCESS, MPI_ERR_ARG = 12, MPI_ERRORS_RETURN = 1, MPI_TAG_UB, MPI_BYTE, MPI_COMM_WORLD, MPI_ANY_SOURCE };
enum { MPI_GROUP_NULL, MPI_GROUP_EMPTY, MPI_REQUEST_NULL = -2, MPI_UNDEFINED = -1 };
#ifdef __cplusplus
extern "C" {
#endif
int MPI_Error_string(int, char*, int*);
int MPI_Comm_set_errhandler(MPI_Comm, int);
int MPI_Comm_rank(MPI_Comm, int*);
int MPI_Comm_size(MPI_Comm, int*);
int MPI_Comm_group(MPI_Comm, MPI_Group*);
int MPI_Group_size(MPI_Group, int*);
int MPI_Group_translate_ranks(MPI_Group, int, const int*, MPI_Group, int*);
int MPI_Group_free(MPI_Group*);
int MPI_Comm_get_attr(MPI_Comm, int, void*, int*);
int MPI_Isend(const void*, int, MPI_Datatype, int, int, MPI_Comm, MPI_Request*);
int MPI_Irecv(void*, int, MPI_Datatype, int, int, MPI_Comm, MPI_Request*);
int MPI_Test(MPI_Request*, int*, MPI_Status*);
int MPI_Iprobe(int, int, MPI_Comm, int*, MPI_Status*);
int MPI_Get_count(const MPI_Status*, MPI_Datatype, int*);
int MPI_Cancel(MPI_Request*);
int MPI_Request_free(MPI_Request*);
int MPI_Abort(MPI_Comm, int);
int MPI_Get_library_version(char*, int*);
#ifdef __cplusplus
}
#endif
"""
LIBRARY = """
#include <string.h>
#include "mpi.h"
int MPI_Error_string(int e, char* s, int* n) { return 0; }
int MPI_Comm_set_errhandler(MPI_Comm c, int h) { return 0; }
int MPI_Comm_rank(MPI_Comm c, int* r) { return 0; }
int MPI_Comm_size(MPI_Comm c, int* r) { return 0; }
int MPI_Comm_group(MPI_Comm c, MPI_Group* g) { return 0; }
int MPI_Group_size(MPI_Group g, int* n) { return 0; }
int MPI_Group_translate_ranks(MPI_Group g, int n, const int* a, MPI_Group h, int* b) { return 0; }
int MPI_Group_free(MPI_Group* g) { return 0; }
int MPI_Comm_get_attr(MPI_Comm c, int k, void* v, int* f) { return 0; }
int MPI_Isend(const void* d, int n, MPI_Datatype t, int p, int g, MPI_Comm c, MPI_Request* r) { return 0; }
int MPI_Irecv(void* d, int n, MPI_Datatype t, int p, int g, MPI_Comm c, MPI_Request* r) { return 0; }
int MPI_Test(MPI_Request* r, int* f, MPI_Status* s) { return 0; }
int MPI_Iprobe(int p, int g, MPI_Comm c, int* f, MPI_Status* s) { return 0; }
int MPI_Get_count(const MPI_Status* s, MPI_Datatype t, int* n) { return 0; }
int MPI_Cancel(MPI_Request* r) { return 0; }
int MPI_Request_free(MPI_Request* r) { return 0; }
int MPI_Abort(MPI_Comm c, int e) { return 0; }
int MPI_Get_library_version(char* s, int* n) { strcpy(s, VERSION); return *n = strlen(VERSION), 0; }
"""
OPEN_MPI = "int MPIX_Query_cuda_support(void) {{ return {0}; }}\n"
MPICH = "int MPIX_GPU_query_support(int type, int* is) {{ return *is = type == {0}, {1}; }}\n"
ASK = """
import ctypes, sys
unit = ctypes.CDLL(sys.argv[1])
unit.ringdp_mpi_table.restype = ctypes.POINTER(ctypes.c_void_p * 16)
takes = ctypes.CFUNCTYPE(ctypes.c_int)(unit.ringdp_mpi_table().contents[15])
print(takes())
"""


def unit_for(folder: Path, library_of_test: str, version: str = "an MPI") -> Path:
    """The MPI unit, compiled against an MPI with this source."""
    (folder / "mpi.h").write_text(HEADER)
    (folder / "mpi.c").write_text(library_of_test)
    words = [*compiler(), "-shared", "-fPIC", f"-I{folder}", f"-I{ROOT / 'csrc'}"]
    library, unit = folder / "libmpi_of_test.so", folder / "unit.so"
    made = [
        [*words, "-x", "c", f'-DVERSION="{version}"', str(folder / "mpi.c"), "-o", str(library)],
        [
            *words,
            "-std=c++17",
            "-w",
            str(UNIT),
            "-o",
            str(unit),
            str(library),
            f"-Wl,-rpath,{folder}",
            "-ldl",
        ],
    ]
    for command in made:
        subprocess.run(command, check=True, timeout=120)
    return unit


def answer(folder: Path, extensions: str, version: str = "an MPI", **environ: str) -> int:
    unit = unit_for(folder, LIBRARY + extensions, version)
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(unit)],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize(
    ("extensions", "wanted"),
    [
        ("", NO_WORD),
        (OPEN_MPI.format(1), YES),
        (OPEN_MPI.format(0), NO),
        (MPICH.format(0, "MPI_SUCCESS"), YES),
        (MPICH.format(2, "MPI_SUCCESS"), NO),  # GPUs of another maker
        (MPICH.format(0, "MPI_ERR_ARG"), NO),
        (
            MPICH.format(0, "MPI_SUCCESS") + OPEN_MPI.format(0),
            YES,
        ),  # the one that looks at MPIR_CVAR_ENABLE_GPU
    ],
)
def test_what_it_says(tmp_path: Path, extensions: str, wanted: int) -> None:
    assert answer(tmp_path, extensions) == wanted


@pytest.mark.parametrize(("enabled", "wanted"), [("", NO), ("0", NO), ("1", YES)])
def test_crays_says_yes_only_where_it_is_enabled(tmp_path: Path, enabled: str, wanted: int) -> None:
    says_yes, version = MPICH.format(0, "MPI_SUCCESS"), "MPI VERSION : CRAY MPICH version 8.1.30.8"
    assert answer(tmp_path, says_yes, version, MPICH_GPU_SUPPORT_ENABLED=enabled) == wanted


def test_crays_that_has_no_function_is_not_tried(tmp_path: Path) -> None:
    version = "MPI VERSION : CRAY MPICH version 8.1.4"
    assert answer(tmp_path, "", version, MPICH_GPU_SUPPORT_ENABLED="1") == NO_WORD
