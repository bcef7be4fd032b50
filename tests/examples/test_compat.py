"""A training script that still says `import horovod.torch as hvd`, under the launcher."""

import sys
from pathlib import Path

import pytest
from driver.environ import environment
from driver.limit import run_limited
from driver.phases import ROOT

pytest.importorskip("torch")
pytest.importorskip("sklearn")


def test_an_old_script_trains_unchanged(tmp_path: Path) -> None:
    new = ROOT / "examples" / "horovod_style" / "train.py"
    old = tmp_path / "train.py"
    old.write_text(new.read_text().replace("import ringdp.torch as hvd", "import horovod.torch as hvd"))

    def train(name: str, *script: str) -> list[str]:
        options = ["--checkpoints", str(tmp_path / name), "--epochs", "2"]
        command = [sys.executable, "-m", "ringdp", "run", "-n", "2", *script, *options]
        variables = environment() | {"HOROVOD_CYCLE_TIME": "1"}
        outcome = run_limited(command, variables, tmp_path, tmp_path / f"{name}.log", 120)
        text = (tmp_path / f"{name}.log").read_text(errors="replace")
        assert outcome.code == 0, text
        assert text.count("HOROVOD_CYCLE_TIME is ignored: there are no cycles") == 1
        return [line for line in text.splitlines() if line.startswith(("epoch", "held-out"))]

    expected = train("new", str(new))
    assert len(expected) == 4
    assert train("old", sys.executable, "-m", "ringdp.compat", str(old)) == expected
