"""One build, with and without the wheel of NCCL: a machine without a GPU computes the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from driver.environ import environment
from driver.limit import run_limited
from gpu import nccl_wheel

TRAIN = nccl_wheel.ROOT / "examples" / "images" / "train.py"


def nccl_found(env: dict[str, str]) -> dict[str, Any]:
    words = [sys.executable, "-m", "ringdp", "info", "--json"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["nccl"]


def trained(env: dict[str, str], folder: Path) -> str:
    """What two ranks end with: a digest of the parameters."""
    folder.mkdir()
    result, log = folder / "result.json", folder / "log"
    words = [
        sys.executable,
        "-m",
        "ringdp",
        "run",
        "-n",
        "2",
        str(TRAIN),
        "--epochs",
        "1",
        "--json",
        str(result),
    ]
    outcome = run_limited(words, env, folder, log, 120)
    assert outcome.code == 0, log.read_text(errors="replace")
    told = json.loads(result.read_text())
    assert told["ranks"] == 2 and told["parameters_identical"]
    return told["parameters_sha256"]


@pytest.mark.slow
def test_the_same_training_with_and_without_the_wheel(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    nccl_wheel.fetch()
    without = environment()
    present = {**without, "PYTHONPATH": str(nccl_wheel.KEPT)}
    if "path" in nccl_found(without):
        pytest.skip("there is an NCCL here already")
    assert nccl_found(present)["path"] == str(nccl_wheel.LIBRARY)
    assert trained(present, tmp_path / "with") == trained(without, tmp_path / "without")
