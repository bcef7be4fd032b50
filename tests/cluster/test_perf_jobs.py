"""The jobs of tests/perf, as short as can be: they start, compute exact sums, and write what they measured."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest
from cluster import hosts as cluster_hosts
from perf import floor, jobs

HAS_TORCH = importlib.util.find_spec("torch") is not None
SHORT = {"rounds": 2, "seconds": 0.01}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return floor.build(tmp_path_factory.mktemp("floors"))


@pytest.fixture(autouse=True)
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "LOGS", tmp_path)
    monkeypatch.setattr(jobs, "ROOT", tmp_path)


@pytest.mark.parametrize("timing", ["each", "loop"])
def test_all_reduces_take_turns(library: Path, timing: str) -> None:
    entries = ["ringdp", "ringdp:float16", "mpi", "mpi-out", "floor-in-place", "floor-staged", "mpi:float16"]
    options = {**SHORT, "counts": [1, 70_001], "entries": entries, "timing": timing}
    result = jobs.run(jobs.Job("try", "job_allreduce.py", 2, options, limit=60), False, library)
    assert "failed" not in result and "incomplete" not in result, (jobs.LOGS / "try.log").read_text()
    assert result["left_out"] == {"mpi:float16": "MPI has no float16"}
    assert [(p["entry"], p["count"]) for p in result["points"]] == [
        (entry, count) for count in (1, 70_001) for entry in entries[:-1]
    ]
    for point in result["points"]:
        assert point["wrong"] == 0
        assert len(point["us"]) == 2
        assert all(0 < us < 1e7 for us in point["us"])


@pytest.mark.skipif(not HAS_TORCH, reason="there is no torch in this environment")
def test_steps_are_exact(library: Path) -> None:
    options = {"entries": ["plain", "ringdp", "ddp", "ddp-bf16"], "rounds": 1, "iterations": 1}
    result = jobs.run(jobs.Job("steps", "job_step.py", 2, options, limit=100), False, library)
    assert "failed" not in result, (jobs.LOGS / "steps.log").read_text()
    assert [(p["entry"], p["wrong"]) for p in result["points"]] == [(name, 0) for name in options["entries"]]


@pytest.mark.skipif(not HAS_TORCH, reason="there is no torch in this environment")
def test_resnet_50_has_as_many_parameters_as_it_has() -> None:
    from math import prod

    from perf import workload

    shapes = list(workload.resnet50_shapes())
    assert len(shapes) == 161
    assert sum(map(prod, shapes)) == 25_557_032


def test_an_idle_engine_is_watched(library: Path) -> None:
    result = jobs.run(jobs.Job("idle", "job_idle.py", 2, {"seconds": 0.3}, limit=60), False, library)
    assert "failed" not in result, (jobs.LOGS / "idle.log").read_text()
    assert len(result["engine"]) == len(result["others"]) == 2
    assert all(0 < share < 1 for share in result["engine"])


@pytest.mark.skipif(cluster_hosts.missing() is not None, reason=cluster_hosts.missing() or "")
def test_a_link_is_measured_beside_its_raw_limit(library: Path) -> None:
    options = {**SHORT, "counts": [1 << 20], "entries": ["raw-link", "ringdp", "mpi"], "timing": "each"}
    job = jobs.Job("link", "job_allreduce.py", 2, options, hosts=2, limit=100)
    result = jobs.run(job, False, library)
    assert "failed" not in result, (jobs.LOGS / "link.log").read_text()
    raw, ours, theirs = (min(p["us"]) for p in result["points"])
    limit = (4 << 20) * 8 / 1e9 * 1e6  # µs at 1 Gbit/s; the burst that the limit lets pass is an eighth of it
    assert limit * 0.8 < raw
    assert limit * 0.8 < ours
    assert limit * 0.8 < theirs


def test_a_job_that_fails_says_how_and_where(library: Path) -> None:
    job = jobs.Job("wrong", "job_allreduce.py", 2, {"counts": "x", "entries": "mpi"}, limit=60)
    result = jobs.run(job, False, library)
    assert result["failed"] == "exit code 1; see wrong.log"
    assert "invalid literal for int()" in (jobs.LOGS / "wrong.log").read_text()


def test_a_job_without_its_package_does_not_start(library: Path) -> None:
    job = dataclasses.replace(jobs.SCENARIOS["idle"][0], needs="no_such_package")
    assert jobs.run(job, False, library) == {"skipped": "no_such_package is not installed"}
