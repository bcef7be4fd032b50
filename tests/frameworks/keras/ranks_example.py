"""examples/keras: learns the digits, with the same bits on all ranks, and its file can be loaded."""

import runpy

import keras
import numpy as np
from driver.phases import ROOT
from frameworks.keras.helpers import same_bits, values, weights

import ringdp


def test_digits(tmp_path):
    train = runpy.run_path(str(ROOT / "examples" / "keras" / "train.py"))
    file = ringdp.broadcast_object(str(tmp_path / "digits.keras"))
    model, accuracy = train["main"](["--epochs", "6", "--save", file])
    assert accuracy >= 0.93
    assert same_bits(weights(model) + values(model.optimizer.variables))
    assert len(set(ringdp.allgather_object(accuracy))) == 1
    if ringdp.rank() == 0:
        saved = keras.models.load_model(file)
        assert all(np.array_equal(a, b) for a, b in zip(weights(saved), weights(model), strict=True))
