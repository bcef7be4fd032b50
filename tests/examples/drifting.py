"""examples/images/train.py with one bit of one parameter changed on the last rank after the training."""

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "images"))

import train

import ringdp.torch as hvd

evaluate = train.evaluate


def evaluate_and_drift(model: torch.nn.Module, held_out: Any) -> float:
    accuracy = evaluate(model, held_out)
    if hvd.rank() == hvd.size() - 1:
        with torch.no_grad():
            list(model.parameters())[-1].view(torch.int32)[0] ^= 1
    return accuracy


if __name__ == "__main__":
    train.evaluate = evaluate_and_drift
    sys.exit(train.main())
