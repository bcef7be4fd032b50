"""examples/tensorflow: learns the digits, with the same bits on all ranks."""

import runpy

from driver.phases import ROOT

import ringdp


def test_digits(capfd):
    train = runpy.run_path(str(ROOT / "examples" / "tensorflow" / "train.py"))
    accuracy, identical = train["main"](["--epochs", "5"])
    assert accuracy >= 0.93 and identical
    assert len(set(ringdp.allgather_object(accuracy))) == 1
    said = capfd.readouterr().out
    assert ("epoch 5/5  loss " in said and "; variables identical" in said) == (ringdp.rank() == 0)
