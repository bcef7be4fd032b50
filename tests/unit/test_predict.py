"""`ringdp bench --table` and `--write-profile`: arithmetic, arguments, and whole runs."""

import json
import os
import subprocess
import sys

import pytest

from ringdp import _core, link
from ringdp.cli import bench, mpirun, predict


def test_a_line_says_how_far_the_choice_is_from_the_best():
    row = predict.line_of(64, {"ring": 40, "tree": 50}, {"ring": 60, "tree": 40}, "ring")
    assert row["best"] == "tree" and row["distance"] == pytest.approx(1.5)
    assert predict.text_of(row).split() == ["64", "40.0", "60.0", "50.0", "40.0", "ring", "1.50", "(tree)"]
    row = predict.line_of(64, {"ring": 40, "tree": 50}, {"ring": 30, "tree": 40}, "ring")
    assert predict.text_of(row).endswith("ring 1.00")


def test_these_arguments_of_bench_are_for_the_table():
    assert predict.wanted(["--table"]) and predict.wanted(["--write-profile=x"])
    assert not predict.wanted(["allreduce", "-b", "4"])


@pytest.mark.parametrize("words", ["-b 8 -e 4", "-f 1", "-n 0", "--rounds 0"])
def test_arguments_that_make_no_sense(words, capsys):
    with pytest.raises(SystemExit) as end:
        bench.main(["--table", *words.split()])
    assert end.value.code == 2 and "give -b not more than -e" in capsys.readouterr().err


def test_a_link_that_is_far_from_the_profile_gets_one_line():
    assumed = _core.profile("ethernet-10")
    assert link.warning(60e-6, 0.6e9, assumed) is None
    text = link.warning(60e-6, 0.1e9, assumed)
    assert "bandwidth 0.1 GB/s, in the profile 1.19" in text and "latency" not in text
    assert "latency 500 us, in the profile 30" in link.warning(500e-6, 1e9, assumed)


def whole_run(*words, **variables):
    try:
        mpirun.find_mpirun(os.environ)
    except mpirun.LaunchError as error:
        pytest.skip(str(error))
    command = [sys.executable, "-m", "ringdp", "bench", *words, "--ranks", "2"]
    environ = {n: v for n, v in os.environ.items() if not n.startswith(("OMPI_COMM", "PMI", "SLURM"))}
    done = subprocess.run(
        command, env=environ | variables, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("sharing", ["auto", "off"])
def test_a_table_of_what_can_run_here_by_a_profile_that_was_measured_here(sharing, tmp_path):
    measured, table = tmp_path / "here.profile", tmp_path / "table.json"
    text = whole_run("--write-profile", str(measured), RINGDP_SHARED_MEMORY=sharing)
    profile = _core.profile(str(measured))
    assert f"RINGDP_PROFILE={measured} ({profile.digest:016x})" in text and "# net: not measured" in text
    assert profile.name == "here" and profile.net.latency == _core.profile("ethernet-10").net.latency
    assert profile.host.bandwidth != _core.profile("ethernet-10").host.bandwidth

    words = ["--table", "-e", "2K", "-n", "3", "--rounds", "1", "--json", str(table)]
    text = whole_run(*words, RINGDP_PROFILE=str(measured), RINGDP_SHARED_MEMORY=sharing)
    found = json.loads(table.read_text())
    assert f"profile {found['profile']}, ranks 2, hosts 1" in text
    assert found["profile"] == f"here ({profile.digest:016x})"
    for row in found["rows"]:
        wanted = _core.costs(2, 1, 2, sharing == "auto", row["size"], 8, profile)
        assert row["predicted_us"] == pytest.approx({name: seconds * 1e6 for name, seconds in wanted})
        assert row["measured_us"].keys() == row["predicted_us"].keys()
        assert row["chosen"] == _core.choose(2, 1, 2, sharing == "auto", row["size"], 8, profile)
    assert [row["size"] for row in found["rows"]] == [4, 32, 256, 2048]
