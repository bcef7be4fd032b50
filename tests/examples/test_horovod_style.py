"""examples/horovod_style: trains, saves, and goes on from where it was as if it had never stopped."""

from collections.abc import Callable
from pathlib import Path

import pytest
from driver.phases import ROOT

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

TRAIN = ROOT / "examples" / "horovod_style" / "train.py"


def test_resuming_continues_bit_for_bit(run: Callable[..., tuple[int | None, str]], tmp_path: Path) -> None:
    def train(folder: str, epochs: int) -> list[str]:
        code, output = run(2, TRAIN, "--checkpoints", tmp_path / folder, "--epochs", epochs)
        assert code == 0, output
        return [line for line in output.splitlines() if line.startswith(("epoch", "held-out", "resuming"))]

    whole, begun, resumed = train("whole", 7), train("parts", 4), train("parts", 7)
    assert begun == whole[:8]
    assert resumed == ["resuming after epoch 4", *whole[8:]]
    assert float(whole[-1].split("accuracy ")[1]) >= 0.95
    first, second = (torch.load(tmp_path / folder / "checkpoint-7.pt") for folder in ("whole", "parts"))
    assert first["model"].keys() == second["model"].keys()
    assert all(torch.equal(first["model"][name], second["model"][name]) for name in first["model"])
    momenta = [
        [state["momentum_buffer"] for state in checkpoint["optimizer"]["state"].values()]
        for checkpoint in (first, second)
    ]
    assert len(momenta[0]) == len(momenta[1]) == len(first["model"])
    assert all(torch.equal(a, b) for a, b in zip(*momenta, strict=True))
