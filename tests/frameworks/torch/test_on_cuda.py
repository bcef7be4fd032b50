"""What tests make is put on a GPU, and what ringdp makes is not; here a set takes the GPU's place."""

import torch
from frameworks.torch import on_cuda

import ringdp.torch as hvd


def test_what_is_moved(monkeypatch):
    moved = set()

    def note(made):
        moved.add(id(made))
        return made

    monkeypatch.setattr(on_cuda, "_moved", note)
    with on_cuda.OnCuda():
        made = [
            torch.zeros(3),
            torch.tensor([1.0]),
            torch.randn(2, generator=torch.Generator()),
            torch.arange(4),
        ]
        computed = [made[0] + 1, torch.zeros_like(made[0]), made[3].view(2, 2)]
        (part, rows) = hvd.alltoall(made[3], [4])
    assert all(id(tensor) in moved for tensor in made)
    assert not any(id(tensor) in moved for tensor in [*computed, part, rows])
