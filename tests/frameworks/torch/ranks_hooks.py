"""Hooks of one optimizer in several threads: PyTorch has one for each GPU, and the caller's for the CPU."""

import threading
import time

import torch
from frameworks.torch.helpers import parameters, wrap

from ringdp.torch.exchange import Exchange


def test_hooks_take_turns(monkeypatch):
    inside, at_once = [], []

    def takes_its_time(_, *arguments):
        inside.append(arguments)
        at_once.append(len(inside))
        time.sleep(0.005)
        inside.pop()

    for called in ("arriving", "arrived", "_after_pass"):
        monkeypatch.setattr(Exchange, called, takes_its_time)
    params = parameters((3,) * 6)
    optimizer = wrap(params)
    together = threading.Barrier(3)

    def one_pass(mine):
        together.wait(10)
        torch.stack([p.sum() for p in mine]).sum().backward()
        optimizer._exchange._pass_ended()

    threads = [threading.Thread(target=one_pass, args=(params[i::3],)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(at_once) == 2 * len(params) + len(threads)
    assert set(at_once) == {1}
