"""The timeline of rank 0: which operations it holds, with which stages, and when it is written."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ringdp
from ringdp import timeline, world

STAGES = ("SUBMIT", "AGREE", "REDUCE")


def trace(path: Path) -> tuple[dict[str, list[dict[str, Any]]], int]:
    """(the slices by the name of their track, operations lost)."""
    read = json.loads(path.read_text())
    tracks = {e["tid"]: e["args"]["name"] for e in read["traceEvents"] if e["name"] == "thread_name"}
    slices: dict[str, list[dict[str, Any]]] = {name: [] for name in tracks.values()}
    for event in read["traceEvents"]:
        if event["ph"] == "X":
            assert event["pid"] == 0 and event["dur"] >= 0
            slices[tracks[event["tid"]]].append(event)
    return slices, read["otherData"]["lost"]


def fit(slices: list[dict[str, Any]]) -> bool:
    """The first is the operation; the stages after it follow each other, from its begin to its end."""
    whole, *stages = slices
    edges = [whole["ts"]]
    for stage in stages:
        assert stage["cat"] == whole["name"] and abs(stage["ts"] - edges[-1]) < 0.01  # microseconds, rounded
        edges.append(stage["ts"] + stage["dur"])
    return abs(edges[-1] - whole["ts"] - whole["dur"]) < 0.01


def test_every_operation_and_its_stages(tmp_path: Path) -> None:
    is_first = ringdp.rank() == 0
    path = tmp_path / f"trace.{ringdp.rank()}.json"
    ringdp.allreduce(np.ones(3), name="before")
    ringdp.start_timeline(str(path))
    began = time.monotonic()
    ringdp.allreduce(np.ones(1 << 16, np.float32), name="large")
    ringdp.allreduce(np.ones(3), name="small")
    ringdp.allgather(np.ones((2, 5)), name="rows")
    ringdp.allreduce(np.ones(3), name="small")
    ringdp.barrier()
    ended = time.monotonic()
    ringdp.stop_timeline()
    ringdp.allreduce(np.ones(3), name="after")
    ringdp.stop_timeline()
    assert path.exists() == is_first
    if not is_first:
        return
    slices, lost = trace(path)
    assert lost == 0 and {"large", "small", "rows"} <= set(slices) and not {"before", "after"} & set(slices)
    assert [s["name"] for s in slices["large"]] == ["allreduce", *STAGES]
    assert [s["name"] for s in slices["rows"]] == ["allgather", *STAGES]
    assert slices["large"][0]["args"] == {"tensor": "large", "bytes": 1 << 18, "process set": 0}
    assert slices["rows"][0]["args"]["bytes"] == 80
    assert fit(slices["large"]) and fit(slices["rows"])
    half = len(slices["small"]) // 2
    assert fit(slices["small"][:half]) and fit(slices["small"][half:])
    assert any(s["name"] == "barrier" for track in slices.values() for s in track)
    for track in slices.values():
        for event in track:
            assert began - 1e-6 <= event["ts"] / 1e6 and (event["ts"] + event["dur"]) / 1e6 <= ended + 1e-6


@pytest.mark.min_ranks(2)
def test_the_wait_for_another_rank_is_its_agreement(tmp_path: Path) -> None:
    path = tmp_path / f"trace.{ringdp.rank()}.json"
    ringdp.start_timeline(str(path))
    ringdp.barrier()
    if ringdp.rank() == 1:
        time.sleep(0.2)
    ringdp.allreduce(np.ones(3), name="late")
    ringdp.stop_timeline()
    if ringdp.rank() == 0:
        (agree,) = (s for s in trace(path)[0]["late"] if s["name"] == "AGREE")
        assert agree["dur"] > 0.1e6


def test_a_set_and_what_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    alone = ringdp.add_process_set([0])
    if ringdp.rank() == 0:
        with pytest.raises(FileNotFoundError):
            ringdp.start_timeline(str(tmp_path / "nowhere" / "trace.json"))
        ringdp.start_timeline(str(path))
        with pytest.raises(ringdp.UsageError, match=f"{path} is being recorded; call stop_timeline"):
            ringdp.start_timeline(str(tmp_path / "other.json"))
        assert not (tmp_path / "other.json").exists()
        ringdp.allreduce(np.ones(2), name="mine", process_set=alone)
        ringdp.stop_timeline()
        number = alone.process_set_id
        assert trace(path)[0][f"mine (process set {number})"][0]["args"]["process set"] == number
    ringdp.barrier()
    ringdp.remove_process_set(alone)


def test_what_is_too_much_is_counted() -> None:
    engine = world.current().engine
    assert engine.start_timeline(2) and not engine.start_timeline(5)
    assert engine.stop_timeline() == ([], 0) and engine.start_timeline(2)
    for _ in range(5):
        ringdp.allreduce(np.ones(2), name="many")
    records, lost = engine.stop_timeline()
    assert [record[:4] for record in records] == [("many", "allreduce", 0, 16)] * 2 and lost == 3
    for record in records:
        times = [at for at in record[4:] if at is not None]
        assert times == sorted(times) and len(times) >= 3
    assert engine.stop_timeline() == ([], 0)


@pytest.mark.processes_only
def test_the_variable_and_the_end_of_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trace.json"
    ringdp.shutdown()
    monkeypatch.setenv("RINGDP_TIMELINE", str(path))
    for name in ("inside", "again"):  # as after an elastic reset
        ringdp.init()
        ringdp.allreduce(np.ones(2), name=name)
        ringdp.shutdown()
    monkeypatch.delenv("RINGDP_TIMELINE")
    ringdp.init()
    assert path.exists() == (ringdp.rank() == 0)
    if ringdp.rank() == 0:
        assert "inside" in trace(path)[0] and "inside" not in trace(tmp_path / "trace.2.json")[0]
        assert "again" in trace(tmp_path / "trace.2.json")[0]
        monkeypatch.setenv("RINGDP_TIMELINE", str(tmp_path / "no" / "trace.json"))
        with pytest.raises(ringdp.UsageError, match="RINGDP_TIMELINE=.*trace.json cannot be written"):
            timeline.start_from_environment(world.current())


@pytest.mark.processes_only
def test_calls_that_are_numbered_share_a_track_unless_they_overlap(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    ringdp.start_timeline(str(path))
    for _ in range(20):
        ringdp.allreduce(np.ones(2))
    handles = [ringdp.allreduce_async(np.ones(2)) for _ in range(3)]
    for handle in handles:
        handle.wait()
    ringdp.stop_timeline()
    if ringdp.rank() == 0:
        events = json.loads(path.read_text())["traceEvents"]
        tracks = [e["args"]["name"] for e in events if e["name"] == "thread_name"]
        assert tracks[0] == "unnamed" and 1 <= len(tracks) <= 3
        slices = [e for e in events if e["ph"] == "X" and e["name"] == "allreduce"]
        assert len(slices) == 23 and len({e["args"]["tensor"] for e in slices}) == 23


@pytest.mark.processes_only
def test_a_file_that_is_gone_does_not_keep_others_waiting(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    ringdp.start_timeline(str(folder / "trace.json"))
    (folder / "trace.json").unlink(missing_ok=True)
    folder.rmdir()
    ringdp.shutdown()
    ringdp.init()
    assert ("ringdp: the timeline could not be written: " in capfd.readouterr().err) == (ringdp.rank() == 0)
