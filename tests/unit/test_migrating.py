"""The table of names in docs/migrating.md says what is."""

import inspect
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


def test_what_becomes_better_is_shown_by_tests_that_are_there() -> None:
    text = (ROOT / "docs" / "migrating.md").read_text()
    table = text.split("## What becomes better")[1].split("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")][1:]
    shown = [re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", line.rsplit("|", 2)[1]) for line in lines]
    assert len(shown) > 15 and [] in shown and shown.count([]) == 1  # what an idle engine costs is measured
    for path, name in (test for tests in shown for test in tests):
        assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE), name


# Positional parameters and defaults of horovod.torch 0.28.1, where there are any.
HOW = "op=None, prescale_factor=1.0, postscale_factor=1.0, process_set=global_process_set"
SCATTER = "op=Average, process_set=global_process_set, prescale_factor=1.0, postscale_factor=1.0"
SET = "process_set=global_process_set"
SIGNATURES = {
    "DistributedOptimizer": "optimizer, named_parameters=None, compression=Compression.none, "
    "backward_passes_per_step=1, op=Average, gradient_predivide_factor=1.0, num_groups=0, groups=None, "
    f"sparse_as_dense=False, {SET}",
    "ProcessSet": "ranks_or_comm",
    "SyncBatchNorm": "num_features, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True",
    "add_process_set": "process_set",
    "remove_process_set": "process_set",
    "allgather": f"tensor, name=None, {SET}",
    "allgather_async": f"tensor, name=None, {SET}",
    "allgather_object": "obj, name=None",
    "allreduce": f"tensor, average=None, name=None, compression=Compression.none, {HOW}",
    "allreduce_": f"tensor, average=None, name=None, {HOW}",
    "allreduce_async": f"tensor, average=None, name=None, {HOW}",
    "allreduce_async_": f"tensor, average=None, name=None, {HOW}",
    "alltoall": f"tensor, splits=None, name=None, {SET}",
    "alltoall_async": f"tensor, splits=None, name=None, {SET}",
    "barrier": SET,
    "broadcast": f"tensor, root_rank, name=None, {SET}",
    "broadcast_": f"tensor, root_rank, name=None, {SET}",
    "broadcast_async": f"tensor, root_rank, name=None, {SET}",
    "broadcast_async_": f"tensor, root_rank, name=None, {SET}",
    "broadcast_object": f"obj, root_rank=0, name=None, {SET}",
    "broadcast_optimizer_state": "optimizer, root_rank, model=None",
    "broadcast_parameters": "params, root_rank",
    "grouped_allgather": f"tensors, name=None, {SET}",
    "grouped_allgather_async": f"tensors, name=None, {SET}",
    "grouped_allreduce": f"tensors, average=None, name=None, compression=Compression.none, {HOW}",
    "grouped_allreduce_": f"tensors, average=None, name=None, {HOW}",
    "grouped_allreduce_async": f"tensors, average=None, name=None, {HOW}",
    "grouped_allreduce_async_": f"tensors, average=None, name=None, {HOW}",
    "grouped_reducescatter": f"tensors, name=None, compression=Compression.none, {SCATTER}",
    "grouped_reducescatter_async": f"tensors, name=None, {SCATTER}",
    "join": "device=-1",
    "poll": "handle",
    "reducescatter": f"tensor, name=None, compression=Compression.none, {SCATTER}",
    "reducescatter_async": f"tensor, name=None, {SCATTER}",
    "sparse_allreduce_async": f"tensor, name, op, {SET}",
    "start_timeline": "file_path, mark_cycles=False",
    "synchronize": "handle",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_arguments_are_horovods(name: str) -> None:
    """In order, with their defaults; where theirs must be given, ours may have one. Further ones may follow."""
    ours = list(inspect.signature(getattr(hvd, name)).parameters.values())
    for text, parameter in zip(SIGNATURES[name].split(", "), ours, strict=False):
        theirs, _, default = text.partition("=")
        assert parameter.name == theirs
        assert parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        if default:
            assert parameter.default == eval(default, vars(hvd)), theirs
    wanted = len(SIGNATURES[name].split(", "))
    assert len(ours) >= wanted
    assert all(p.default is not p.empty for p in ours[wanted:])


@pytest.mark.parametrize("framework", ["TensorFlow", "Keras"])
def test_the_tests_of_other_frameworks_are_there(framework: str) -> None:
    text = (ROOT / "docs" / "migrating.md").read_text().split(f"\n## {framework}")[1].split("\n## ")[0]
    shown = re.findall(rf"`(tests/frameworks/{framework.lower()}/\S+)::(\w+)`", text)
    assert len(shown) == sum(line.startswith("| `") for line in text.splitlines())
    for path, name in shown:
        assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE), name
