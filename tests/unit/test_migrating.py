"""The table of names in docs/migrating.md says what is."""

import re
from pathlib import Path

import pytest

pytest.importorskip("torch")

import ringdp.torch as hvd

ROOT = Path(__file__).resolve().parents[2]
TEXT = """
Adasum Average Compression DistributedOptimizer HorovodInternalError HostsUpdatedInterrupt Max Min ProcessSet Product
Sum SyncBatchNorm add_process_set allgather allgather_async allgather_object allreduce allreduce_ allreduce_async
allreduce_async_ alltoall alltoall_async barrier broadcast broadcast_ broadcast_async broadcast_async_ broadcast_object
broadcast_optimizer_state broadcast_parameters ccl_built cross_rank cross_size cuda_built ddl_built elastic
global_process_set gloo_built gloo_enabled grouped_allgather grouped_allgather_async grouped_allreduce
grouped_allreduce_ grouped_allreduce_async grouped_allreduce_async_ grouped_reducescatter grouped_reducescatter_async
init is_homogeneous is_initialized join local_rank local_size mpi_built mpi_enabled mpi_threads_supported nccl_built
poll rank reducescatter reducescatter_async remove_process_set rocm_built shutdown size sparse_allreduce_async
start_timeline stop_timeline synchronize
"""
NAMES = TEXT.split()  # of horovod.torch 0.28.1


def rows() -> list[tuple[list[str], str, str]]:
    text = (ROOT / "docs" / "migrating.md").read_text().split("## Every name")[1].split("\n## ")[0]
    found = []
    for line in text.splitlines():
        if line.startswith("| `"):
            names, works, test = (cell.strip() for cell in line.strip("|").split("|"))
            found.append((re.findall(r"`(\w+)", names), works, test.strip("`")))
    return found


def test_every_name_has_a_row() -> None:
    assert set(NAMES) <= {name for names, _, _ in rows() for name in names}


def test_what_works_is_there_and_what_does_not_is_not() -> None:
    for names, works, _ in rows():
        for name in names:
            if name in NAMES:
                assert hasattr(hvd, name) == (works != "no"), name


def test_the_tests_are_there() -> None:
    for _, works, test in rows():
        if works == "no":
            assert not test
            continue
        path, name = test.split("::")
        assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE), test
