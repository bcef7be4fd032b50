"""Meshes for tests, each made once: on four ranks 2 × 2, on others all ranks on the model axis, or as a test says."""

import torch

import ringdp.torch as hvd

_made = {}


def mesh_of(data, model):
    """The job as data × model; one of them may be -1."""
    key = data, model
    if key not in _made:
        _made[key] = hvd.mesh(data=data, model=model)
    elif _made[key].model.process_set_id is None:  # another test has shut ringdp down
        _made[key].add()
    return _made[key]


def grid():
    """Two ranks on the model axis where their number is even, else all."""
    return mesh_of(-1, 2 if hvd.size() % 2 == 0 else hvd.size())


def integers(*shape, start=0, dtype=torch.float32):
    """Small integers, by index: -3 to 3."""
    count = torch.Size(shape).numel()
    return ((torch.arange(start, start + count) * 5) % 7 - 3).to(dtype).reshape(shape)


def filled(layer):
    """The layer with integers as its parameters, others in each."""
    with torch.no_grad():
        for i, param in enumerate(layer.parameters()):
            param.copy_(integers(*param.shape, start=i + 1, dtype=param.dtype))
    return layer


def part(whole, dim, process_set):
    """This rank's part along a dimension, the slow way: the first ranks have one more."""
    return torch.tensor_split(whole, process_set.size(), dim)[process_set.rank()]
