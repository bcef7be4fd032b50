"""ringdp.launch: what made-up environments, control groups and numbers of cores are taken to mean."""

import os

import pytest

from ringdp import launch, mpi

OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_RANK": "3",
    "PMIX_NAMESPACE": "prterun-node1-1@1",
}
HYDRA = {
    "PMI_SIZE": "4",
    "PMI_RANK": "2",
    "PMI_FD": "7",
    "HYDI_CONTROL_FD": "9",
    "MPI_LOCALNRANKS": "2",
    "MPI_LOCALRANKID": "0",
}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}
BATCH = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("tasks", "node", "size"),
    [
        ("3", 0, 3),
        ("2(x3),1", 0, 2),
        ("2(x3),1", 2, 2),
        ("2(x3),1", 3, 1),
        ("4,2", 1, 2),
        ("2(x3),1", 4, None),
    ],
)
def test_ranks_of_a_node_of_slurm(tasks, node, size):
    found = launch.launcher_traces({**SRUN, "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_NODEID": str(node)})
    assert found.local_size == size
    assert (
        launch.launcher_traces({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "2(y", "SLURM_NODEID": "0"}).local_size
        is None
    )


def test_each_launcher_is_recognised():
    assert launch.launcher_traces({}) is None
    assert launch.launcher_traces(OPEN_MPI) == launch.Launch(
        "Open MPI's mpirun", "OMPI_COMM_WORLD_SIZE=4", 4, 3, 1, 2
    )
    assert launch.launcher_traces(HYDRA) == launch.Launch("MPICH's mpiexec", "PMI_SIZE=4", 4, 2, 0, 2)
    assert launch.launcher_traces(SRUN) == launch.Launch("Slurm's srun", "SLURM_STEP_NUM_TASKS=3", 3, 1, 1)


def test_srun_with_pmi_or_pmix_gives_the_size():
    pmix = launch.launcher_traces({**SRUN, "PMIX_RANK": "1", "PMIX_NAMESPACE": "slurm.pmix.7.0"})
    assert (pmix.launcher, pmix.size, pmix.rank) == ("Slurm's srun (with PMIx)", 3, 1)
    pmi = launch.launcher_traces({**SRUN, "PMI_SIZE": "3", "PMI_RANK": "1"})
    assert (pmi.launcher, pmi.size, pmi.rank, pmi.local_rank) == ("Slurm's srun (with PMI)", 3, 1, 1)


def test_pmix_alone_knows_a_rank_but_no_size():
    traces = launch.launcher_traces({"PMIX_RANK": "2", "PMIX_NAMESPACE": "x"})
    assert (traces.size, traces.rank) == (None, 2)
    assert traces.means_several
    assert not launch.launcher_traces({"PMIX_RANK": "0", "PMIX_NAMESPACE": "x"}).means_several
    assert launch.launcher_traces({"PMIX_RANK": "2"}) is None  # a left-over, no namespace


def test_the_innermost_launcher_counts():
    helper = {
        **SRUN,
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_PROCID": "0",
    }  # mpirun starts one helper a host by srun
    assert launch.launcher_traces({**helper, **OPEN_MPI}).launcher == "Open MPI's mpirun"
    assert launch.launcher_traces({**helper, **HYDRA}) == launch.launcher_traces(HYDRA)


def test_an_allocation_or_a_shell_in_it_is_no_launcher():
    assert launch.launcher_traces(BATCH) is None
    shell = {**SRUN, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "8"}  # salloc's interactive step
    assert launch.launcher_traces(shell) is None


def test_nonsense_is_no_trace():
    assert launch.launcher_traces({"PMI_SIZE": "many", "OMPI_COMM_WORLD_SIZE": ""}) is None


@pytest.mark.parametrize(
    ("environ", "size", "expected"),
    [
        (OPEN_MPI, 1, True),
        (OPEN_MPI, 4, False),
        ({**OPEN_MPI, "RINGDP_ALLOW_SINGLETON": "1"}, 1, False),
        ({**OPEN_MPI, "RINGDP_ALLOW_SINGLETON": "0"}, 1, True),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, 1, False),
        ({"PMIX_RANK": "0", "PMIX_NAMESPACE": "x"}, 1, False),
        ({"PMIX_RANK": "1", "PMIX_NAMESPACE": "x"}, 1, True),
        (SRUN, 1, True),
        (BATCH, 1, False),
        ({}, 1, False),
    ],
)
def test_silent_singletons(environ, size, expected):
    assert launch.is_silent_singleton(launch.launcher_traces(environ), size, environ) is expected


def test_the_singleton_error_names_launcher_mpi_and_remedy():
    library = "Open MPI v5.0.11, package: Open MPI user@host, ident: 5.0.11, Sep 16, 2026\0"
    text = launch.singleton_error(launch.launcher_traces(HYDRA), library)
    assert text.startswith(
        "MPICH's mpiexec started 4 processes (PMI_SIZE=4), but to MPI this one is alone (size 1)"
    )
    assert "the MPI in use (Open MPI v5.0.11) do not fit together" in text
    assert "`ringdp run -n 4 script.py`" in text
    assert "RINGDP_ALLOW_SINGLETON=1" in text
    assert "srun" not in text and "\n" not in text
    text = launch.singleton_error(
        launch.launcher_traces(SRUN), "MPICH Version:      5.0.2\nMPICH Release date: x"
    )
    assert text.startswith("Slurm's srun started 3 processes (SLURM_STEP_NUM_TASKS=3)")
    assert "(MPICH Version: 5.0.2)" in text
    assert "`srun --mpi=pmix` for Open MPI or `srun --mpi=pmi2` for MPICH" in text


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_cgroup_v2_takes_the_smallest_limit_on_the_way_up(tmp_path):
    write(tmp_path / "job" / "cpu.max", "350000 100000\n")
    write(tmp_path / "job" / "step" / "cpu.max", "max 100000\n")
    assert launch.cgroup_cores("0::/job/step\n", tmp_path) == 3.5
    write(tmp_path / "job" / "step" / "cpu.max", "150000 100000\n")
    assert launch.cgroup_cores("0::/job/step\n", tmp_path) == 1.5
    assert launch.cgroup_cores("0::/other\n", tmp_path) is None


def test_cgroup_v2_in_a_container_is_found_at_the_mount(tmp_path):
    write(tmp_path / "cpu.max", "200000 100000\n")
    assert launch.cgroup_cores("0::/../../docker/abc\n", tmp_path) == 2
    assert launch.cgroup_cores("0::/docker/abc\n", tmp_path) == 2


def test_cgroup_v1(tmp_path):
    write(tmp_path / "cpu,cpuacct" / "slurm" / "cpu.cfs_quota_us", "400000\n")
    write(tmp_path / "cpu,cpuacct" / "slurm" / "cpu.cfs_period_us", "100000\n")
    text = "5:memory:/slurm\n4:cpu,cpuacct:/slurm/job\n0::/\n"
    assert launch.cgroup_cores(text, tmp_path) == 4
    write(tmp_path / "cpu,cpuacct" / "slurm" / "cpu.cfs_quota_us", "-1\n")
    assert launch.cgroup_cores(text, tmp_path) is None


def test_cores_respect_affinity_and_limit(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    for limit, mine, all_of_them in ((None, 8, 64), (2.5, 2, 2), (0.5, 1, 1), (100.0, 8, 64)):
        monkeypatch.setattr(launch, "cgroup_cores", lambda limit=limit: limit)
        assert launch.cores_of_process() == mine
        assert launch.cores_of_host() == all_of_them


def test_threads(monkeypatch):
    monkeypatch.setattr(launch, "cores_of_process", lambda: 6)
    for text, threads in (("3", 3), ("4,2", 4), ("", 6), ("0", 6), ("all", 6)):
        assert launch.threads_of_process({"OMP_NUM_THREADS": text}) == threads
    assert launch.threads_of_process({}) == 6


@pytest.mark.parametrize(
    ("local_size", "cores", "bound", "threads", "expected"),
    [
        (1, 8, 8, 8, None),
        (2, 8, 8, 4, None),
        (2, 2, 1, 1, None),  # bound, but to its whole share
        (
            2,
            8,
            8,
            8,
            "2 ranks × 8 threads on 8 cores: set OMP_NUM_THREADS=4, or start with `ringdp run`, which does",
        ),
        (4, 2, 2, 1, "4 ranks × 1 threads on 2 cores: start at most 2 ranks on a host (-n)"),
        (2, 8, 1, 4, "a rank is bound to 1 of 8 cores but has 4 threads: "),
        (2, 8, 1, 1, "a rank is bound to 1 of 8 cores, its share is 4: "),
    ],
)
def test_warning_with_remedy(local_size, cores, bound, threads, expected):
    text = launch.oversubscription_warning(local_size, cores, bound, threads)
    if expected is None:
        assert text is None
    else:
        assert text.startswith(expected) and "\n" not in text
        assert ("--bind-to none" in text) == ("bound" in expected)


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        (OPEN_MPI, "1"),
        (OPEN_MPI | {"OMPI_MCA_mpi_ft_enable": "0"}, "0"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, None),
        ({}, None),
    ],
    ids=["several hosts", "as the user says", "one host", "alone"],
)
def test_open_mpi_reports_lost_ranks_where_there_are_several_hosts(environ, says):
    environ = dict(environ)
    mpi._let_lost_ranks_be_named(environ)
    assert environ.get("OMPI_MCA_mpi_ft_enable") == says
