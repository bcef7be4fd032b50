"""`make gpu-check` over the stand-ins: all of it runs, what is wrong there is reported, and no report of it counts."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import standin
from driver.environ import environment
from gpu_check import report, results
from gpu_check.mpi import run_job
from gpu_check.parts import PARTS

from ringdp import _core

ROOT = Path(__file__).resolve().parent.parent.parent
GPU_CHECK = ROOT / "tests" / "gpu_check"

if not _core.gpu.kernels.built():
    pytest.skip("there was no nvcc when ringdp was built (RINGDP_NVCC names one)", allow_module_level=True)

# In the place of NVIDIA's: runs the program, and says what the tool would.
SANITIZER = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do tool=$2; shift 2; done
"$@" || exit 86
echo "========= ${SUMMARY:-ERROR SUMMARY: 0 errors}"
"""


SMI = """#!/bin/sh
echo "stand-in, 0, Disabled, [N/A], 1, 16"
"""


class Ended:
    def __init__(self, done: subprocess.CompletedProcess[str], folder: Path) -> None:
        self.code, self.said = done.returncode, done.stdout + done.stderr
        self.reports = report.read_all(folder)

    @property
    def report(self) -> dict[str, Any]:
        (only,) = self.reports.values()
        return only

    def part(self, name: str) -> dict[str, Any]:
        return next(part for part in self.report["parts"] if part["name"] == name)

    def result(self, part: str, name: str) -> dict[str, Any]:
        return next(result for result in self.part(part)["results"] if result["name"] == name)


def check(folder: Path, *options: str, gpus: int = 1, limit: float = 120, **environ: str) -> Ended:
    words = [sys.executable, str(GPU_CHECK), "--quick", "--report", str(folder), *options]
    if gpus:
        words += ["--stand-ins", str(gpus)]
    env = {**environment(), **environ}
    return Ended(subprocess.run(words, env=env, capture_output=True, text=True, timeout=limit), folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """One run of all parts, on two GPUs."""
    folder = tmp_path_factory.mktemp("whole")
    for name, text in (("compute-sanitizer", SANITIZER), ("nvidia-smi", SMI)):
        program(folder / "bin" / name, text)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return check(folder / "reports", gpus=2, limit=300, PATH=path)


def program(file: Path, text: str) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)


def test_every_part_runs(whole: Ended) -> None:
    assert whole.code == 0, whole.said
    states = {part["name"]: part["state"] for part in whole.report["parts"]}
    torch, suite, mpi = (states.pop(name) for name in ("torch", "torch suite", "mpi"))
    assert torch == "skipped" or has_cuda()
    assert suite == ("ok" if has_torch() else "skipped")
    assert mpi == "skipped"  # on a machine without a GPU it says no
    assert states == {name: "ok" for name in PARTS if name != "mpi" and not name.startswith("torch")}
    assert whole.report["machine"]["gpu 1"]["name"] == "stand-in"
    assert "Disabled" in whole.report["machine"]["nvidia-smi"][1]
    for name in PARTS:
        assert f"-- {name}: " in whole.said


def has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def has_cuda() -> bool:
    return has_torch() and "+cpu" not in __import__("torch").__version__


def test_what_the_parts_find(whole: Ended) -> None:
    assert whole.result("kernels", "reduce bool")["figures"]["launches"][0] > 100
    assert whole.result("staged", "two ranks on one GPU")["figures"]["passed"][0] > 30
    assert whole.result("staged", "no transport named")["state"] == "ok"
    for name in ("one rank", "a rank for each GPU"):
        assert whole.result("nccl", name)["figures"]["passed"][0] > 30
    if has_torch():
        for name in ("two ranks on one GPU", "a rank for each GPU"):
            assert whole.result("torch suite", name)["figures"]["passed"][0] > 80
    for name in ("one rank", "a rank for each GPU"):
        assert whole.result("graphs", f"replays, {name}")["figures"]["replays"][0] == 25
    assert whole.result("graphs", "ranks that differ")["state"] == "ok"
    for label in ("all-reduce through the host, 4 MiB", "all-reduce by NCCL, 4 MiB"):
        figures = whole.result("bandwidth", label)["figures"]
        assert figures["by that of the copy"][0] > 0 and figures["bandwidth"][1] == "GB/s"
        time, bytes_in_gb = figures["time"][0] / 1e3, 4 * 2**20 / 1e9
        assert figures["bandwidth"][0] == pytest.approx(bytes_in_gb / time)
    for name in ("overlap through the host", "overlap by NCCL"):
        figures = whole.result("overlap", name)["figures"]
        a, b, both = (figures[key][0] for key in ("computing", "exchange", "at once"))
        assert figures["overlap"][0] == pytest.approx((a + b - both) / min(a, b))
    assert whole.result("sanitizer", "racecheck")["figures"]["launches"][0] > 500


def test_what_is_written(whole: Ended) -> None:
    (name,) = whole.reports
    assert name.startswith("stand-in-")
    page = Path(whole.said.partition("report: ")[2].partition(",")[0]).read_text()
    assert "**Not green**: it ran over the stand-ins" in page and "## overlap: " in page
    assert str(ROOT) not in page + json.dumps(whole.report)


def test_a_report_over_stand_ins_is_never_green(whole: Ended) -> None:
    whole_run = {**whole.report, "quick": False, "commit": {"name": "abc", "changed": False}}
    assert report.not_green(whole_run) == [
        "it ran over the stand-ins, or nothing says that it did not: there was no GPU"
    ]
    # All else is as it has to be: on a GPU it would be green.
    assert report.is_green({**whole_run, "stand-in": False})


def test_what_else_is_not_green(whole: Ended) -> None:
    good = {**whole.report, "quick": False, "stand-in": False, "commit": {"name": "abc", "changed": False}}
    assert report.not_green({**good, "commit": {"name": "abc", "changed": True}})
    assert report.not_green({**good, "commit": {"name": "", "changed": False}})
    assert report.not_green({**good, "quick": True}) and report.not_green({**good, "schema": 0})
    for name, part in PARTS.items():
        without = [p for p in good["parts"] if p["name"] != name]
        assert bool(report.not_green({**good, "parts": without})) == part.required
        (bad,) = (p for p in good["parts"] if p["name"] == name)
        broken = {**bad, "results": [*bad["results"], {**bad["results"][0], "state": "failed"}]}
        assert report.not_green({**good, "parts": [*without, broken]}) == [f"{name}: 1 failed"]


def test_by_an_mpi_that_takes_memory_of_gpus(tmp_path: Path) -> None:
    yes = {"RINGDP_MPI_TAKES_GPU_MEMORY": "yes", "RINGDP_STANDIN_OPEN": "1"}
    ended = check(tmp_path, "--only", "mpi", gpus=2, **yes)
    assert ended.code == 0 and ended.part("mpi")["state"] == "ok", ended.said
    assert ended.result("mpi", "two ranks")["figures"]["passed"][0] > 30
    assert ended.result("mpi", "two ranks")["what"].startswith("the rank suite, 2 ranks on 2 GPUs")
    assert ended.result("mpi", "all-reduce by MPI")["figures"]["4 MiB"][0] > 0


def test_an_mpi_that_says_no_is_named(whole: Ended) -> None:
    (only,) = whole.part("mpi")["results"]
    assert only["state"] == "skipped" and "it says that it takes none of their memory" in only["why"], only


# ---- What is wrong is reported ---------------------------------------------------------------------------------------


def test_a_kernel_that_does_nothing(tmp_path: Path) -> None:
    ended = check(tmp_path, "--only", "kernels", RINGDP_STANDIN_NO_KERNEL="ringdp_divide_int16")
    assert ended.code == 1
    failed = [r["name"] for r in ended.part("kernels")["results"] if r["state"] == "failed"]
    assert failed == ["divide int16"]
    assert "differ" in ended.result("kernels", "divide int16")["why"]


def test_an_error_after_which_the_gpu_is_of_no_use(tmp_path: Path) -> None:
    """It ends the part's results, and no other part's."""
    parts = ["--only", "kernels", "--only", "bandwidth"]
    ended = check(tmp_path, *parts, RINGDP_STANDIN_FAIL="cuLaunchKernel:700:700")
    assert ended.code == 1
    states = [r["state"] for r in ended.part("kernels")["results"]]
    assert states[0] == "ok" and set(states[-20:]) == {"failed"}
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in " ".join(r["why"] for r in ended.part("kernels")["results"])
    assert ended.part("bandwidth")["state"] == "ok"


def test_wrong_sums(tmp_path: Path) -> None:
    ended = check(tmp_path, "--only", "bandwidth", RINGDP_STANDIN_WRONG_OFFSET="9")
    assert ended.code == 1
    result = ended.result("bandwidth", "all-reduce through the host")
    assert result["state"] == "failed" and "sums are wrong" in result["why"]


def test_ranks_that_fail(tmp_path: Path) -> None:
    ended = check(tmp_path, "--only", "nccl", RINGDP_STANDIN_NCCL_FAIL="ncclAllGather:1:1")
    assert ended.code == 1
    result = ended.result("nccl", "one rank")
    assert result["state"] == "failed" and "test_allgather" in result["why"]


def test_a_part_that_never_ends(tmp_path: Path) -> None:
    ended = check(tmp_path, "--only", "kernels", "--limit", "6", RINGDP_STANDIN_DELAY_US="9000000")
    assert ended.code == 1
    assert "no end after 6 s" in ended.part("kernels")["results"][-1]["why"]


def test_where_a_report_goes_that_cannot_count() -> None:
    words = [sys.executable, str(GPU_CHECK), "--only", "machine", "--stand-ins", "1"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=60)
    page = Path(done.stdout.partition("report: ")[2].partition(",")[0])
    assert page.is_relative_to(ROOT / "build" / "gpu-reports") and page.exists(), done.stdout + done.stderr


def test_a_part_that_crashes(tmp_path: Path) -> None:
    ended = check(tmp_path, "--only", "machine", RINGDP_STANDIN_FAIL="nonsense")
    assert ended.code == 1
    why = ended.part("machine")["results"][-1]["why"]
    assert "ended by signal 6" in why and "RINGDP_STANDIN_FAIL is not" in why
    assert ended.report["stand-in"]


def test_what_the_sanitizer_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu_check import sanitizer

    program(
        tmp_path / "compute-sanitizer",
        "#!/bin/sh\necho '========= Invalid __global__ read of size 4 bytes'\necho $SAYS\nexit 86\n",
    )
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for says, wanted in (
        ("========= ERROR SUMMARY: 3 errors", "SUMMARY: 3.*"),
        ("broken", "no summary; .*broken"),
    ):
        monkeypatch.setenv("SAYS", says)
        with pytest.raises(AssertionError, match=wanted):
            sanitizer.under(sanitizer.find(), "memcheck", [], 20)


def test_no_gpu(tmp_path: Path) -> None:
    ended = check(tmp_path / "reports", gpus=0, RINGDP_CUDA_LIBRARY="no-such-library.so")
    assert ended.code == 2 and not ended.reports
    assert "there is no GPU to ask: " in ended.said and "no-such-library.so" in ended.said


# ---- What it stands on -----------------------------------------------------------------------------------------------


def test_half_a_line_is_no_result(tmp_path: Path) -> None:
    file = tmp_path / "part.jsonl"
    written = results.Results(file, quick=True, limit=10)
    with written.check("good", "what") as result:
        result.figures["n"] = (3, "GB")
    with written.check("bad", "what"):
        raise RuntimeError("why")
    with written.check("absent", "what"):
        raise results.Skip("none")
    file.write_text(file.read_text() + '{"result": {"name"')
    found, _ = results.read(file)
    assert [(r.name, r.state, r.why) for r in found] == [
        ("good", "ok", ""),
        ("bad", "failed", "RuntimeError: why"),
        ("absent", "skipped", "none"),
    ]
    assert found[0].figures == {"n": (3, "GB")}


def test_the_training_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `torch` runs on GPUs: on a machine without one, its ranks train on the CPU."""
    pytest.importorskip("torch")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name, value in environment().items():
        if name != "PYTHONPATH":
            monkeypatch.setenv(name, value)
    found = run_job("torch_job", 2, "auto", 90)
    assert found["device"] == "cpu" and found["last"] < found["first"]


def test_the_environment_follows_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("environment_of_make", ROOT / "tests" / "environment.py")
    environment_of_make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(environment_of_make)
    extras = {"test": ["pytest"], "cuda12": ["for-12"], "cuda13": ["for-13"]}
    monkeypatch.setenv("RINGDP_NVCC", "nvcc")
    monkeypatch.setenv("RINGDP_CUDA_LIBRARY", str(standin.build()[0]))
    assert environment_of_make.missing_driver() == []
    assert environment_of_make.gpu_requirements(extras) == ["pytest", "for-12"]
    monkeypatch.setattr(environment_of_make, "driver_version", lambda: 11080)
    assert "CUDA 11" in environment_of_make.missing_driver()[0]
    monkeypatch.undo()
    monkeypatch.setenv("RINGDP_CUDA_LIBRARY", "no-such-library.so")
    assert "there is no libcuda.so.1" in environment_of_make.missing_driver()[0]


def test_what_is_said_of_gpus_is_what_the_reports_say() -> None:
    """docs/gpu-reports/README.md: what changes with the first green one."""
    reports = report.read_all(ROOT / "docs" / "gpu-reports")
    assert not [name for name, one in reports.items() if one["stand-in"]], "over the stand-ins: no report"
    green = any(report.is_green(one) for one in reports.values())
    info = subprocess.run(
        [sys.executable, "-m", "ringdp", "info"], env=environment(), capture_output=True, text=True
    )
    assert info.returncode == 0, info.stderr
    pages = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/gpu.md")}
    for place, text in {**pages, "ringdp info": info.stdout}.items():
        assert ("not yet run on a gpu" in text.lower()) == (not green), f"{place} and docs/gpu-reports differ"
