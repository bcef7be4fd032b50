"""Scripts and job scripts written for Horovod: the import hook and the table of variables."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ringdp.compat import finder, variables

IMPORTS = """
import sys
import horovod
import horovod.torch as hvd
import horovod.torch.mpi_ops
from horovod.common.exceptions import HorovodInternalError
from horovod.common.util import num_rank_is_power_2, split_list
from horovod.torch.elastic import TorchState
from horovod.torch.functions import broadcast_object
import ringdp.errors, ringdp.torch
import beside
assert hvd is ringdp.torch and horovod.torch is hvd and horovod.__version__ == "0.28.1"
assert hvd.__spec__.name == "ringdp.torch"
assert HorovodInternalError is ringdp.errors.HorovodInternalError
assert [num_rank_is_power_2(n) for n in range(5)] == [False, True, True, False, True]
assert split_list([1, 2, 3, 4, 5], 2) == [[1, 2, 3], [4, 5]]
print(__name__, sys.argv, __file__, sys.path[0])
"""


def python(*arguments: object, folder: Path, safe_path: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ringdp.compat", *map(str, arguments)]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"} | (
        {"PYTHONSAFEPATH": "1"} if safe_path else {}
    )
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)


def test_the_path_is_left_alone_where_python_leaves_it(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import sys\nprint(sys.path)")
    done = python("script.py", folder=tmp_path, safe_path=True)
    env = os.environ | {"PYTHONSAFEPATH": "1"}
    plain = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == plain.stdout, done.stderr


def test_a_script_runs_as_python_runs_it(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "beside.py").touch()
    (scripts / "script.py").write_text(IMPORTS)
    done = python("scripts/script.py", "--lr", "1", folder=tmp_path)
    expected = f"__main__ ['scripts/script.py', '--lr', '1'] scripts/script.py {scripts.resolve()}\n"
    assert done.stdout == expected, done.stderr
    done = python("-m", "script", "--lr", "1", folder=scripts)
    assert done.stdout.startswith(f"__main__ ['{scripts / 'script.py'}', '--lr', '1']"), done.stderr


@pytest.mark.parametrize("module", [*finder.MISSING, "horovod.spark.torch", "horovod.nothing"])
def test_what_is_not_there_says_so_by_name(module: str) -> None:
    with pytest.raises(ImportError, match=rf"^{module} is not in ringdp: ..."):
        finder.HorovodFinder().find_spec(module, None)


def test_other_modules_are_left_alone() -> None:
    assert finder.HorovodFinder().find_spec("horovodx", None) is None
    assert finder.HorovodFinder().find_spec("json", None) is None


def test_exit_code_and_a_script_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("raise SystemExit(7)")
    assert python("script.py", folder=tmp_path).returncode == 7
    done = python("other.py", folder=tmp_path)
    assert done.returncode == 1 and "there is no file other.py" in done.stderr


def test_ours_wins_over_horovods() -> None:
    environment = {"HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "90"}
    assert variables.honour(environment) == [] and environment["RINGDP_TIMEOUT"] == "90"
    environment = {"HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "90", "RINGDP_TIMEOUT": "30"}
    assert variables.honour(environment) == [] and environment["RINGDP_TIMEOUT"] == "30"


def test_the_time_until_a_stall_is_reported() -> None:
    environment = {"HOROVOD_STALL_CHECK_TIME_SECONDS": "20"}
    assert variables.honour(environment) == [] and environment["RINGDP_REPORT_AFTER"] == "20"


def test_the_fusion_threshold_is_the_size_of_a_bucket() -> None:
    environment = {"HOROVOD_FUSION_THRESHOLD": "67108864"}
    assert variables.honour(environment) == [] and environment["RINGDP_BUCKET_BYTES"] == "67108864"


def test_the_timeline() -> None:
    environment = {"HOROVOD_TIMELINE": "trace.json", "HOROVOD_TIMELINE_MARK_CYCLES": "1"}
    (line,) = variables.honour(environment)
    assert (
        line
        == "HOROVOD_TIMELINE_MARK_CYCLES is ignored: there are no cycles: a bucket is exchanged as soon as it is full"
    )
    assert environment["RINGDP_TIMELINE"] == "trace.json"
    environment = {"HOROVOD_TIMELINE": "DYNAMIC"}
    (line,) = variables.honour(environment)
    assert "start_timeline() may be called without it" in line and "RINGDP_TIMELINE" not in environment


@pytest.mark.parametrize("value", ["0", "soon"])
def test_no_end_is_not_to_be_had(value: str) -> None:
    environment = {"HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": value}
    (line,) = variables.honour(environment)
    assert line.startswith("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS is ignored: ")
    assert "RINGDP_TIMEOUT" not in environment


def test_every_other_one_gets_a_line() -> None:
    environment = {
        "HOROVOD_FUSION_THRESHOLD": "0",
        "HOROVOD_AUTOTUNE_LOG": "x",
        "HOROVOD_NEW": "1",
        "HOME": "/",
    }
    assert variables.honour(environment) == [
        "HOROVOD_AUTOTUNE_LOG is ignored: nothing is tuned while a job runs: the algorithm is chosen from the "
        "profile (RINGDP_PROFILE)",
        "HOROVOD_FUSION_THRESHOLD is ignored: it is no number above 0; RINGDP_BUCKET_BYTES holds",
        "HOROVOD_NEW is ignored: ringdp does not know it",
    ]


def test_importing_the_hook_installs_nothing() -> None:
    code = "import sys, ringdp.compat; print(any('Horovod' in type(f).__name__ for f in sys.meta_path))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert done.stdout == "False\n", done.stderr


def test_no_value_is_repeated() -> None:
    (line,) = variables.honour({"HOROVOD_SECRET_KEY": "hunter2"})
    assert line.startswith("HOROVOD_SECRET_KEY is ignored: ") and "hunter2" not in line
